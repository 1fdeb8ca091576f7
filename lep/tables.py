"""Tables of a study: which number stands in which cell, and the whole as Markdown, LaTeX or CSV.

Comes in: a `Study`. Goes out: `Table`s, whose cells know their number beside their text, and texts to print. What is
bold, and what the intervals hold, is said in lep/study.py.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lep.report import DIAGNOSTICS, VOCABULARY_COSTS, language_name, number, percent
from lep.results import ORIGINAL, TOTAL, UNTRAINED, Score
from lep.study import (
    BITS,
    CHARACTERS,
    TWO_SIDED,
    Group,
    Line,
    SeedMean,
    Study,
    best,
    competes,
    diagnostics,
    differing,
    residual_of_change,
    seed_mean,
)

INTERVALS = (
    "± is the half-width of a 95 % interval over training seeds and items; with one seed, over items. Bold is the best "
    "of a column whose interval overlaps no other's, the original and its calibrations apart."
)


# What a rule says of a table only if it changed it.
CHANGES = {"held_out_r2_of_change", "relative_addition"}


@dataclass(frozen=True)
class Cell:
    """What stands in a cell. error: its interval; aside: what is said of it in brackets; value: what it sorts by.

    share: in 0..1, drawn as a bar.
    """

    text: str
    value: float | None = None
    error: str = ""
    aside: str = ""
    bold: bool = False
    share: float | None = None


EMPTY = Cell("–")


@dataclass(frozen=True)
class Table:
    """A table to print. columns: name, and what is said of it, such as its number of items; labels: columns of text."""

    title: str
    note: str
    columns: list[tuple[str, str]]
    lines: list[list[Cell]]
    labels: int


def study_tables(study: Study) -> list[Table]:
    """Scores of every suite in every language, what calibration gained, what propagation left, the vocabularies.

    ValueError if the runs hold none of it.
    """
    tables = [*score_tables(study), *gain_tables(study), *diagnostics_tables(study), *vocabulary_tables(study)]
    if not tables:
        raise ValueError(_nothing_in(study))
    return tables


def _nothing_in(study: Study) -> str:
    return f"the {study.runs} finished runs hold no scores and no vocabularies (stages=[corpus]?): nothing to show"


# Scores


@dataclass(frozen=True)
class Column:
    """A measure of the models of a table. n: of items, of most lines. winner: the number of the line that is bold."""

    key: str
    name: str
    n: int
    winner: int | None


@dataclass(frozen=True)
class Board:
    """Models that were asked the same, in one language: what a table of scores is made from."""

    suites: str
    language: str
    lines: list[Line]
    columns: list[Column]
    originals: Mapping[str, Line]
    texts_differ: bool


def boards(study: Study) -> list[Board]:
    """A board for each language of each set of suites, Russian first."""
    together = study.by_suites()
    names = [", ".join(groups[0].suites) if isinstance(groups[0].suites, Mapping) else "" for groups in together]
    apart = differing([groups[0].suites for groups in together])
    found = []
    for groups, name, own in zip(together, names, apart, strict=True):
        suites = f"{name} ({own})" if own and names.count(name) > 1 else name
        found += [_board(groups, suites, language) for language in _languages(groups)]
    return found


def _languages(groups: Sequence[Group]) -> list[str]:
    keys = [key for group in groups for line in group.lines for key in line.estimates]
    return sorted(dict.fromkeys(key.rpartition("/")[2] for key in keys), key=lambda language: language != "ru")


def _board(groups: Sequence[Group], suites: str, language: str) -> Board:
    own = f"/{language}"
    lines = [line for group in groups for line in group.lines if any(key.endswith(own) for key in line.estimates)]
    texts_differ = len({repr(group.held_out) for group in groups}) > 1
    keys = dict.fromkeys(key for line in lines for key in line.estimates if key.endswith(own))
    last = [key for key in (CHARACTERS + own, BITS + own) if key in keys]
    columns = []
    for key in [*(key for key in keys if key not in last), *last]:
        n = Counter(line.estimates[key].n for line in lines if key in line.estimates).most_common(1)[0][0]
        competing = {
            i: line.estimates[key]
            for i, line in enumerate(lines)
            if competes(line.model) and key in line.estimates and line.estimates[key].n == n
        }
        winner = None if texts_differ and key in last else best(competing, least=key.startswith(BITS))
        columns.append(Column(key, key.removesuffix(own), n, winner))
    originals = {line.label: line for line in reversed(lines) if line.model == ORIGINAL}
    return Board(suites, language, lines, columns, originals, texts_differ)


def score_tables(study: Study) -> list[Table]:
    """Percent right by task, characters a token, bits a byte; in brackets the share of the group's own original."""
    return [_score_table(board) for board in boards(study)]


def _score_table(board: Board) -> Table:
    notes = [f"Percent right; in brackets what that is of the original instruct model. {INTERVALS}"]
    if board.texts_differ:
        notes.append(f"The runs were measured on different texts: {CHARACTERS} and {BITS} do not compare.")
    lines = []
    for i, label in _yardsticks_once(board).items():
        line = board.lines[i]
        cells = [Cell(label), Cell(line.model), Cell(str(len(line.seeds)), len(line.seeds))]
        lines.append([*cells, *(_score_cell(board, column, i) for column in board.columns)])
    columns = [(column.name, f"n = {column.n}" if column.n else "") for column in board.columns]
    title = language_name(board.language) + (f": {board.suites}" if board.suites else "")
    return Table(title, " ".join(notes), [("run", ""), ("model", ""), ("seeds", ""), *columns], lines, 2)


def _yardsticks_once(board: Board) -> dict[int, str]:
    """The lines to show, with their labels. What a rule is compared with is told once for all runs that share it."""
    found: dict[Hashable, tuple[int, list[str]]] = {}
    for i, line in enumerate(board.lines):
        compared = line.model == UNTRAINED or not competes(line.model)
        original = board.originals.get(line.label, line).estimates
        told = repr((line.model, line.seeds, line.estimates, original)) if compared else i
        found.setdefault(told, (i, []))[1].append(line.label)
    runs = len({line.label for line in board.lines})
    return {i: _standing_for(labels, runs) for i, labels in found.values()}


def _standing_for(labels: Sequence[str], runs: int) -> str:
    if 1 < len(labels) == runs:
        return "every run"
    return ", ".join(labels[:2]) if len(labels) < 3 else f"{labels[0]} and {len(labels) - 1} more"


def _score_cell(board: Board, column: Column, place: int) -> Cell:
    line = board.lines[place]
    found = line.estimates.get(column.key)
    if found is None or math.isnan(found.mean):
        return EMPTY
    is_text = column.key.startswith((BITS, CHARACTERS))
    asides = [] if is_text else [share] if (share := _of_original(board, line, column.key)) else []
    if found.n != column.n:
        asides.append(f"n = {found.n}")
    if len(found.values) != len(line.seeds):
        asides.append(f"{len(found.values)} of {len(line.seeds)} seeds")
    return Cell(
        f"{found.mean:.2f}"
        if column.key.startswith(CHARACTERS)
        else f"{found.mean:.3f}"
        if is_text
        else percent(found.mean),
        found.mean,
        _error(found, digits=3, factor=1) if is_text else _error(found),
        "; ".join(asides),
        column.winner == place,
        None if is_text else min(max(found.mean, 0.0), 1.0),
    )


def _of_original(board: Board, line: Line, key: str) -> str:
    original = board.originals.get(line.label)
    if original is None or original is line or not original.estimates.get(key) or not original.estimates[key].mean:
        return ""
    return f"{percent(line.estimates[key].mean / original.estimates[key].mean)} %"


def _error(found: SeedMean, *, digits: int = 1, factor: float = 100) -> str:
    return "" if math.isnan(found.half_width) else f"± {factor * found.half_width:.{digits}f}"


# Calibration


@dataclass(frozen=True)
class Gain:
    """What a calibration of a group changed on n items. share: of the gap to the original that it closed, if any."""

    label: str
    model: str
    task: str
    n: int
    before: SeedMean
    after: SeedMean
    difference: SeedMean
    share: SeedMean | None


def gains(study: Study) -> list[Gain]:
    """Of every calibration on every task, seeds with as many items together."""
    found = []
    for group in study.groups:
        by_seed: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
        for run in group.runs:
            for model, of in run.result.calibration.items():
                for gain in of["gains"]:
                    by_seed[model, gain["task"], gain["n"]].append(gain)
        for (model, task, n), of in by_seed.items():
            shares = [gain["recovered"] for gain in of if gain["recovered"]]
            before, after = (seed_mean([Score(gain[key], math.nan, n) for gain in of]) for key in ("before", "after"))
            difference = seed_mean([Score(gain["difference"], _stderr(gain), n) for gain in of])
            share = seed_mean([Score(of["share"], _stderr(of), n) for of in shares]) if shares else None
            found.append(Gain(group.label, model, task, n, before, after, difference, share))
    return found


def _stderr(interval: Mapping[str, float]) -> float:
    """Of a 95 % interval, what a normal one of its width would have."""
    return (interval["high"] - interval["low"]) / (2 * TWO_SIDED)


def gain_tables(study: Study) -> list[Table]:
    """What each calibration gained over all tasks of a language; no table without any."""
    lines = []
    for gain in gains(study):
        task, _, language = gain.task.rpartition("/")
        if task == TOTAL:
            cells = [
                Cell(percent(of.mean), of.mean, _error(of)) if of else EMPTY
                for of in (gain.before, gain.after, gain.difference, gain.share)
            ]
            named = [Cell(gain.label), Cell(gain.model), Cell(language_name(language))]
            counted = [Cell(str(len(gain.before.values)), len(gain.before.values)), Cell(str(gain.n), gain.n)]
            lines.append([*named, *counted, *cells])
    note = (
        "Points, over all tasks. Each calibrated model is compared with itself before, item by item; ± is the "
        "half-width of a 95 % interval over seeds and items. The share is of the gap to the original, over the runs "
        "that have one beyond the noise."
    )
    columns = ["run", "model", "language", "seeds", "items", "before", "after", "gain", "share of the gap"]
    return [Table("What calibration gains", note, [(name, "") for name in columns], lines, 3)] if lines else []


# Propagation


def diagnostics_tables(study: Study) -> list[Table]:
    """Drift, residuals and the rest of what the rules said of their tables; no table where none said anything."""
    found = [(group, *key, values) for group in study.groups for key, values in diagnostics(group).items()]
    found = [line for line in found if CHANGES & set(line[-1])]
    if not found:
        return []
    names = [name for name in DIAGNOSTICS if any(name in values for *_, values in found)]
    residuals = [residual_of_change(values) for *_, values in found]
    most = max((residual for residual in residuals if residual is not None), default=1.0)
    lines = []
    for (group, rule, table, values), residual in zip(found, residuals, strict=True):
        drawn = EMPTY if residual is None else Cell(number(residual), residual, share=residual / most)
        cells = [Cell(number(values[name]), values[name]) if name in values else EMPTY for name in names]
        lines.append([Cell(group.label), Cell(rule), Cell(table), drawn, *cells])
    columns = ["run", "rule", "table", "residual", *(DIAGNOSTICS[name] for name in names)]
    note = (
        "Means over seeds. The residual is the part of the tune's change that a fit does not find, of rows that it did "
        "not see: 0 is all found, 1 is what swap leaves. Rules that carry tables as they are (swap) have no line."
    )
    return [Table("Propagation: drift and residuals", note, [(name, "") for name in columns], lines, 3)]


# Vocabularies


def _vocabularies(study: Study) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(the runs that have it, "before" or "after", its report); those before once, where they are the same."""
    found: dict[str, tuple[list[str], str, Mapping[str, Any]]] = {}
    for group in study.groups:
        for name in ("before", "after"):
            if report := group.first.tokenizer.get(name):
                key = repr(report) if name == "before" else group.label
                found.setdefault(key, ([], name, report))[0].append(group.label)
    return [(_standing_for(labels, len(study.groups)), name, report) for labels, name, report in found.values()]


def vocabulary_tables(study: Study) -> list[Table]:
    """Size and cost of every vocabulary on its held-out text."""
    found = _vocabularies(study)
    reports = [report for _, _, report in found]
    spoken = list(dict.fromkeys(language for report in reports for language in report["languages"]))
    costs = [
        (key, name, language)
        for key, name in VOCABULARY_COSTS.items()
        for language in spoken
        if any(key in report["languages"].get(language, {}) for report in reports)
    ]
    lines = []
    for label, name, report in found:
        of = [report["languages"].get(language, {}).get(key) for key, _, language in costs]
        cells = [EMPTY if value is None else Cell(f"{value:.2f}", value) for value in of]
        lines.append([Cell(label), Cell(name), Cell(number(report["size"]), report["size"]), *cells])
    columns = [("run", ""), ("vocabulary", ""), ("tokens", "")]
    columns += [(name, language_name(language)) for _, name, language in costs]
    return [Table("Vocabularies", "On held-out text.", columns, lines, 2)] if lines else []


# Renderings


def markdown(tables: Iterable[Table], notes: Sequence[str] = ()) -> str:
    """Tables for a terminal or a README, and what is to be known of the runs."""
    parts = []
    for table in map(_without_constant_labels, tables):
        head = [f"{name}, {about}" if about else name for name, about in table.columns]
        rule = ["---"] * table.labels + ["---:"] * (len(head) - table.labels)
        lines = [[_markdown_cell(cell) for cell in line] for line in table.lines]
        rows = "\n".join(f"| {' | '.join(cells)} |" for cells in ([*map(_unpiped, head)], rule, *lines))
        parts.append(f"### {table.title}\n\n{table.note}\n\n{rows}\n")
    parts += [_listed(notes, "- {}\n")] if notes else []
    return "\n".join(parts)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.bold else cell.text
    return _unpiped(" ".join(part for part in (text, cell.error, f"({cell.aside})" if cell.aside else "") if part))


def _unpiped(text: str) -> str:
    return text.replace("|", r"\|")


def latex(tables: Iterable[Table], notes: Sequence[str] = ()) -> str:
    """Tables for \\input, which need booktabs; notes as comments."""
    parts = ["% \\usepackage{booktabs}\n"]
    for table in map(_without_constant_labels, tables):
        head = [_escaped(name) + (f" ({_escaped(about)})" if about else "") for name, about in table.columns]
        lines = [head, *([_latex_cell(cell) for cell in line] for line in table.lines)]
        first, *others = (" & ".join(cells) + r" \\" for cells in lines)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{_escaped(table.title)}. {_escaped(table.note)}}}",
                    rf"\begin{{tabular}}{{{'l' * table.labels}{'r' * (len(head) - table.labels)}}}",
                    *(r"\toprule", first, r"\midrule", *others, r"\bottomrule"),
                    r"\end{tabular}",
                    r"\end{table}",
                    "",
                ]
            )
        )
    parts += [_listed(notes, "% {}\n")] if notes else []
    return "\n".join(parts)


def _latex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{_escaped(cell.text)}}}" if cell.bold else _escaped(cell.text)
    aside = f"({_escaped(cell.aside)})" if cell.aside else ""
    return " ".join(part for part in (text, _escaped(cell.error), aside) if part)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "²": r"\textsuperscript{2}",
    "–": "--",
    "→": r"$\to$",
    "\u202f": r"\,",
    "\u00a0": "~",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], text)


def _listed(notes: Sequence[str], line: str) -> str:
    return "".join(line.format(note.replace("\n", " ")) for note in notes)


def _without_constant_labels(table: Table) -> Table:
    """The table without the column `run` where there is one run alone."""
    if table.columns[0][0] != "run" or len({line[0].text for line in table.lines}) > 1:
        return table
    return replace(table, columns=table.columns[1:], lines=[line[1:] for line in table.lines], labels=table.labels - 1)


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV under the names of the first; nothing for what is not known."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, records[0], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: "" if _unknown(value) else value for key, value in record.items()})
    return stream.getvalue()


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def study_records(study: Study) -> list[dict[str, Any]]:
    """Every number of the tables as one line: its measure, mean, intervals and items. ValueError if there is none."""
    found = []
    for board in boards(study):
        for i, line in enumerate(board.lines):
            for column in board.columns:
                if of := line.estimates.get(column.key):
                    seeds = {"suites": board.suites, "best": column.winner == i}
                    found.append(_record("scores", line.label, line.model, column.name, board.language, of) | seeds)
    for gain in gains(study):
        task, _, language = gain.task.rpartition("/")
        named = {"before": gain.before, "after": gain.after, "gain": gain.difference, "share of the gap": gain.share}
        found += [
            _record("calibration", gain.label, gain.model, f"{task}: {name}", language, of)
            for name, of in named.items()
            if of
        ]
    for group in study.groups:
        for (rule, table), values in diagnostics(group).items():
            for name, value in values.items():
                of = SeedMean(value, math.nan, math.nan, 0, (math.nan,) * len(group.runs))
                found.append(_record("propagation", group.label, rule, f"{table}: {name}", "", of))
    for label, vocabulary, report in _vocabularies(study):
        measured = [("tokens", "", report["size"])]
        for language, costs in report["languages"].items():
            measured += [(name, language, costs[key]) for key, name in VOCABULARY_COSTS.items() if key in costs]
        for name, language, value in measured:
            of = SeedMean(value, math.nan, math.nan, 0, (value,))
            found.append(_record("vocabularies", label, vocabulary, name, language, of))
    if not found:
        raise ValueError(_nothing_in(study))
    return found


def _record(section: str, label: str, model: str, measure: str, language: str, of: SeedMean) -> dict[str, Any]:
    return {
        "section": section,
        "suites": "",
        "run": label,
        "model": model,
        "measure": measure,
        "language": language,
        "seeds": len(of.values),
        "n": of.n or None,
        "mean": of.mean,
        "half_width": of.half_width,
        "over_seeds": of.over_seeds,
        "over_items": of.over_items,
        "best": False,
    }
