"""The report of a study is laid out of what runs log, and saved only where a person says so."""

import json

import pytest
from test_loggers import RESULT
from wandb_workspaces.reports.v2 import interface as wr

from lep import saved_view
from lep.loggers import headline


def spec(**settings) -> str:
    """What would be sent to Weights & Biases."""
    return saved_view.lay_out("gates", entity="me", **settings)._to_model().spec.model_dump_json(by_alias=True)


def test_every_figure_is_one_that_runs_have_in_their_summary() -> None:
    assert set(saved_view.compared(["ru"])) <= set(headline(RESULT))


def test_the_layout_holds_the_runs_of_the_study_best_first() -> None:
    grids = [block for block in json.loads(spec())["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 3
    for grid in grids:
        (shown,) = grid["metadata"]["runSets"]
        (only,) = shown["filters"]["filters"]
        assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "gates")
        (order,) = shown["sort"]["keys"]
        assert order == {"key": {"section": "summary", "name": "best/score/ru"}, "ascending": False}
        assert "summary:best/bits_per_byte/en" in shown["runFeed"]["columnOrder"]


def test_bars_group_by_any_key_and_languages_are_those_asked_for() -> None:
    found = spec(by="training.learning_rate", languages=["kk"])
    assert "training.value.learning_rate" in found and "choices" not in found
    assert "best/score/kk" in found and "/ru" not in found and "/en" not in found


def test_the_command_saves_one_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    saved = list[wr.Report]()
    monkeypatch.setattr(wr.Report, "save", lambda report: saved.append(report) or report)
    monkeypatch.setattr(wr.Report, "url", property(lambda report: f"https://wandb.ai/{report.entity}/{report.project}"))
    saved_view.main(["gates", "--entity", "me", "--project", "mine"])
    (report,) = saved
    assert report.title == "lep: gates" and "wandb.ai/me/mine" in capsys.readouterr().out
