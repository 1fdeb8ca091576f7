"""Tables and a page of any set of finished runs: `lep-report runs/gates`; `lep-report --paper runs/paper`.

Means over seeds with 95 % intervals, as Markdown on the terminal, LaTeX, CSV, or one HTML page that needs no network:
tables to sort and to filter, the score against characters a token, scores during training, drift and residuals of
propagation, and how each vocabulary cuts a sentence. Runs that differ in anything but the seed are never averaged;
those that failed or are not done are named.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lep.paper import paper_records, paper_tables
from lep.study import Study, read_study
from lep.study_page import render_study
from lep.tables import csv_text, latex, markdown, study_records, study_tables

FORMATS = {"md": ".md", "latex": ".tex", "csv": ".csv", "html": ".html"}
EXAMPLES = """examples:
  lep-report runs/gates                               tables on the terminal
  lep-report runs/gates runs/far --out page.html      one page of two studies
  lep-report runs/gates --format latex --out gates.tex
  lep-report --paper runs/paper                       the paper's rows, ours beside the published ones
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "lep-report", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a folder that holds runs, at any depth")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="md (tables as Markdown), latex (with booktabs), csv (a number a line), html (a page); without it as the "
        "name of --out ends, and md on the terminal",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write; the terminal if left out")
    parser.add_argument(
        "--paper",
        action="store_true",
        help="runs of experiment=paper/... beside the published rows of Tables 2 to 4, with the differences",
    )
    given = parser.parse_args(arguments)
    if given.format is None:
        given.format = _format_of(parser, given.out)
    return given


def _format_of(parser: argparse.ArgumentParser, out: Path | None) -> str:
    if out is None:
        return "md"
    for name, suffix in FORMATS.items():
        if out.suffix == suffix:
            return name
    parser.error(f"--out {out} ends in none of {', '.join(FORMATS.values())}; say --format")


def report(study: Study, form: str, *, paper: bool, title: str) -> str:
    """The text of one format."""
    if form == "csv":
        return csv_text(paper_records(study) if paper else study_records(study))
    tables, notes = paper_tables(study) if paper else (study_tables(study), [])
    notes = [*notes, *study.notes, *(f"not done: {sentence}" for sentence in study.unfinished)]
    if form == "html":
        return render_study(study, tables, notes, title=title, charts=not paper)
    return markdown(tables, notes) if form == "md" else latex(tables, notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script `lep-report`."""
    given = parse(arguments)
    try:
        study = read_study(given.folders)
        text = report(study, given.format, paper=given.paper, title=", ".join(folder.name for folder in given.folders))
    except ValueError as error:
        raise SystemExit(f"lep-report: {error}") from error
    if given.out is None:
        print(text)
    else:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, encoding="utf-8")
        print(f"{given.out}: {study.runs} runs in {len(study.groups)} groups, {len(study.unfinished)} not done")


if __name__ == "__main__":
    main()
