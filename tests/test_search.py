"""Trials of a search: values that are kept, ends that come early, and the sweep that a person starts."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from omegaconf import DictConfig
from test_config import composed, jobs_of

from lep.config import check
from lep.results import read_result
from lep.search import JOURNAL_FILE, RUN, Trial, take_trial
from lep.training import EndTraining


def search(*overrides: str) -> DictConfig:
    return composed("experiment=learning_rate_search", *overrides)


def started(folder: Path, number: int, *overrides: str) -> tuple[Trial, float]:
    """A trial, and the learning rate that its config then has."""
    config = search(f"search.trial={number}", *overrides)
    trial = take_trial(config, folder / f"search.trial={number}")
    return trial, config.training.learning_rate


def test_a_trial_keeps_its_values_however_often_it_starts_and_shares_them_with_none(tmp_path: Path) -> None:
    rates = [started(tmp_path, number)[1] for number in range(6)]
    assert len({*rates}) == 6 and all(1e-3 <= rate <= 1e-1 for rate in rates)
    assert [started(tmp_path, number)[1] for number in range(6)] == rates
    assert [started(tmp_path / "elsewhere", number)[1] for number in range(4)] == rates[:4]  # drawn from the seed


def test_a_trial_that_falls_behind_is_ended_and_stays_so(tmp_path: Path) -> None:
    eager = (
        *("search.pruner._target_=optuna.pruners.MedianPruner", "~search.pruner.percentile"),
        *("search.pruner.n_startup_trials=2", "search.pruner.n_warmup_steps=100"),
    )
    for number, bits in ((0, 1.0), (1, 0.9)):
        trial, _ = started(tmp_path, number, *eager)
        for step in (0, 100, 200):
            trial.report(step, bits - step / 1000)
        assert f"{bits - 0.2:.4f}; best so far" in trial.finish(bits - 0.2)
    better, _ = started(tmp_path, 2, *eager)
    worse, rate = started(tmp_path, 3, *eager)
    for step in (0, 100, 200):
        better.report(step, 0.5)
    worse.report(0, 1.5)  # in the warm-up
    worse.report(100, 0.8)  # as good as the median of the others
    with pytest.raises(EndTraining, match=rf"ended at step 200, behind the others: learning_rate {rate:.4g}"):
        worse.report(200, 1.4)
    better.check_not_ended()
    again, _ = started(tmp_path, 3, *eager)
    with pytest.raises(EndTraining, match="at step 200"):
        again.check_not_ended()


def test_a_trial_that_was_killed_goes_on_and_what_it_said_counts_once(tmp_path: Path) -> None:
    trial, rate = started(tmp_path, 0)
    trial.report(0, 1.0)
    trial.report(100, 0.9)
    again, same = started(tmp_path, 0)
    again.report(100, 0.95)
    again.report(200, 0.8)
    again.finish(0.8)
    assert same == rate and "0.8000; best so far" in again.finish(0.8)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL_FILE)),
    )
    (kept,) = optuna.load_study(study_name="learning_rate_search", storage=storage).trials
    assert kept.intermediate_values == {0: 1.0, 100: 0.9, 200: 0.8} and kept.value == 0.8
    assert kept.user_attrs == {RUN: "search.trial=0"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages=[tokenizer]"], "search watches the training"),
        (["adapted=DIR"], "search watches the training"),
        (["training.validate_every_steps=2000"], "training.validate_every_steps=2000 leaves a search nothing"),
        (["search.space.learning_rate.key=training.rate"], "search.space.learning_rate.key=training.rate is no value"),
    ],
)
def test_a_search_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    check(search())
    assert len(jobs_of("learning_rate_search")) == 12
    with pytest.raises(ValueError, match=message):
        check(search(*overrides))


def test_a_search_needs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check(composed())
    with pytest.raises(ValueError, match=r"lep\[search\]"):
        check(search())


def test_a_search_is_a_sweep_whose_trials_may_end_early(tmp_path: Path) -> None:
    def lep(*overrides: str) -> str:
        small = (
            *(
                "training.steps=4",
                "training.warmup_steps=1",
                "training.validate_every_steps=2",
                "training.batch_size=2",
            ),
            *("corpus.source.num_documents=400", "corpus.held_out.documents=4", "measured_characters=2000"),
        )
        command = [sys.executable, "-m", "lep", "-m", "experiment=learning_rate_search", *small, *overrides]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout

    study = tmp_path / "runs" / "learning_rate_search"
    assert "best so far learning_rate" in lep("search.trial=0,1", "hydra/launcher=processes", "hydra.launcher.n_jobs=2")
    results = [read_result(path) for path in sorted(study.glob("*/result.json"))]
    rates = [max(row.get("train/learning_rate", 0) for row in result.training["curve"]) for result in results]
    assert len(results) == 2 and rates[0] != rates[1]
    unreachable = (
        *("search.trial=2", "search.pruner._target_=optuna.pruners.ThresholdPruner", "+search.pruner.upper=0.01"),
        *("~search.pruner.n_startup_trials", "~search.pruner.percentile", "search.pruner.n_warmup_steps=0"),
    )
    assert "ended at step 0, behind the others" in lep(*unreachable)
    assert len(list(study.glob("*/result.json"))) == 2 and not list(study.glob("*/checkpoints"))
    assert len(list(study.glob("*/ended.txt"))) == 1
