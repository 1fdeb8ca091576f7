"""The one record that every run leaves: what was asked, what came out, with which code, on which machine.

Comes in: numbers and plain data from every stage. Goes out: `result.json`, written last and atomically, so that its
existence means "done". Tables and reports are made from these files alone; nothing here knows torch.
"""

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lep.durable import replacing

ORIGINAL, UNTRAINED = "original", "no training"  # the rows that every propagation is compared with
BITS = "bits per byte"  # what the score is called in comparisons: of a language's texts, and less is better
IN_TRAINING = "benchmark/"  # what scores are called, before task and language, in the curve of training
TOTAL = "all tasks"  # what the items of all tasks of a language together are called
FORMAT = 1  # bump when a reader of the previous format would misread the file
PACKAGES = (
    "lep",
    "torch",
    "transformers",
    "tokenizers",
    "pytorch-lightning",
    "hydra-core",
    "datasets",
    "numpy",
    "scipy",
    "peft",
)


# Beside the folder's other files, where there is no result: why.
ERROR_FILE, ENDED_FILE = "error.txt", "ended.txt"


@dataclass(frozen=True)
class Score:
    """A mean over n items with its standard error, in the unit of the score (a share for accuracies, bits for bits)."""

    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Row:
    """One line of the table: a model that was benchmarked, such as "original", "no training" or "swap".

    scores: by "task/language". bits_per_byte: by language, n in documents. details: what else the benchmark has to say.
    """

    name: str
    scores: dict[str, Score] = field(default_factory=dict)
    characters_per_token: dict[str, float] = field(default_factory=dict)
    bits_per_byte: dict[str, Score] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Everything that a run found. The free-form sections hold plain JSON, written by the stage they are named for.

    choices: the config groups chosen, e.g. {"tokenizer": "unigram"}. propagation: diagnostics by rule. comparisons:
    paired differences between rules. calibration: by row, how it was tuned and what it gained. artifacts: name and key
    by kind. timings: seconds by stage. samples: generated texts for people to read.
    """

    study: str
    run: str
    choices: dict[str, str]
    seed: int
    rows: list[Row]
    corpus: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    propagation: dict[str, Any] = field(default_factory=dict)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """The row of that name. Raises ValueError naming those there are."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"no row {name!r} in {self.study}/{self.run}; there are: {[row.name for row in self.rows]}")


def write_result(path: Path, result: Result) -> None:
    """Write the record so that `path` holds either all of it or what it held before, however the process ends.

    NaN and infinity become null: in a `Score` they come back as NaN, in the free-form sections as None.
    """
    text = json.dumps(_plain({"format": FORMAT, **_fields(result)}), indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(path) as staging:
        staging.write_text(text + "\n", encoding="utf-8")


def read_result(path: Path) -> Result:
    """The record that `write_result` wrote. Raises ValueError naming the file when it is none, or of a newer format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("format")
        if version > FORMAT:
            raise ValueError(f"format {version} is newer than {FORMAT}; upgrade lep")
        return Result(**{**data, "rows": [_row(row) for row in data["rows"]]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a result of lep: {error}") from error


def environment(*, device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on besides its config: package versions, commit, machine. `device` as the trainer says."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        **_commit(Path(__file__).resolve().parent),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_cores": os.cpu_count(),
        "device": device,
    }


def _row(data: dict[str, Any]) -> Row:
    scores = {name: _score(score) for name, score in data["scores"].items()}
    bits = {language: _score(score) for language, score in data["bits_per_byte"].items()}
    characters = {language: _number(value) for language, value in data["characters_per_token"].items()}
    return Row(data["name"], scores, characters, bits, data["details"])


def _score(data: dict[str, Any]) -> Score:
    return Score(_number(data["value"]), _number(data["stderr"]), data["n"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _fields(value: Any) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    """Plain JSON for dataclasses, paths, tuples and scalars of numpy or torch; TypeError for anything else."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "ndim", None) == 0:
        return _plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(_fields(value))
    raise TypeError(f"a result holds plain JSON data, not {type(value).__name__}: {value!r:.80}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(source: Path) -> dict[str, Any]:
    """Commit and dirty flag of the working tree that holds this code; None when it is installed or git is missing."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository, whose commit says nothing about this code.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _processor() -> str:
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
