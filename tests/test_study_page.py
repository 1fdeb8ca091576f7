"""The page of a study: whole, of itself alone, with everything that a study has to show."""

import math
import re
from pathlib import Path

import pytest
from made_up import result, row, write_run, write_study
from test_report import HOSTILE, Balance

from lep.results import Row, Score
from lep.study import Study, read_study
from lep.study_page import mean_of_tasks, render_study, score_charts, segmentations, training_charts
from lep.tables import study_tables


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return read_study([write_study(tmp_path_factory.mktemp("runs") / "study")])


def page_of(study: Study) -> str:
    return render_study(study, study_tables(study), ["a note"], title="study", charts=True)


def test_the_page_is_whole_and_asks_nothing_of_the_network(study: Study) -> None:
    page = page_of(study)
    balance = Balance()
    balance.feed(page)
    assert not balance.open
    for address in ("http:", "https:", "src=", "@import", "url(", "fetch("):
        assert address not in page
    assert page.count("<script>") == 1 and "prefers-color-scheme: dark" in page
    for section in ("notes", "scores", "training", "residuals", "segmentation"):
        assert f'id="{section}"' in page


def test_every_number_is_there_to_sort_by(study: Study) -> None:
    page = page_of(study)
    for table in study_tables(study):
        for line in table.lines:
            for cell in line:
                assert cell.value is None or f'data-value="{cell.value}"' in page
    assert "<b>87.3</b>" not in page  # three rules within the noise of one another


def test_what_runs_say_stays_text(tmp_path: Path) -> None:
    vocabulary = {"examples": [{"language": "ru", "tokens": {"before": [HOSTILE], "after": ["a"]}}]}
    write_run(tmp_path / "run", result(HOSTILE, [row(HOSTILE, 0.5)], tokenizer=vocabulary), None)
    study = read_study([tmp_path])
    page = render_study(study, study_tables(study), [HOSTILE], title=HOSTILE, charts=True)
    assert HOSTILE not in page and page.count("<script") == 1


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run", result("run", [Row("swap", {"a/ru": Score(0.5, 0.1, 9)})]), None)
    page = page_of(read_study([tmp_path]))
    assert all(f'id="{section}"' not in page for section in ("scores", "training", "residuals", "segmentation"))


def test_scores_stand_over_characters_a_token(study: Study) -> None:
    charts = score_charts(study)
    assert [task for task, _ in charts] == ["mean of the tasks"] * 2 + ["questions", "copying"] * 2
    assert [series["name"] for series in charts[0][1].marks] == [
        "original",
        "no training",
        "swap",
        "conversion",
        "delta",
    ]
    named = [point["name"] for series in charts[0][1].marks for point in series["points"] if point["name"]]
    assert sorted(named) == ["tokenizer=bpe", "tokenizer=extension", "tokenizer=unigram"]
    delta = charts[0][1].marks[-1]["points"]
    assert delta[0]["x"] < delta[1]["x"] < delta[2]["x"] and delta[0]["y"] > delta[2]["y"]


def test_the_mean_of_tasks_is_taken_seed_by_seed(tmp_path: Path) -> None:
    """Two tasks that move against one another from seed to seed have a mean that does not move."""
    for seed, (a, b) in enumerate(((0.4, 0.6), (0.6, 0.4))):
        scores = {"a/ru": Score(a, 0.03, 100), "b/ru": Score(b, 0.04, 50)}
        write_run(tmp_path / str(seed), result("run", [Row("swap", scores)], seed=seed), None)
        (tmp_path / str(seed) / "config.yaml").write_text(f"seed: {seed}\n")
    ((line,),) = (group.lines for group in read_study([tmp_path]).groups)
    mean = mean_of_tasks(line, ["a/ru", "b/ru"])
    assert mean is not None and mean.mean == 0.5 and mean.over_seeds == pytest.approx(0, abs=1e-12)
    assert mean.over_items == pytest.approx(1.959964 * math.hypot(0.03, 0.04) / 2) and mean.n == 150
    assert mean_of_tasks(line, ["a/ru", "c/ru"]) is None


def test_training_is_a_line_a_run(study: Study) -> None:
    titles = {chart.title: [line["name"] for line in chart.lines] for chart in training_charts(study)}
    assert list(titles) == [
        "agreement of the base model, percent right (Russian)",
        "Bits per byte of held-out text (Russian)",
    ]
    assert all(names == ["tokenizer=bpe", "tokenizer=extension", "tokenizer=unigram"] for names in titles.values())


def test_vocabularies_that_cut_alike_stand_together(study: Study) -> None:
    (example,) = segmentations(study)
    assert [(names, len(tokens)) for names, tokens in example["cuts"]][0] == ("before", 2)
    assert len(example["cuts"]) == 4


def test_the_style_has_a_colour_for_every_line_that_charts_draw(study: Study) -> None:
    page = page_of(study)
    assert set(re.findall(r"var\((--line-\d)\)", page)) <= set(re.findall(r"(--line-\d):", page))
