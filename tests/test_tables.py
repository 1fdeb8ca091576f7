"""What stands in the tables of a study, what is bold in them, and how they are printed."""

import csv
import io
import re
from pathlib import Path

import pytest
from made_up import config, result, row, vocabulary, write_run, write_study

from lep.results import Row, Score
from lep.study import Study, read_study
from lep.tables import (
    Table,
    csv_text,
    diagnostics_tables,
    gain_tables,
    latex,
    markdown,
    score_tables,
    study_records,
    study_tables,
    vocabulary_tables,
)


def cells(table: Table, *labels: str) -> dict[str, str]:
    """Of the line that begins with these labels, the text under each column, ** around what is bold."""
    (line,) = (line for line in table.lines if tuple(cell.text for cell in line[: len(labels)]) == labels)
    return {
        name: f"**{cell.text}**" if cell.bold else " ".join(filter(None, (cell.text, cell.error, cell.aside)))
        for (name, _), cell in zip(table.columns, line, strict=True)
    }


def study_of(tmp_path: Path, **runs: list[Row]) -> Study:
    for name, rows in runs.items():
        write_run(tmp_path / name, result(f"tokenizer={name}", rows), config(tokenizer=name))
    return read_study([tmp_path])


def test_the_share_is_of_the_original_of_the_same_runs(tmp_path: Path) -> None:
    near, far = [row("original", 0.8), row("swap", 0.4)], [row("original", 0.5), row("swap", 0.4)]
    russian, english = score_tables(study_of(tmp_path, near=near, far=far))
    assert russian.title == "Russian: micro" and english.title == "English: micro"
    assert cells(russian, "tokenizer=near", "swap")["copying"] == "40.0 ± 3.9 50.0 %"
    assert cells(russian, "tokenizer=far", "swap")["copying"] == "40.0 ± 3.9 80.0 %"


def test_bold_is_what_stands_apart_and_never_the_original(tmp_path: Path) -> None:
    rows = [
        row("original", 0.99, bits=0.1),
        row("original + self", 0.98),
        row("swap", 0.5),
        row("delta", 0.6, bits=0.2),
    ]
    (table, _) = score_tables(study_of(tmp_path, apart=rows, other=[row("swap", 0.4)]))
    assert cells(table, "tokenizer=apart", "delta")["copying"] == "**60.0**"
    assert cells(table, "tokenizer=apart", "delta")["bits a byte"] == "**0.200**"
    assert sum(cell.bold for line in table.lines for cell in line) == 3  # of two tasks and of bits a byte


def test_what_overlaps_is_not_bold(tmp_path: Path) -> None:
    """Half-widths of 3.9 points each: 7 apart is too near, 8 is not."""
    for value, bold in ((0.57, False), (0.58, True)):
        (table, _) = score_tables(study_of(tmp_path / str(value), a=[row("swap", 0.5)], b=[row("swap", value)]))
        assert ("**" in cells(table, "tokenizer=b", "swap")["copying"]) == bold


def test_fewer_items_are_told_and_not_ranked(tmp_path: Path) -> None:
    """Asked by the same config, as a data set on the hub has it that has changed since."""
    rows = {"a": [row("swap", 0.5)], "b": [row("swap", 0.5)], "c": [row("swap", 0.9, n=20)]}
    (table, _) = score_tables(study_of(tmp_path, **rows))
    assert dict(table.columns)["copying"] == "n = 200"
    assert cells(table, "tokenizer=c", "swap")["copying"] == "90.0 ± 3.9 n = 20"
    assert not any(cell.bold for line in table.lines for cell in line)


def test_other_suites_have_tables_of_their_own_that_say_what_differs(tmp_path: Path) -> None:
    for items in (200, 50):
        found = result(f"benchmark.micro.items_per_task={items}", [row("swap", 0.5, n=items)])
        write_run(tmp_path / str(items), found, config(items=items))
    titles = [table.title for table in score_tables(read_study([tmp_path]))]
    assert titles == [
        "Russian: micro (micro.items_per_task=200)",
        "English: micro (micro.items_per_task=200)",
        "Russian: micro (micro.items_per_task=50)",
        "English: micro (micro.items_per_task=50)",
    ]


def test_bits_a_byte_of_other_texts_are_not_ranked(tmp_path: Path) -> None:
    for name, bits in (("a", 0.9), ("b", 0.1)):
        asked = config(corpus={"name": name})
        write_run(tmp_path / name, result(f"corpus={name}", [row("swap", 0.5, bits=bits)]), asked)
    (table, _) = score_tables(read_study([tmp_path]))
    assert "do not compare" in table.note and not any(cell.bold for line in table.lines for cell in line)


def test_a_task_that_some_seeds_lack_says_how_many_have_it(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        scores = (
            {"use/ru": Score(0.5, 0.01, 30)} if seed else {"use/ru": Score(0.5, 0.01, 30), "rcb/ru": Score(1, 0, 9)}
        )
        write_run(tmp_path / str(seed), result("run", [Row("swap", scores)], seed=seed), config(seed=seed))
    (table,) = score_tables(read_study([tmp_path]))
    assert cells(table, "run", "swap")["rcb"].endswith("1 of 3 seeds")


def test_gains_are_means_over_seeds_with_what_they_closed(tmp_path: Path) -> None:
    """Gains of 8 and 12 points, each ± 2 over its items: seeds add 12.7 times their standard error of 2."""
    for seed, gain in enumerate((0.08, 0.12)):
        found = {"task": "all tasks/ru", "before": 0.5, "after": 0.5 + gain, "difference": gain, "n": 100}
        found |= {"low": gain - 0.02, "high": gain + 0.02, "recovered": None}
        if seed:
            found["recovered"] = {"share": 0.4, "low": 0.3, "high": 0.5, "n": 100}
        calibration = {"delta + self": {"before": "delta", "gains": [found, found | {"task": "copying/ru"}]}}
        write_run(tmp_path / str(seed), result("run", [], seed=seed, calibration=calibration), config(seed=seed))
    (table,) = gain_tables(read_study([tmp_path]))
    found = cells(table, "run", "delta + self", "Russian")
    assert (found["seeds"], found["items"], found["before"], found["after"]) == ("2", "100", "50.0", "60.0")
    error = (2**2 + (12.7062 * 2) ** 2) ** 0.5
    assert found["gain"] == f"10.0 ± {error:.1f}" and found["share of the gap"] == "40.0 ± 10.0"


def test_there_is_no_table_of_what_no_run_has(tmp_path: Path) -> None:
    study = study_of(tmp_path, a=[row("swap", 0.5)])
    assert gain_tables(study) == diagnostics_tables(study) == vocabulary_tables(study) == []
    write_run(tmp_path / "empty" / "run", result("run", []), config())
    with pytest.raises(ValueError, match="no scores and no vocabularies"):
        study_tables(read_study([tmp_path / "empty"]))


def test_the_residual_is_what_the_fit_does_not_find(tmp_path: Path) -> None:
    (table,) = diagnostics_tables(read_study([write_study(tmp_path / "study")]))
    assert cells(table, "tokenizer=bpe", "conversion", "input")["residual"] == "0.4"
    shares = {line[0].text: line[3].share for line in table.lines}
    assert shares["tokenizer=unigram"] == 1 and shares["tokenizer=bpe"] == pytest.approx(0.4 / 0.6)
    assert {line[1].text for line in table.lines} == {"conversion"}  # swap changes nothing


def test_vocabularies_that_all_began_with_stand_once(tmp_path: Path) -> None:
    (table,) = vocabulary_tables(read_study([write_study(tmp_path / "study")]))
    assert [line[0].text for line in table.lines][0] == "every run" and len(table.lines) == 4
    assert cells(table, "tokenizer=unigram", "after")["characters a token"] == "4.20"


# Printed


def test_markdown_has_as_many_cells_in_every_line(tmp_path: Path) -> None:
    study = study_of(tmp_path, a=[row("a|b", 0.9)], b=[row("swap", 0.2)])
    text = markdown(study_tables(study), ["a note"])
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1
    assert "**90.0** ± 3.9" in text and r"a\|b" in text and text.endswith("- a note\n")


def test_one_run_needs_no_name(tmp_path: Path) -> None:
    text = markdown(study_tables(study_of(tmp_path, a=[row("swap", 0.9)])))
    assert "| model | seeds |" in text and "| run |" not in text


def test_latex_escapes_what_it_would_read(tmp_path: Path) -> None:
    study = study_of(tmp_path, a=[row("50%_&#{$}^~\\", 0.9)], b=[row("swap", 0.2)])
    text = latex(study_tables(study), ["100 % sure"])
    assert r"50\%\_\&\#\{\$\}\textasciicircum{}\textasciitilde{}\textbackslash{}" in text
    assert r"\textbf{90.0} $\pm$ 3.9" in text and "\n% 100 % sure\n" in text
    for block in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL):
        lines = [line for line in block.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2


def test_csv_holds_every_number_once(tmp_path: Path) -> None:
    study = read_study([write_study(tmp_path / "study")])
    rows = list(csv.DictReader(io.StringIO(csv_text(study_records(study)))))
    keys = [tuple(of[key] for key in ("section", "suites", "run", "model", "measure", "language")) for of in rows]
    assert len(set(keys)) == len(keys)
    assert sum(of["section"] == "scores" for of in rows) == 3 * 5 * 2 * 4  # variants, models, languages, measures
    (found,) = (
        of for of in rows if of["run"] == "tokenizer=bpe" and of["model"] == "delta" and of["measure"] == "copying"
        and of["language"] == "ru"
    )  # fmt: skip
    (line,) = (
        line for group in study.groups for line in group.lines if (line.label, line.model) == (found["run"], "delta")
    )
    assert float(found["mean"]) == line.estimates["copying/ru"].mean and found["n"] == "200" and found["seeds"] == "3"


def test_csv_of_vocabularies_alone_and_of_nothing(tmp_path: Path) -> None:
    of_run = {"before": vocabulary(300, 2.5), "after": vocabulary(500, 4.0)}
    write_run(tmp_path / "a" / "run", result("a", [], tokenizer=of_run), config())
    found = study_records(read_study([tmp_path / "a"]))
    assert {of["section"] for of in found} == {"vocabularies"}
    assert {(of["model"], of["mean"]) for of in found if of["measure"] == "tokens"} == {("before", 300), ("after", 500)}
    assert {of["language"] for of in found} == {"", "ru", "en"}  # as scores name them
    write_run(tmp_path / "b" / "run", result("b", []), config())
    with pytest.raises(ValueError, match="nothing to show"):
        study_records(read_study([tmp_path / "b"]))


def test_what_rules_are_compared_with_is_told_once(tmp_path: Path) -> None:
    shared = [row("original", 0.9), row("no training", 0.1)]
    runs = {
        "a": [*shared, row("swap", 0.5)],
        "b": [*shared, row("swap", 0.5)],
        "c": [row("original", 0.9), row("no training", 0.2)],
    }
    (table, _) = score_tables(study_of(tmp_path, **runs))
    assert [tuple(cell.text for cell in line[:2]) for line in table.lines] == [
        ("every run", "original"),
        ("tokenizer=a, tokenizer=b", "no training"),
        ("tokenizer=a", "swap"),
        ("tokenizer=b", "swap"),  # rules are never taken together, however alike
        ("tokenizer=c", "no training"),
    ]
    assert cells(table, "tokenizer=b", "swap")["copying"].endswith("55.6 %")
