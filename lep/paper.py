"""Our rows beside the published ones: Tables 2, 3 and 4 of arXiv 2412.21140, and how far apart they are.

Comes in: a `Study` of runs of `experiment=paper/...`, each of which names its row. Goes out: tables, and records for
CSV. A difference is given where the run is of the row's own model and vocabulary and was judged on Darumeru's own data.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from lep.report import percent
from lep.results import Row
from lep.study import CHARACTERS, Group, Line, SeedMean, Study
from lep.tables import EMPTY, Cell, Table

EXPERIMENTS = "paper/"  # what the options of `experiment` begin with
# The columns of the published tables, and what we call the same.
MEASURES = {
    "characters_per_token": f"{CHARACTERS}/ru",
    "Micro-Avg": "Micro-Avg/ru",
    "DaruMMLU": "DaruMMLU/ru",
    "DaruMERA": "DaruMERA/ru",
    "DaruSum": "DaruSum/ru",
    "DaruCopy-EN": "DaruCopy-EN/en",
    "DaruCopy-RU": "DaruCopy-RU/ru",
}
TITLES = {
    2: "Table 2: adapted base models, few-shot",
    3: "Table 3: propagated into instruct models, zero-shot",
    4: "Table 4: calibrated after conversion, zero-shot",
}
NOTE = (
    "Percent right, ± the half-width of our 95 % interval over seeds and items. Bold is a difference beyond our "
    "interval; the published figures have none."
)


@dataclass(frozen=True)
class Published:
    """A published row. model, tokenizer: the options that make it; row: which of our models it is; figures: shares."""

    config: str
    table: int
    name: str
    model: str
    tokenizer: str
    row: str
    figures: dict[str, float]


def published_rows() -> list[Published]:
    """All rows of Tables 2, 3 and 4, in their order."""
    text = files("lep.assets").joinpath("published.csv").read_text(encoding="utf-8")
    return [
        Published(
            row["config"],
            int(row["table"]),
            ", ".join(row[key] for key in ("published_model", "vocabulary", "method") if row[key]),
            row["model"],
            row["tokenizer"],
            row["row"],
            {name: float(row[name]) for name in MEASURES if row[name]},
        )
        for row in csv.DictReader(text.splitlines())
    ]


@dataclass(frozen=True)
class Match:
    """A line of ours that is to be a published row. doubts: in what it is not; comparable: whether to subtract."""

    published: Published
    line: Line
    doubts: list[str]
    comparable: bool

    def difference(self, measure: str) -> float | None:
        """Ours minus theirs."""
        ours, theirs = self.ours(measure), self.published.figures.get(measure)
        if ours is None or theirs is None or not self.comparable:
            return None
        return ours.mean - theirs

    def ours(self, measure: str) -> SeedMean | None:
        return self.line.estimates.get(MEASURES[measure])


def matches(study: Study) -> tuple[list[Match], list[str]]:
    """Lines with the rows that their experiments name, and sentences on groups that have none.

    ValueError if no run is of any row.
    """
    rows = {row.config: row for row in published_rows()}
    found, left = [], []
    for group in study.groups:
        experiment = group.first.choices.get("experiment", "")
        row = rows.get(experiment.removeprefix(EXPERIMENTS)) if experiment.startswith(EXPERIMENTS) else None
        if row is None:
            left.append(f"{group.label} is no row of the paper: its experiment is {experiment or 'none'}")
            continue
        lines = [line for line in group.lines if line.model == row.row]
        if not lines:
            left.append(f"{group.label} has no model {row.row!r}, which {row.config} is judged by")
        found += [_match(row, group, line) for line in lines]
    if not found:
        raise ValueError(
            f"no run is of a row of the paper ({'; '.join(left)}). Run one first: "
            f"lep experiment={EXPERIMENTS}{next(iter(rows))}"
        )
    return found, left


def _match(row: Published, group: Group, line: Line) -> Match:
    chosen = group.first.choices
    other = [
        f"{key} is {chosen.get(key)}, not {value}"
        for key, value in (("model", row.model), ("tokenizer", row.tokenizer))
        if chosen.get(key) != value
    ]
    judged = next(found for run in group.runs for found in run.result.rows if found.name == line.model)
    on, foreign = _judged_otherwise(judged)
    return Match(row, line, [*other, *on], not other and not foreign)


def _judged_otherwise(row: Row) -> tuple[list[str], bool]:
    """In what a model was not judged as the paper's were, and whether that was on records of our own."""
    about = row.details.get("darumeru")
    if not about:
        return ["it was not judged on Darumeru"], False
    said = []
    if about["protocol"]["name"] != "paper2024":
        said.append(f"the protocol is {about['protocol']['name']}, not paper2024")
    if about["source"] == "stand_in":
        said.append("the records are stand-ins of our own")
    if about["limit"]:
        said.append(f"{about['limit']} items a task")
    if about["missing"]:
        said.append(f"missing: {', '.join(about['missing'])}")
    return said, about["source"] == "stand_in"


def paper_tables(study: Study) -> tuple[list[Table], list[str]]:
    """The published tables that we have any row of, each row as published, as ours, and the difference; and notes."""
    found, notes = matches(study)
    for doubt in dict.fromkeys(doubt for match in found for doubt in match.doubts):
        rows = [match.published.config for match in found if doubt in match.doubts]
        notes.append(f"{doubt}: {', '.join(rows)}")
    tables = {match.published.table for match in found}
    return [_table(number, found) for number in sorted(tables)], notes


def _table(number: int, found: Sequence[Match]) -> Table:
    rows = [row for row in published_rows() if row.table == number]
    measures = [measure for measure in MEASURES if any(measure in row.figures for row in rows)]
    lines = []
    for row in rows:
        theirs = [_figure(measure, row.figures.get(measure)) for measure in measures]
        lines.append([Cell(row.config), Cell(row.name), Cell("published"), *theirs])
        for match in (match for match in found if match.published == row):
            seeds = f"ours, {len(match.line.seeds)} seed{'s' if match.line.seeds[1:] else ''}"
            own = match.line.label.removeprefix(EXPERIMENTS).removeprefix(row.config)  # what it was asked besides
            named = [Cell(row.config), Cell(row.name + own)]
            lines.append([*named, Cell(seeds), *(_ours(measure, match) for measure in measures)])
            if match.comparable:
                lines.append([*named, Cell("difference"), *(_difference(measure, match) for measure in measures)])
    columns = ["row", "of", "", *(measure.replace("_per_token", " a token") for measure in measures)]
    return Table(TITLES[number], NOTE, [(name, "") for name in columns], lines, 3)


def _figure(measure: str, value: float | None) -> Cell:
    return EMPTY if value is None else Cell(_shown(measure, value), value)


def _ours(measure: str, match: Match) -> Cell:
    ours = match.ours(measure)
    if ours is None:
        return EMPTY
    error = "" if math.isnan(ours.half_width) else f"± {100 * ours.half_width:.1f}"
    return Cell(_shown(measure, ours.mean), ours.mean, error)


def _difference(measure: str, match: Match) -> Cell:
    ours, apart = match.ours(measure), match.difference(measure)
    if ours is None or apart is None:
        return EMPTY
    text = f"{apart:+.2f}" if measure == "characters_per_token" else f"{100 * apart:+.1f}"
    return Cell(text, apart, bold=abs(apart) > ours.half_width)


def _shown(measure: str, value: float) -> str:
    return f"{value:.2f}" if measure == "characters_per_token" else percent(value)


def paper_records(study: Study) -> list[dict[str, Any]]:
    """A line for every figure of every row that we have: published, ours, the difference."""
    found: list[Mapping[str, Any]] = []
    for match in matches(study)[0]:
        for measure, theirs in match.published.figures.items():
            ours = match.ours(measure)
            found.append(
                {
                    "row": match.published.config,
                    "run": match.line.label,
                    "measure": measure,
                    "published": theirs,
                    "ours": ours and ours.mean,
                    "half_width": ours and ours.half_width,
                    "difference": match.difference(measure),
                    "seeds": len(match.line.seeds),
                    "doubts": "; ".join(match.doubts),
                }
            )
    return [dict(record) for record in found]
