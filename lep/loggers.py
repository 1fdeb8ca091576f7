"""Where curves and tables go besides the run's own files: Lightning's loggers, made from config, all fed alike."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from lep.config import build, plain
from lep.results import Result, Row, Score
from lep.stages import Plan

GAIN = ("before", "after", "difference", "low", "high", "n")
SHARE = ("share", "low", "high")


def make_loggers(config: DictConfig, run_dir: Path) -> list[Logger]:
    """The loggers of the config, in the run's folder; `metrics.csv` is always among them."""
    os.environ.setdefault("WANDB_MODE", "offline")
    nodes = [node for name, node in config.logger.items() if name != "csv"]
    loggers: list[Logger] = [CSVLogger(save_dir=str(run_dir), name="", version="")]
    for node in nodes:
        extra: dict[str, Any] = {"save_dir": str(run_dir)}
        if str(node._target_).endswith("WandbLogger"):
            # The folder is the name, so that a killed run goes on in the same Weights & Biases run.
            identity = hashlib.sha256(f"{config.study}/{run_dir.name}".encode()).hexdigest()[:16]
            extra |= {"name": run_dir.name, "id": identity, "resume": "allow"}
        loggers.append(build(node, **extra))
    for logger in loggers[1:]:
        logger.log_hyperparams(plain(config))
    return loggers


def log_result(loggers: list[Logger], result: Result, plan: Plan) -> None:
    """The benchmark table, the answers that were learnt from, the diagnostics and the trained tables, to every logger
    that can hold them."""
    flat = {f"{row.name}/{measure}": score.value for row in result.rows for measure, score in measures(row)}
    flat |= {f"{row}/answers/{reason}": count for row, reason, count in answer_counts(result)}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_tables(logger, result)
            log_adapted(logger, plan)
        if flat:
            logger.log_metrics(flat, step=plan.config.training.steps)
        logger.save()


def measures(row: Row) -> list[tuple[str, Score]]:
    """Everything a row was scored on, by name."""
    return [*row.scores.items(), *((f"bits_per_byte/{language}", bits) for language, bits in row.bits_per_byte.items())]


def answer_counts(result: Result) -> list[tuple[str, str, int]]:
    """(row, reason, count) of the answers that were learnt from: how many were asked for, kept, and left out why."""
    return [
        (row, reason, count)
        for row, found in result.calibration.items()
        for reason, count in _counts(found.get("answers", {}))
    ]


def _counts(facts: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, int]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{within}{name}/")
        elif isinstance(value, int):
            yield within + name, value


def log_tables(logger: WandbLogger, result: Result) -> None:
    """The scores and the diagnostics of propagation as tables of Weights & Biases."""
    import wandb

    scores: list[list[Any]] = [
        [row.name, name, *astuple(score)] for row in result.rows for name, score in measures(row)
    ]
    diagnostics: list[list[Any]] = [
        [rule, table, name, value]
        for rule, tables in result.propagation.items()
        for table, facts in tables.items()
        for name, value in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    gains: list[list[Any]] = [
        [row, gain["task"], *(gain[key] for key in GAIN), *((gain["recovered"] or {}).get(key) for key in SHARE)]
        for row, found in result.calibration.items()
        for gain in found["gains"]
    ]
    if gains:
        columns = ["model", "task", *GAIN, *(f"share of the gap: {key}" for key in SHARE)]
        logger.experiment.log({"calibration": wandb.Table(columns=columns, data=gains)})  # type: ignore[arg-type]
    if answers := [list(row) for row in answer_counts(result)]:
        table = wandb.Table(columns=["model", "answers", "count"], data=answers)  # type: ignore[arg-type]
        logger.experiment.log({"answers": table})
    logger.experiment.log(
        {
            "benchmark": wandb.Table(["model", "measure", "value", "standard error", "n"], scores),  # type: ignore[arg-type]
            "propagation": wandb.Table(["rule", "table", "diagnostic", "value"], diagnostics),  # type: ignore[arg-type]
        }
    )


def log_adapted(logger: WandbLogger, plan: Plan) -> None:
    """The trained tables as an artifact of Weights & Biases."""
    import wandb

    stage = plan.stages["adapted"]
    with plan.store.open(stage.kind, stage.name, stage.inputs) as slot:
        if slot.ready:
            artifact = wandb.Artifact(stage.name, type="adapted-embeddings", metadata={"key": stage.key})
            artifact.add_dir(str(slot.path))
            logger.experiment.log_artifact(artifact)


def close(loggers: list[Logger]) -> None:
    """Leave nothing open: the next job of a sweep runs in this process."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
