"""What loggers are told: the headline by which runs are compared; the same curves wherever the config sends them."""

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_module
from own_process import run_lep
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lep.loggers import headline, open_loggers, run_id
from lep.results import Result, Row, Score


def row(name: str, ru: dict[str, float], bits: float) -> Row:
    scores = {f"{task}/ru": Score(value, 0.02, 100) for task, value in ru.items()}
    return Row(name, scores | {"questions/en": Score(0.9, 0.02, 100)}, {"ru": 4.0}, {"ru": Score(bits, 0.01, 50)})


RESULT = Result(
    study="x",
    run="seed=0",
    choices={},
    seed=0,
    rows=[
        row("original", {"questions": 1.0, "copying": 1.0}, 0.2),
        row("no training", {"questions": 0.9, "copying": 0.9}, 0.9),
        row("swap", {"questions": 0.5, "copying": 0.7}, 0.3),
        row("delta", {"questions": 0.7, "copying": 0.5}, 0.25),
        row("original + instruct", {"questions": 0.95, "copying": 0.95}, 0.2),
    ],
    tokenizer={"after": {"languages": {"ru": {"characters_per_token": 4.2}}}},
    training={"tokens": 1000, "tokens_per_second": 50.0, "curve": []},
    calibration={"original + instruct": {"before": "original", "gains": []}},
    timings={"corpus": 1.0, "training": 20.0, "peak_memory_bytes": 5e8},
)


def test_the_headline_is_of_the_best_model_that_was_carried() -> None:
    """Equal scores: the fewer bits. Neither a model before training nor the original, also calibrated, was carried."""
    found = headline(RESULT)
    assert found == {
        "original/score/ru": 1.0,
        "original/score/en": 0.9,
        "original/bits_per_byte/ru": 0.2,
        "best/model": "delta",
        "best/score/ru": 0.6,
        "best/score/en": 0.9,
        "best/bits_per_byte/ru": 0.25,
        "characters_per_token/ru": 4.2,
        "tokens": 1000,
        "tokens_per_second": 50.0,
        "seconds": 21.0,
    }
    better = row("conversion + self", {"questions": 0.8, "copying": 0.6}, 0.4)
    assert headline(replace(RESULT, rows=[*RESULT.rows, better]))["best/model"] == "conversion + self"


def test_a_task_that_a_model_lacks_counts_for_none() -> None:
    lacking = row("overlap", {"questions": 0.65}, 0.4)
    found = headline(replace(RESULT, rows=[*RESULT.rows, lacking]))
    assert (found["best/model"], found["best/score/ru"]) == ("delta", 0.7)


def test_without_a_benchmark_bits_per_byte_choose_and_without_models_nothing() -> None:
    bare = [replace(of, scores={}) for of in RESULT.rows]
    found = headline(replace(RESULT, rows=bare))
    assert found["best/model"] == "delta" and not any("score" in name for name in found)
    assert set(headline(replace(RESULT, rows=[], training={}))) == {"characters_per_token/ru", "seconds"}


def test_a_run_keeps_its_id_and_shares_it_with_none(tmp_path: Path) -> None:
    first = run_id(tmp_path / "a" / "seed=0")
    assert run_id(tmp_path / "a" / "seed=0") == first != run_id(tmp_path / "b" / "seed=0")


def test_tensorboard_and_mlflow_get_the_same_curves_by_config_alone(tmp_path: Path) -> None:
    arguments = [
        *("logger=[tensorboard,mlflow]", "stages=[training]", "study=test"),
        *("training.steps=3", "training.warmup_steps=1", "training.log_every_steps=1", "measured_characters=2000"),
        *("corpus.source.num_documents=400", "corpus.held_out.documents=4"),
    ]
    done = run_lep(tmp_path, arguments, os.environ, check=True)
    assert "Warning" not in done.stderr
    (run_dir,) = (path.parent for path in tmp_path.glob("runs/test/*/result.json"))
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    drawn = {event.step: event.value for event in events.Scalars("train/loss")}
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
        stored = dict(database.execute("select step, value from metrics where key = 'train/loss'"))
        runs = list(database.execute("select name, status from runs"))
        params = dict(database.execute("select key, value from params"))
        speed = database.execute("select value from metrics where key = 'tokens_per_second'").fetchall()
    assert list(drawn) == [1, 2, 3] == list(stored)
    assert all(abs(drawn[step] - stored[step]) < 1e-6 for step in drawn)
    assert runs == [(run_dir.name, "FINISHED")] and len(speed) == 1
    assert params["training/steps"] == "3" and params["choices/tokenizer"] == "extension"


def test_the_csv_logger_is_always_there_and_can_be_set(tmp_path: Path) -> None:
    for overrides, steps in (([], 100), (["logger=[csv]", "logger.csv.flush_logs_every_n_steps=3"], 3)):
        with initialize_config_module("lep.conf", version_base="1.3"):
            config = compose("config", overrides=["logger=[]", *overrides])
        with open_loggers(config, tmp_path / str(steps), chosen={}) as (logger,):
            assert isinstance(logger, CSVLogger) and logger._flush_logs_every_n_steps == steps
            logger.log_metrics({"a": 1.0}, step=1)
        assert (tmp_path / str(steps) / "metrics.csv").read_text().splitlines()[0] == "a,step"
