"""Where Darumeru's records come from: the hub, a directory of the same layout, or the stand-in inside the package.

Out: rows as they are published, by config and split. A config that a source does not have gives None.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lep.assets import stand_in

Row = dict[str, Any]
# Configs that are data sets of their own on the hub: repository, config, and what their splits are called there.
ELSEWHERE = {
    "rucola": ("RussianNLP/rucola", None, {"test": "validation", "prompt": "train"}),
    "daru_treeway_eval": ("dichspace/daru_treeway_eval", "default", {}),
    "mmlu_nlpcoreteam": ("RefalMachine/darumeru", "mmlu_nlpcoreteam", {"prompt": "dev"}),
}
REPOSITORY = "RefalMachine/darumeru"
# A file of a split may be named as on the hub.
SPLIT_NAMES = {"test": ("test", "validation"), "prompt": ("prompt", "dev", "train")}


class Source(Protocol):
    def rows(self, config: str, split: str) -> list[Row] | None: ...


@dataclass(frozen=True)
class StandIn:
    """Records of our own in the published schema, for trying the suite without the data. Their scores mean nothing."""

    def rows(self, config: str, split: str) -> list[Row] | None:
        return stand_in.rows(config, split)


@dataclass(frozen=True)
class Directory:
    """`data/<config>/{test,prompt}.jsonl` below a directory, or the same without `data/`; RuCoLA also as CSV."""

    path: Path

    def rows(self, config: str, split: str) -> list[Row] | None:
        for folder in (self.path / "data" / config, self.path / config):
            for name in SPLIT_NAMES[split]:
                for path in (folder / f"{name}.jsonl", folder / f"{name}.csv"):
                    if path.is_file():
                        return read_rows(path)
        return None


@dataclass(frozen=True)
class Hub:
    """The published data sets on the Hugging Face hub; `revision` of the main one."""

    revision: str | None = None

    def rows(self, config: str, split: str) -> list[Row] | None:
        from datasets import load_dataset

        repository, name, splits = ELSEWHERE.get(config, (REPOSITORY, config, {}))
        revision = self.revision if repository == REPOSITORY else None
        try:
            found = load_dataset(repository, name, split=splits.get(split, split), revision=revision)
        except (OSError, ValueError, ConnectionError) as error:
            raise ValueError(
                f"{repository} ({config}, {split}) is not to be had from the hub: {error}. Give a directory that holds "
                "data/<config>/{test,prompt}.jsonl with benchmark.darumeru.source=DIR, or try stand_in there"
            ) from error
        return [dict(row) for row in found]


@dataclass(frozen=True)
class WithFiles:
    """A source, but for the configs whose files are given: {config: {split: files}}."""

    source: Source
    files: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    def rows(self, config: str, split: str) -> list[Row] | None:
        given = self.files.get(config, {}).get(split)
        if given is None:
            return self.source.rows(config, split)
        return [row for path in given for row in read_rows(Path(path))]


def make_source(name: str, revision: str | None, files: Mapping[str, Mapping[str, Sequence[str]]]) -> Source:
    """hub, stand_in or a directory; then the files that replace single configs."""
    if name == "hub":
        source: Source = Hub(revision)
    elif name == "stand_in":
        source = StandIn()
    elif (folder := Path(name).expanduser()).is_dir():
        source = Directory(folder)
    else:
        raise ValueError(f"benchmark.darumeru.source={name} is no directory. Give one, or `hub`, or `stand_in`")
    return WithFiles(source, files) if files else source


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSONL or CSV file. ValueError naming the file and line of what is no row."""
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is not there; a benchmark was told to read it")
    with path.open(encoding="utf-8", newline="") as stream:
        if path.suffix == ".csv":
            return list(csv.DictReader(stream))
        rows = []
        for number, line in enumerate(stream, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number} is no JSON: {error}. Give one record a line") from error
        return rows


def digest(rows: Sequence[Row]) -> str:
    """What identifies rows: 16 hex digits."""
    hashed = hashlib.sha256()
    for row in rows:
        hashed.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
    return hashed.hexdigest()[:16]
