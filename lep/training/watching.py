"""Benchmarks while training goes on: a score against the step, as in the paper's Figure 2."""

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl

from lep.embeddings import Embeddings
from lep.results import IN_TRAINING
from lep.training.module import EmbeddingTraining


class BenchmarkWhileTraining(pl.Callback):
    """Every so many optimizer steps, hands the tables as they stand to `judge` and logs the scores it gives.

    judge: called on every process, which may share the work; it must give each the same scores. They go to all loggers
    and into the module's history, so that a run that goes on after a kill still has them.
    """

    def __init__(self, every_steps: int, judge: Callable[[Embeddings], Mapping[str, float]]) -> None:
        if every_steps < 1:
            raise ValueError(f"during_training.every_steps={every_steps} is below 1. Give a number of steps, or null")
        self.every_steps = every_steps
        self._judge = judge
        self._judged_at = 0

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._judged_at = trainer.global_step  # of a run that goes on: judged before

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        # Batches whose gradients are only accumulated end at the same step.
        if step % self.every_steps or step == self._judged_at or step == 0:
            return
        assert isinstance(pl_module, EmbeddingTraining)
        self._judged_at = step
        scores = {f"{IN_TRAINING}{name}": value for name, value in self._judge(pl_module.embeddings()).items()}
        pl_module.history.append({"step": step, **scores})
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(scores, step=step)


class EndTraining(Exception):
    """Raised by what watches training when enough was seen: the run ends, and did not fail."""


class ReportHeldOut(pl.Callback):
    """Hands a measure on held-out text to `report` after every validation, with the step; it may raise EndTraining.

    measure: such as "val/bits_per_byte" or "val/bits_per_byte/ru".
    """

    def __init__(self, measure: str, report: Callable[[int, float], None]) -> None:
        self.measure = measure
        self._report = report

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, EmbeddingTraining)
        self._report(trainer.global_step, measured(self.measure, pl_module.latest))


def measured(measure: str, latest: Mapping[str, float]) -> float:
    """The latest value of what a search goes by. ValueError names the measures on held-out text that there are."""
    if measure not in latest:
        names = [name for name in latest if name.startswith("val/")]
        raise ValueError(f"search.measure={measure} is not measured. Give one of {', '.join(names)}")
    return latest[measure]
