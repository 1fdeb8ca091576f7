"""Where curves and tables go besides the run's own files: Lightning's loggers, made from config, all fed alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from lep.config import build, plain
from lep.results import Result
from lep.stages import Plan


def make_loggers(config: DictConfig, run_dir: Path) -> list[Logger]:
    """The loggers of the config, in the run's folder; `metrics.csv` is always among them."""
    os.environ.setdefault("WANDB_MODE", "offline")
    nodes = {name: node for name, node in config.logger.items() if name != "csv"}
    loggers: list[Logger] = [CSVLogger(save_dir=str(run_dir), name="", version="")]
    for name, node in nodes.items():
        extra: dict[str, Any] = {"save_dir": str(run_dir)}
        if str(node._target_).endswith("WandbLogger"):
            # The run's folder is its name, so a killed run goes on in the same Weights & Biases run.
            extra |= {"name": run_dir.name, "id": f"{config.study}-{run_dir.name}".replace("=", "-").replace(",", "-")[:120], "resume": "allow"}
        loggers.append(build(node, **extra))
    for logger in loggers[1:]:
        logger.log_hyperparams(plain(config))
    return loggers


def log_result(loggers: list[Logger], result: Result, plan: Plan) -> None:
    """The benchmark table, the diagnostics and the trained tables, to every logger that can hold them."""
    flat = {
        f"{row.name}/{key}": score.value for row in result.rows for key, score in {**row.scores, **{f"bits_per_byte/{language}": bits for language, bits in row.bits_per_byte.items()}}.items()
    }
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_to_wandb(logger, result, plan)
        if flat:
            logger.log_metrics(flat)
        logger.save()


def log_to_wandb(logger: WandbLogger, result: Result, plan: Plan) -> None:
    """Table of scores, diagnostics of propagation, and the trained tables as an artifact."""
    import wandb

    columns = ["model", "measure", "value", "standard error", "n"]
    measures = [
        [row.name, key, score.value, score.stderr, score.n]
        for row in result.rows
        for key, score in {**row.scores, **{f"bits_per_byte/{language}": bits for language, bits in row.bits_per_byte.items()}}.items()
    ]
    run = logger.experiment
    run.log({"benchmark": wandb.Table(columns=columns, data=measures)})
    diagnostics = [
        [rule, table, name, value]
        for rule, tables in result.propagation.items()
        for table, facts in tables.items()
        for name, value in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    run.log({"propagation": wandb.Table(columns=["rule", "table", "diagnostic", "value"], data=diagnostics)})
    stage = plan.stages["adapted"]
    if plan.cached("adapted"):
        artifact = wandb.Artifact(stage.name, type="adapted embeddings", metadata={"key": stage.key})
        with plan.store.open(stage.kind, stage.name, stage.inputs) as slot:
            artifact.add_dir(str(slot.path))
        run.log_artifact(artifact)


def close(loggers: list[Logger]) -> None:
    """Leave nothing open: the next job of a sweep runs in this process."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
