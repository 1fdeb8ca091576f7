"""`lep-report` as a person uses it: every format, to the terminal and to a file; mistakes in one line."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import write_study

from lep.report_app import main, parse


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_study(tmp_path_factory.mktemp("runs") / "study")
    (root / "killed").mkdir()
    (root / "killed" / "config.yaml").write_text("seed: 9\n")
    return root


def test_tables_go_to_the_terminal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(root)])
    printed = capsys.readouterr().out
    assert "### Russian: micro" in printed and "tokenizer=unigram | delta | 3" in printed
    assert "killed has no result.json" in printed


@pytest.mark.parametrize(
    ("name", "holds"),
    [("a.md", "### Russian"), ("a.tex", r"\begin{tabular}"), ("a.csv", "section,"), ("a.html", "<!doctype html>")],
)
def test_a_file_is_of_the_format_of_its_name(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, holds: str
) -> None:
    main([str(root), "--out", str(tmp_path / "deep" / name)])
    text = (tmp_path / "deep" / name).read_text(encoding="utf-8")
    assert holds in text
    assert "9 runs in 3 groups, 1 not done" in capsys.readouterr().out
    main([str(root), "--format", {"a.tex": "latex"}.get(name, name[2:])])
    assert capsys.readouterr().out == f"{text}\n"


def test_the_csv_is_one_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(root), "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out.strip())))
    assert {of["section"] for of in rows} == {"scores", "calibration", "propagation", "vocabularies"}
    assert all(None not in of and None not in of.values() for of in rows)


def test_mistakes_are_told_in_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path)], "no finished run"),
        ([str(tmp_path / "none")], "is no folder"),
        (["--paper", str(root)], "no run is of a row of the paper"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)
    with pytest.raises(SystemExit):
        parse([str(root), "--out", "a.txt"])
    assert "a.txt ends in none of .md, .tex, .csv, .html" in capsys.readouterr().err


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    printed = capsys.readouterr().out
    for words in ("--paper", "--format {md,latex,csv,html}", "lep-report runs/gates", "never averaged"):
        assert words in printed


def test_it_needs_neither_torch_nor_hydra() -> None:
    code = "import sys, lep.report_app; sys.exit(bool({'torch', 'hydra'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)
