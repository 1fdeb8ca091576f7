"""One checkpoint of a training run, `last.ckpt`, that is always whole: written beside, then put in place."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from lep.durable import replacing


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` into a directory every so many optimizer steps, and at the end.

    It is saved after a whole optimizer step only (gradients still being accumulated are in no checkpoint), and where a
    validation follows the step, after that: resuming would skip it. `path` is None until the first one is there, so
    `trainer.fit(module, data, ckpt_path=checkpoint.path)` starts or resumes.
    """

    def __init__(self, directory: Path, *, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1.")
        self.file = Path(directory) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved_step = 0
        self._due = False

    @property
    def path(self) -> str | None:
        """The checkpoint to resume from, if there is one."""
        return str(self.file) if self.file.exists() else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step != self._saved_step and step % self.every_n_steps == 0:
            self._due = validation_follows(trainer)
            if not self._due:
                self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._due:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_step, self._due = trainer.global_step, False
        trainer.save_checkpoint(self.file)


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether the trainer validates after the batch that just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a sibling and renames it.

    Lightning writes to the system's temporary directory and moves the file, which copies it where that lies on another
    disk: a kill during the copy leaves half a checkpoint under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(Path(path)) as staging:
            torch.save(checkpoint, staging)
