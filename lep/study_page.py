"""The page of a study: its tables to sort and filter, its charts, how its vocabularies cut a sentence.

Comes in: a `Study`, tables, notes. Goes out: one HTML file that asks nothing of the network.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lep.charts import Chart, Point, line_chart, scatter_chart
from lep.report import language_name, page_template
from lep.results import IN_TRAINING, Score
from lep.study import (
    BITS,
    CHARACTERS,
    Line,
    SeedMean,
    Study,
    competes,
    curves,
    diagnostics,
    residual_of_change,
    seed_mean,
)
from lep.tables import Board, Table, boards

MICRO_AVERAGE = "Micro-Avg"  # a suite's own mean over its tasks
MEAN = "mean of the tasks"
MOST_NAMES = 6  # beside the marks of a chart, before they stand in one another's way
VALIDATION = "val/bits_per_byte/"


def render_study(study: Study, tables: Sequence[Table], notes: Sequence[str], *, title: str, charts: bool) -> str:
    """The page as HTML; everything from the records is escaped. charts: also draw the study, not its tables alone."""
    return page_template("study.html.jinja").render(
        title=title,
        runs=study.runs,
        groups=[group.label for group in study.groups],
        tables=tables,
        notes=notes,
        score_charts=score_charts(study) if charts else [],
        training_charts=training_charts(study) if charts else [],
        residual_charts=residual_charts(study) if charts else [],
        segmentations=segmentations(study) if charts else [],
    )


def score_charts(study: Study) -> list[tuple[str, Chart]]:
    """(task, chart): the score of every model against its characters a token; the mean of the tasks comes first."""
    found = [chart for board in boards(study) for chart in _score_charts(board)]
    return sorted(found, key=lambda named: named[0] not in (MEAN, MICRO_AVERAGE))


def _score_charts(board: Board) -> list[tuple[str, Chart]]:
    own = f"/{board.language}"
    tasks = [column.name for column in board.columns if column.name not in (BITS, CHARACTERS)]
    scores = {task: [line.estimates.get(task + own) for line in board.lines] for task in tasks}
    if MICRO_AVERAGE not in tasks and len(tasks) > 1:
        keys = [task + own for task in tasks]
        scores = {MEAN: [mean_of_tasks(line, keys) for line in board.lines]} | scores
    title = language_name(board.language) + (f", {board.suites}" if board.suites else "")
    series = {task: _marks(board, of) for task, of in scores.items()}
    return [
        (task, scatter_chart(f"{task}, percent right ({title})", of, x_label=CHARACTERS))
        for task, of in series.items()
        if of
    ]


def _marks(board: Board, scores: Sequence[SeedMean | None]) -> dict[str, list[Point]]:
    """Points by model. Where runs are few, the best of each that competes bears its name."""
    named: dict[str, tuple[float, int]] = {}
    marks: dict[int, Point] = {}
    for i, (line, score) in enumerate(zip(board.lines, scores, strict=True)):
        characters = line.estimates.get(f"{CHARACTERS}/{board.language}")
        if characters is None or score is None or math.isnan(score.mean):
            continue
        label = f"{line.label} · {line.model}: {100 * score.mean:.1f}"
        marks[i] = Point(characters.mean, 100 * score.mean, _interval(score), label)
        if competes(line.model):
            named[line.label] = max(named.get(line.label, (score.mean, i)), (score.mean, i))
    if 1 < len(named) <= MOST_NAMES:
        for label, (_, i) in named.items():
            marks[i] = replace(marks[i], name=label)
    series: dict[str, list[Point]] = defaultdict(list)
    for i, mark in marks.items():
        series[board.lines[i].model].append(mark)
    return series


def _interval(score: SeedMean) -> tuple[float, float] | None:
    """In percent, and no further than shares go: over two seeds it may."""
    if math.isnan(score.half_width):
        return None
    low, high = score.mean - score.half_width, score.mean + score.half_width
    return 100 * max(low, min(score.mean, 0.0)), 100 * min(high, max(score.mean, 1.0))


def mean_of_tasks(line: Line, keys: Sequence[str]) -> SeedMean | None:
    """The unweighted mean of the scores, by seed first; None unless every seed has all of them.

    Tasks ask different items, so the squares of their half-widths over items add.
    """
    of = [line.estimates[key] for key in keys if key in line.estimates]
    seeds = len(line.seeds)
    if len(of) != len(keys) or any(len(found.values) != seeds for found in of):
        return None
    means = [sum(values) / len(of) for values in zip(*(found.values for found in of), strict=True)]
    items = sum(found.n for found in of)
    over_seeds = seed_mean([Score(value, 0.0, items) for value in means])
    over_items = math.hypot(*(found.over_items for found in of)) / len(of)
    return SeedMean(over_seeds.mean, over_seeds.over_seeds, over_items, items, over_seeds.values)


def training_charts(study: Study) -> list[Chart]:
    """Scores and bits per byte of held-out text against the step, a line a group; means over seeds."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(dict)
    for group in study.groups:
        for key, points in curves(group).items():
            if key.startswith(IN_TRAINING):
                task, _, language = key.removeprefix(IN_TRAINING).rpartition("/")
                lines[f"{task} of the base model, percent right ({language_name(language)})"][group.label] = [
                    (step, 100 * value) for step, value in points
                ]
            elif key.startswith(VALIDATION):
                name = f"Bits per byte of held-out text ({language_name(key.removeprefix(VALIDATION))})"
                lines[name][group.label] = points
    return [
        line_chart(title, of, x_label="training steps")
        for title, of in lines.items()
        if any(len(points) > 1 for points in of.values())
    ]


def residual_charts(study: Study) -> list[Chart]:
    """What the fits leave of the tune's change, against how far it moved the rows from the base's."""
    series: dict[str, list[Point]] = defaultdict(list)
    for group in study.groups:
        for (rule, table), values in diagnostics(group).items():
            residual = residual_of_change(values)
            if residual is not None and "relative_drift" in values:
                drift = 100 * values["relative_drift"]
                label = f"{group.label} · {rule}, {table}: {residual:.3g} at a drift of {drift:.3g} %"
                series[f"{rule}, {table}"].append(Point(drift, residual, label=label))
    x_label = "drift of the instruct model's rows from the base's, percent,"
    return [scatter_chart("Residual of the tune's change", series, x_label=x_label)] if series else []


def segmentations(study: Study) -> list[dict[str, Any]]:
    """A sentence of each language as each vocabulary cuts it: {language, cuts: [(names, tokens)]}, fewest tokens last.

    Vocabularies that cut it alike stand together.
    """
    sentences: dict[tuple[str, str], dict[tuple[str, ...], list[str]]] = {}
    for group in study.groups:
        for example in group.first.tokenizer.get("examples") or []:
            cuts = {name: tuple(tokens) for name, tokens in example["tokens"].items()}
            sentence = example["language"], "".join(cuts["before"])
            known = sentences.setdefault(sentence, {})
            for name, tokens in cuts.items():
                label = group.label if name == "after" else name
                if label not in known.setdefault(tokens, []):
                    known[tokens].append(label)
    return [
        {
            "language": language,
            "cuts": sorted(
                ((", ".join(names), tokens) for tokens, names in cuts.items()), key=lambda cut: -len(cut[1])
            ),
        }
        for (language, _), cuts in sentences.items()
    ]
