"""The paper's tables: every published row has one config that says what the row says; our rows stand beside them."""

import csv
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from made_up import config, result, write_run
from omegaconf import DictConfig, OmegaConf
from test_config import CONF, composed

from lep.config import check, run_name
from lep.paper import MEASURES, Match, Published, matches, paper_records, paper_tables, published_rows
from lep.results import Result, Row, Score
from lep.study import Line, SeedMean, Study, read_study
from lep.tables import markdown

ROWS = published_rows()
FOLDER = CONF / "experiment" / "paper"
PATHS = "corpus.paths={habr: a, pikabu: b, fiction: c, news: d, education: e, science: f}"
MINIATURE = ("model=tiny", "corpus=microworld", "instructions=microworld", "benchmark=micro", "trainer=cpu")
# What the paper calls the options of `calibration`.
DATA = {"none": [], "self-calibration": ["self"], "saiga d7": ["instruct"], "saiga d7 + copy": ["instruct_copy"]}
SIZES = {  # tokens of the published vocabularies, as the options that make them count them
    ("mistral_7b", "bpe"): {"vocab_size": 32_000},
    ("mistral_7b", "unigram"): {"vocab_size": 32_000},
    ("mistral_7b", "extension"): {"new_tokens": 55_328 - 32_000},
    ("llama3_8b", "bpe"): {"vocab_size": 128_000},
    ("llama3_8b", "unigram"): {"vocab_size": 128_000},
    ("llama3_8b", "extension"): {"new_tokens": 174_816 - 128_256},
    ("llama3_8b", "optimization"): {"keep": 64_000, "vocab_size": 114_504},
}


def of_row(row: Published, *overrides: str) -> DictConfig:
    return composed(f"experiment=paper/{row.config}", *overrides)


def raw() -> dict[str, dict[str, str]]:
    text = files("lep.assets").joinpath("published.csv").read_text(encoding="utf-8")
    return {row["config"]: row for row in csv.DictReader(text.splitlines())}


def test_every_row_has_one_config_and_every_config_one_row() -> None:
    names = [row.config for row in ROWS]
    assert len(set(names)) == len(names) == 9 + 21 + 20
    assert {*names} == {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.config)
def test_a_micro_average_is_that_of_the_seventeen_tasks(row: Published) -> None:
    """Figures are rounded to three digits, so the mean that they give may be off by one thousandth at most."""
    tasks = {"DaruMMLU": 3, "DaruMERA": 8, "DaruSum": 2, "DaruCopy-EN": 2, "DaruCopy-RU": 2}
    mean = sum(count * row.figures[group] for group, count in tasks.items()) / 17
    assert row.figures["Micro-Avg"] == pytest.approx(mean, abs=1e-3)


def test_rows_that_two_tables_share_say_the_same() -> None:
    """Table 4 begins with conversions of Table 3."""
    by_config = {row.config: row.figures for row in ROWS}
    shared = [name for name in by_config if re.fullmatch(r"table4_.*_none", name) and "original" not in name]
    assert len(shared) == 4
    for name in shared:
        other = name.replace("table4", "table3").replace("_none", "_conversion")
        assert by_config[name] == by_config[other]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.config)
def test_a_config_says_what_its_row_says(row: Published) -> None:
    texts = ["instructions.texts=[x]"] if row.table == 4 else []
    found = OmegaConf.to_container(of_row(row, PATHS, *texts), resolve=True)
    assert isinstance(found, dict)
    said = raw()[row.config]
    model, training, tokenizer = found["model"], found["training"], found["tokenizer"]
    assert model["name"] == row.model and tokenizer["_target_"] == f"lep.tokenizers.{row.tokenizer}"
    assert {key: tokenizer[key] for key in SIZES.get((row.model, row.tokenizer), {})} == SIZES.get(
        (row.model, row.tokenizer), {}
    )
    assert training["learning_rate"] == {"mistral_7b": 1e-4, "llama3_8b": 2e-4}[row.model]
    blocks = training["batch_size"] * found["trainer"]["accumulate_grad_batches"]
    assert (blocks, training["block_size"], training["warmup_steps"]) == (256, 1024, 100)
    assert (training["weight_decay"], training["rows"], found["corpus"]["name"]) == (0.1, "all", "paper")
    assert found["benchmark"]["darumeru"]["protocol"] == "paper2024" and found["init"]["input"]["_target_"].endswith(
        "mean"
    )
    assert (model["instruct"] == model["base"]) == (row.table == 2)  # Table 2 judges base models
    named = [name for name in found["calibration"] if name != "on"]
    assert named == (DATA[said["method"]] if row.table == 4 else [])
    if row.tokenizer == "original":
        assert found["adapted"] == model["base"] and not found["propagation"]
    else:
        rule = {2: "swap", 3: said["method"].lower(), 4: "conversion"}[row.table]
        assert list(found["propagation"]) == [rule] and found["adapted"] is None
    before = "original" if row.tokenizer == "original" else next(iter(found["propagation"]))
    assert row.row == " + ".join([before, *named]) and (not named or found["calibration"]["on"] == [before])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.config)
def test_the_same_config_is_a_row_in_miniature(row: Published) -> None:
    found = of_row(row, *MINIATURE)
    check(found)
    assert list(found.benchmark) == ["micro"] and found.training.steps == 1000 and found.corpus.name == "microworld"
    asked = OmegaConf.to_container(found, resolve=True)
    assert isinstance(asked, dict) and asked["model"]["base"] == "package:lep.assets/tiny/base"
    assert asked["adapted"] in (None, "package:lep.assets/tiny/base")


def test_every_row_has_a_folder_of_its_own() -> None:
    names = [run_name([f"experiment=paper/{row.config}", "seed=1"]) for row in ROWS]
    assert len({*names}) == len(ROWS) and run_name(["experiment=gates"]) == "default"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.config)
def test_the_figures_in_the_readme_are_those_of_the_file(row: Published) -> None:
    text = (CONF.parent / "experiments" / "paper" / "README.md").read_text(encoding="utf-8")
    shown = [f"{value:.2f}" if "token" in name else f"{100 * value:.1f}" for name, value in row.figures.items()]
    assert f"| {row.config} | {row.name} | {' | '.join(shown)} |\n" in text


# Our rows beside theirs


def judged(row: Published, off: float, **about: Any) -> Row:
    """A model whose figures are the published ones and `off` more."""
    said = {"protocol": {"name": "paper2024"}, "source": "hub", "limit": None, "missing": [], "complete": True}
    scores = {
        MEASURES[name]: Score(value + off, 0.01, 17) for name, value in row.figures.items() if "token" not in name
    }
    return Row(row.row, scores, {"ru": 4.0}, {}, {"darumeru": said | about})


def run_of(row: Published, found: Row, *, seed: int = 0, **choices: str) -> Result:
    chosen = {"experiment": f"paper/{row.config}", "model": row.model, "tokenizer": row.tokenizer} | choices
    rows = [*(Row(name) for name in ("original", "no training") if name != found.name), found]
    return result(f"{row.config},seed={seed}", rows, seed=seed, choices=chosen)


def study_of(tmp_path: Path, row: Published, *found: Row, **choices: str) -> Study:
    for seed, of in enumerate(found):
        write_run(
            tmp_path / f"{row.config},{seed}", run_of(row, of, seed=seed, **choices), config(seed=seed, row=row.config)
        )
    return read_study([tmp_path])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.config)
def test_the_difference_is_ours_less_theirs(tmp_path: Path, row: Published) -> None:
    study = study_of(tmp_path, row, judged(row, 0.05), judged(row, 0.07))
    ((match,), left) = matches(study)
    assert match.published == row and match.doubts == left == []
    for measure in row.figures:
        expected = 4.0 - row.figures[measure] if "token" in measure else 0.06
        assert match.difference(measure) == pytest.approx(expected)
    (table,) = paper_tables(study)[0]
    ours, apart = (
        [cell.text for cell in line[3:]]
        for line in table.lines
        if line[0].text == row.config and line[2].text != "published"
    )
    assert apart[-1] == "+6.0" and ours[-1] == f"{100 * (row.figures['DaruCopy-RU'] + 0.06):.1f}"
    assert len(table.lines) == sum(of.table == row.table for of in ROWS) + 2


def test_a_difference_is_bold_beyond_our_interval(tmp_path: Path) -> None:
    """One seed, a standard error of one point: 1.9 points are within, 2.1 beyond."""
    for off, bold in ((0.019, False), (0.021, True)):
        study = study_of(tmp_path / str(off), ROWS[1], judged(ROWS[1], off))
        ((table,), _) = paper_tables(study)
        (line,) = (line for line in table.lines if line[2].text == "difference")
        assert line[4].bold == bold and line[4].text == f"{100 * off:+.1f}"


@pytest.mark.parametrize(
    ("about", "choices", "said", "subtracted"),
    [
        ({"source": "stand_in"}, {}, "stand-ins", False),
        ({"protocol": {"name": "corrected"}}, {}, "protocol is corrected", True),
        ({"limit": 100}, {}, "100 items a task", True),
        ({"missing": ["use"]}, {}, "missing: use", True),
        ({}, {"model": "tiny"}, "model is tiny, not mistral_7b", False),
        ({}, {"tokenizer": "unigram"}, "tokenizer is unigram, not bpe", False),
    ],
)
def test_what_is_not_as_published_is_told(
    tmp_path: Path, about: dict[str, Any], choices: dict[str, str], said: str, subtracted: bool
) -> None:
    study = study_of(tmp_path, ROWS[1], judged(ROWS[1], 0.1, **about), **choices)
    tables, notes = paper_tables(study)
    assert said in " ".join(notes)
    assert ("| difference |" in markdown(tables)) == subtracted
    (record,) = (of for of in paper_records(study) if of["measure"] == "Micro-Avg")
    assert said in record["doubts"] and (record["difference"] is not None) == subtracted


def test_a_row_in_miniature_is_said_to_be_one(tmp_path: Path) -> None:
    study = study_of(tmp_path, ROWS[1], Row("swap", {"copying/ru": Score(0.5, 0.1, 9)}, {"ru": 4.1}), model="tiny")
    tables, notes = paper_tables(study)
    assert "model is tiny, not mistral_7b" in " ".join(notes) and "not judged on Darumeru" in " ".join(notes)
    assert "| 4.10 |" in markdown(tables)


def test_runs_of_no_row_are_named(tmp_path: Path) -> None:
    row = ROWS[1]
    write_run(tmp_path / "other", result("other", [judged(row, 0)]), config(row="other"))
    with pytest.raises(
        ValueError, match=r"no run is of a row of the paper \(other is no row.*lep experiment=paper/table2"
    ):
        paper_tables(read_study([tmp_path]))
    lost = run_of(ROWS[2], Row("delta"))
    write_run(tmp_path / "lost", lost, config(row="lost"))
    study = study_of(tmp_path, row, judged(row, 0))
    notes = " ".join(paper_tables(study)[1])
    assert "other is no row of the paper" in notes and "has no model 'swap'" in notes


def test_what_is_not_there_has_no_difference() -> None:
    line = Line("run", "swap", (0,), {"Micro-Avg/ru": SeedMean(0.5, 0.0, 0.01, 17, (0.5,))})
    match = Match(ROWS[1], line, [], comparable=True)
    assert match.difference("DaruSum") is None and match.difference("Micro-Avg") == pytest.approx(0.5 - 0.616)
