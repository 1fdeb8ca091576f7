"""A progress bar for embedding training: step, loss, bits per byte, tokens a second."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Metric, and how it reads on the bar.
SHOWN = {
    "train/loss": "loss {:.3f}",
    "val/bits_per_byte": "{:.3f} bits/byte",
    "train/tokens_per_second": "{:,.0f} tokens/s",
}


class TrainingProgress(ProgressBar):
    """One line on the terminal that follows optimizer steps and shows the module's latest metrics."""

    def __init__(self, description: str = "training") -> None:
        super().__init__()
        self.description = description
        self._bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not (self._enabled and trainer.is_global_zero):
            return
        metrics = TextColumn("{task.fields[metrics]}")
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), metrics, TimeRemainingColumn()
        )
        total = int(trainer.estimated_stepping_batches)
        self._task = self._bar.add_task(self.description, total=total, completed=trainer.global_step, metrics="")
        self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, metrics=shown_metrics(pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def shown_metrics(module: pl.LightningModule) -> str:
    """The module's latest metrics in a few words."""
    latest = getattr(module, "latest", {})
    return "  ".join(form.format(latest[name]) for name, form in SHOWN.items() if name in latest)
