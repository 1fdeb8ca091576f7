"""Runs that differ in nothing but the seed as one, with 95 % intervals; runs that are not done, by name.

Comes in: folders with runs at any depth. Goes out: a `Study`: groups of runs, and a `Line` for each model of a group
with a `SeedMean` of everything it was measured by.

How models are told apart: two things vary, and the half-widths of their intervals add as squares. Over seeds it is
Student's t of the seeds' values; over items 1.96 standard errors, which more seeds do not narrow, as all of them answer
the same items. With one seed, or where the seed changes nothing, the interval over items is all there is. The best of a
column is bold only where its interval overlaps that of no other model that was asked as many items of the same suite.
That is stricter than a paired comparison, which each run's own page has. The original instruct model is the yardstick:
calibrated or not, it does not compete.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

import yaml
from scipy.special import stdtrit

from lep.report import incomplete_sentences
from lep.results import ENDED_FILE, ERROR_FILE, ORIGINAL, Result, Row, Score, read_result

Key = TypeVar("Key", bound=Hashable)

BITS, CHARACTERS = "bits a byte", "characters a token"
TWO_SIDED = 1.959964  # standard errors on either side of a normal mean that hold 95 %
# Where a run lies, who watched it, and its seed: runs that differ in these alone repeat one another.
PLACES = ("seed", "study", "output_dir", "artifacts_dir", "logger", "hydra", "hydra/launcher")


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds. over_seeds, over_items: half-widths of 95 % intervals (0: does not vary; nan: not known).

    n: items. values: by seed.
    """

    mean: float
    over_seeds: float
    over_items: float
    n: int
    values: tuple[float, ...]

    @property
    def half_width(self) -> float:
        """Of the interval that holds both."""
        return math.hypot(self.over_seeds, self.over_items)


def seed_mean(scores: Sequence[Score]) -> SeedMean:
    """The mean of one score over seeds, of the same n items in each."""
    assert len({score.n for score in scores}) == 1, "scores over the same items"
    values = tuple(score.value for score in scores)
    over_seeds = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values)) if values[1:] else 0.0
    over_items = TWO_SIDED * fmean(score.stderr for score in scores)
    return SeedMean(fmean(values), over_seeds, over_items, scores[0].n, values)


def best(competing: Mapping[Key, SeedMean], *, least: bool = False) -> Key | None:
    """Whose mean is highest (or least), if its interval overlaps no other's; None otherwise, or if it is alone."""
    if len(competing) < 2:
        return None
    sign = -1 if least else 1
    first = max(competing, key=lambda key: sign * competing[key].mean)
    leader = competing[first]
    apart = all(
        sign * (leader.mean - other.mean) > leader.half_width + other.half_width
        for key, other in competing.items()
        if key != first
    )
    return first if apart else None


def competes(model: str) -> bool:
    """Whether a model is no yardstick."""
    return model != ORIGINAL and not model.startswith(f"{ORIGINAL} + ")


@dataclass(frozen=True)
class Run:
    """A finished run. config: what it was asked, without places and seed; None where no file says it.

    overrides: what of it was said on the command line.
    """

    folder: Path
    result: Result
    config: dict[str, Any] | None
    overrides: list[str]


@dataclass(frozen=True)
class Line:
    """A model of a group. estimates: by "task/language", "bits a byte/language", "characters a token/language"."""

    label: str
    model: str
    seeds: tuple[int, ...]
    estimates: dict[str, SeedMean]


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone, in its order. label: what tells them from the other groups of the study."""

    runs: list[Run]
    label: str = ""

    @property
    def first(self) -> Result:
        return self.runs[0].result

    @property
    def suites(self) -> Any:
        """What the models were asked; scores compare where it is the same."""
        return self._asked("benchmark")

    @property
    def held_out(self) -> Any:
        """What text they were measured on; bits per byte and characters a token compare where it is the same."""
        return [self._asked("corpus"), self._asked("measured_characters")]

    def _asked(self, key: str) -> Any:
        config = self.runs[0].config
        return str(self.runs[0].folder) if config is None else config.get(key)

    @cached_property
    def lines(self) -> list[Line]:
        """A line a model. Seeds in which it was asked another number of items stand in lines of their own."""
        found = []
        for model in dict.fromkeys(row.name for run in self.runs for row in run.result.rows):
            parts = _same_counts((run, row) for run in self.runs for row in run.result.rows if row.name == model)
            for part in parts:
                seeds = tuple(run.result.seed for run, _ in part)
                named = f" ({_seeds(seeds)})" if len(parts) > 1 else ""
                found.append(Line(self.label + named, model, seeds, _estimates([row for _, row in part])))
        return found


@dataclass(frozen=True)
class Study:
    """Groups of finished runs, and what is to be said of the rest and of what should be known of them."""

    groups: list[Group]
    unfinished: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> int:
        return sum(len(group.runs) for group in self.groups)

    def by_suites(self) -> list[list[Group]]:
        """Groups that were asked the same, together."""
        found: dict[str, list[Group]] = defaultdict(list)
        for group in self.groups:
            found[_text(group.suites)].append(group)
        return list(found.values())


def read_study(folders: Sequence[Path]) -> Study:
    """All runs below the folders. ValueError if one is no folder, or no run below any of them is done."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder. Give one that holds runs, such as runs/demo")
    runs, unfinished = [], []
    for folder in dict.fromkeys(found.resolve() for root in folders for found in run_folders(root)):
        if not (folder / "result.json").is_file():
            unfinished.append(_unfinished(folder))
            continue
        try:
            result = read_result(folder / "result.json")
            runs.append(Run(folder, result, _config(folder), _overrides(folder, result)))
        except ValueError as error:
            unfinished.append(str(error))
    if not runs:
        among = f"; there are: {'; '.join(unfinished)}" if unfinished else ""
        raise ValueError(
            f"{', '.join(map(str, folders))}: no finished run (result.json) at any depth{among}. Run the study first: "
            "lep -m experiment=..."
        )
    groups, repeated = group_runs(runs)
    return Study(groups, unfinished, [*repeated, *_incomplete(groups), *_commits(groups)])


def run_folders(root: Path) -> Iterator[Path]:
    """The folders below `root`, or itself, that a run was begun in; what a run left inside is not looked into."""
    for path, folders, files in os.walk(root):
        folders.sort()
        if {"result.json", "config.yaml"} & {*files} or ".hydra" in folders:
            folders.clear()
            yield Path(path)


def group_runs(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
    """Groups with labels, and sentences on runs that were left out since they repeat a seed of another."""
    found: dict[str, dict[int, Run]] = defaultdict(dict)
    repeated = []
    for run in runs:
        alike = found[str(run.folder) if run.config is None else _text(run.config)]
        if first := alike.get(run.result.seed):
            repeated.append(f"{run.folder} repeats seed {run.result.seed} of {first.folder} and is left out")
        else:
            alike[run.result.seed] = run
    groups = [Group([by_seed[seed] for seed in sorted(by_seed)]) for by_seed in found.values()]
    return [replace(group, label=label) for group, label in zip(groups, _labels(groups), strict=True)], repeated


def _labels(groups: Sequence[Group]) -> list[str]:
    """What was asked of a group and not of all; with the study, or as the folder, where that is not enough."""
    parts = [group.runs[0].overrides for group in groups]
    shared = set[str].intersection(*map(set, parts)) if len(parts) > 1 else set[str]()
    names = [",".join(part for part in of if part not in shared) or "default" for of in parts]
    in_study = [f"{group.first.study}/{name}" for group, name in zip(groups, names, strict=True)]
    return next(
        (labels for labels in (names, in_study) if len({*labels}) == len(labels)),
        [str(group.runs[0].folder) for group in groups],
    )


def _same_counts(rows: Iterable[tuple[Run, Row]]) -> list[list[tuple[Run, Row]]]:
    """Rows of one model by seed, parted where a score is over another number of items."""
    parts: list[tuple[dict[str, int], list[tuple[Run, Row]]]] = []
    for run, row in rows:
        counts = {key: score.n for key, score in _scores(row).items()}
        for known, part in parts:
            if all(known.get(key, n) == n for key, n in counts.items()):
                known.update(counts)
                part.append((run, row))
                break
        else:
            parts.append((counts, [(run, row)]))
    return [part for _, part in parts]


def _scores(row: Row) -> dict[str, Score]:
    bits = {f"{BITS}/{language}": score for language, score in row.bits_per_byte.items()}
    # A vocabulary's cost on the held-out text is counted, not sampled.
    characters = {
        f"{CHARACTERS}/{language}": Score(value, math.nan, 0) for language, value in row.characters_per_token.items()
    }
    return {**row.scores, **characters, **bits}


def _estimates(rows: Sequence[Row]) -> dict[str, SeedMean]:
    scores = [_scores(row) for row in rows]
    return {
        key: seed_mean([of[key] for of in scores if key in of])
        for key in dict.fromkeys(key for of in scores for key in of)
    }


def _config(folder: Path) -> dict[str, Any] | None:
    """What the run was asked: resolved by `lep`, as composed by `lep-benchmark`."""
    for path in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        if path.is_file():
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            return {key: value for key, value in config.items() if key not in PLACES}
    return None


def _overrides(folder: Path, result: Result) -> list[str]:
    """What the run was asked on the command line that may tell it from others; without Hydra's file, from its name."""
    path = folder / ".hydra" / "overrides.yaml"
    given = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else result.run.split(",")
    named = (override.removeprefix("experiment=") for override in given)
    return [override for override in named if override.partition("=")[0].partition(".")[0] not in PLACES]


def _unfinished(folder: Path) -> str:
    """One sentence: that a run is not done, and why if it failed or a search ended it."""
    for name, what in ((ERROR_FILE, "failed"), (ENDED_FILE, "was ended")):
        if (folder / name).is_file():
            return f"{folder} {what}: {(folder / name).read_text(encoding='utf-8').strip()}"
    return f"{folder} has no result.json: it runs, or was killed (the same command again goes on with it)"


def _incomplete(groups: Sequence[Group]) -> list[str]:
    said = (
        f"{group.label}: {sentence}"
        for group in groups
        for run in group.runs
        for sentence in incomplete_sentences(run.result)
    )
    return [f"incomplete: {sentence}" for sentence in dict.fromkeys(said)]


def _commits(groups: Sequence[Group]) -> list[str]:
    """A sentence if the code changed between the runs: that is no difference in the seed, and no config says it."""
    made_by = defaultdict[str, list[str]](list)
    for group in groups:
        for run in group.runs:
            code = run.result.environment
            commit = str(code.get("commit") or "unknown")[:10] + (" with changes" if code.get("dirty") else "")
            made_by[commit].append(f"{group.label} seed {run.result.seed}")
    if len(made_by) < 2:
        return []
    of = "; ".join(
        f"{commit}: {len(names)} ({names[0]}{', …' if names[1:] else ''})" for commit, names in made_by.items()
    )
    return [f"the runs were made by {len(made_by)} commits of the code, {of}"]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if seeds[1:] else ''} {', '.join(map(str, seeds))}"


def _text(node: Any) -> str:
    return json.dumps(node, sort_keys=True, default=str)


def differing(nodes: Sequence[Any]) -> list[str]:
    """Of nested settings, what tells each from the others: "micro.items_per_task=50"; "" where nothing does."""
    flat = [dict(_leaves(node)) for node in nodes]
    keys = [
        key for key in dict.fromkeys(key for of in flat for key in of) if len({_text(of.get(key)) for of in flat}) > 1
    ]
    return [", ".join(f"{key}={of[key]}" for key in keys if key in of and not key.endswith("_target_")) for of in flat]


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def curves(group: Group) -> dict[str, list[tuple[float, float]]]:
    """(step, mean over seeds) of every curve of training, at the steps that all seeds have it at."""
    by_seed = [_curves_of(run.result.training.get("curve") or []) for run in group.runs]
    found = {}
    for key in dict.fromkeys(key for of in by_seed for key in of):
        steps = [step for step in by_seed[0].get(key, {}) if all(step in of.get(key, {}) for of in by_seed)]
        if steps:
            found[key] = [(step, fmean(of[key][step] for of in by_seed)) for step in steps]
    return found


def _curves_of(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for row in history:
        for key, value in row.items():
            if key != "step" and value is not None:
                found[key][row["step"]] = value
    return found


def residual_of_change(values: Mapping[str, float]) -> float | None:
    """The part of the tune's change that a fit does not find, of rows that it did not see: 1 is what swap leaves."""
    explained = values.get("held_out_r2_of_change")
    return None if explained is None else 1 - explained


def diagnostics(group: Group) -> dict[tuple[str, str], dict[str, float]]:
    """By (rule, table), the mean over seeds of every number that propagation left."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in group.runs:
        for rule, tables in run.result.propagation.items():
            for table in ("input", "output"):
                for name, value in tables.get(table, {}).items():
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        found[rule, table][name].append(value)
    return {key: {name: fmean(values) for name, values in of.items()} for key, of in found.items()}
