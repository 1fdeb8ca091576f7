"""A study's runs in one table: `python -m lep.study runs/gates` prints Markdown.

Comes in: the records of runs that differ in seed and in one or more choices. Goes out: a line a choice and model,
means over seeds, and how much of the original instruct model each recovers.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lep.report import percent, task_name
from lep.results import TOTAL, Result, Row, read_result


def read_study(folder: Path) -> list[Result]:
    """The finished runs below a folder. ValueError if there is none."""
    results = [read_result(path) for path in sorted(folder.glob("*/result.json"))]
    if not results:
        raise ValueError(
            f"{folder} holds no finished run (no */result.json). Run the study first: lep -m experiment=..."
        )
    return results


def study_table(results: Sequence[Result], language: str) -> str:
    """Markdown: run and model down, tasks across; percent right, mean over seeds ± standard error over seeds.

    In brackets the share of the original that is recovered. Characters a token and bits per byte close the line.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    originals: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for row in result.rows:
            groups[without_seed(result.run), row.name].append(row)
            if row.name == "original":
                for key, score in row.scores.items():
                    originals[key].append(score.value)
    keys = [key for key in originals if key.endswith(f"/{language}")]
    names = [key.rpartition("/")[0] for key in keys]
    lines = [
        f"| run | model | seeds | {' | '.join(names)} | characters a token | bits a byte |",
        "|" + "---|" * (len(names) + 5),
    ]
    for (run, name), rows in groups.items():
        cells = [
            _cell([row.scores[key].value for row in rows if key in row.scores], mean(originals[key]), name)
            for key in keys
        ]
        characters = mean(row.characters_per_token[language] for row in rows)
        bits = mean(row.bits_per_byte[language].value for row in rows)
        lines.append(f"| {run} | {name} | {len(rows)} | {' | '.join(cells)} | {characters:.2f} | {bits:.3f} |")
    return "\n".join(lines)


def calibration_table(results: Sequence[Result]) -> str:
    """Markdown: what each calibration gained and which share of the gap to the original it closed; "" without any.

    Over all tasks of a language: points and percent, mean over seeds ± standard error over seeds. A run without a gap
    beyond its noise counts in the gain and not in the share.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        for row, of in result.calibration.items():
            for gain in of["gains"]:
                task, _, language = gain["task"].rpartition("/")
                if task == TOTAL:
                    groups[without_seed(result.run), row, language].append(gain)
    lines = ["| run | model | language | seeds | before | after | gain | share of the gap |", "|" + "---|" * 8]
    for (run, row, language), gains in groups.items():
        shares = [gain["recovered"]["share"] for gain in gains if gain["recovered"]]
        cells = [_over_seeds([gain[key] for gain in gains]) for key in ("before", "after", "difference")]
        lines.append(f"| {run} | {row} | {language} | {len(gains)} | {' | '.join(cells)} | {_over_seeds(shares)} |")
    return "\n".join(lines) if groups else ""


def without_seed(run: str) -> str:
    """What a run's name says besides its seed: runs that share it are repetitions of one another."""
    return ",".join(part for part in run.split(",") if not part.startswith("seed=")) or "default"


def _cell(values: Sequence[float], original: float, name: str) -> str:
    share = f" ({percent(mean(values) / original)} %)" if values and original and name != "original" else ""
    return f"{_over_seeds(values)}{share}"


def _over_seeds(values: Sequence[float]) -> str:
    if not values:
        return "–"
    error = f" ± {percent(stdev(values) / math.sqrt(len(values)))}" if len(values) > 1 else ""
    return f"{percent(mean(values))}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    results = read_study(parser.parse_args().folder)
    counts = {key: score.n for key, score in results[0].rows[0].scores.items()}
    for language in dict.fromkeys(key.rpartition("/")[2] for key in counts):
        items = ", ".join(f"{task_name(key)} {n}" for key, n in counts.items() if key.endswith(f"/{language}"))
        print(f"\n### {language}: {len(results)} runs, items a run: {items}\n")
        print(study_table(results, language))
    if table := calibration_table(results):
        print(f"\n### What calibration gains, over all tasks\n\n{table}")


if __name__ == "__main__":
    main()
