"""Packed conversations of random tokens, settings and a fit of a few steps: shared by the tests of tuning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pico_models import pico_model
from transformers import PreTrainedModel

from lep.calibration.packing import InstructionBlocks, pack
from lep.calibration.rendering import Rendered
from lep.calibration.tuning import InstructionTuning, Tuning, TuningData
from lep.training import LastCheckpoint

VOCABULARY, LENGTH = 60, 16


def blocks(count: int = 24) -> InstructionBlocks:
    """Conversations of unequal lengths and shares of answers, two or three a block."""
    rng = np.random.default_rng(0)
    rendered = []
    for _ in range(count):
        length = int(rng.integers(4, 9))
        ids = ((rng.integers(3, VOCABULARY) + 7 * np.arange(length)) % (VOCABULARY - 3) + 3).astype(np.int32)
        rendered.append(Rendered(ids, np.arange(length) >= rng.integers(1, length)))
    return pack(rendered, LENGTH, 0)


def settings(**changes: Any) -> Tuning:
    defaults: dict[str, Any] = {
        "rank": 4,
        "alpha": 8.0,
        "layers": "all",
        "modules": ["q_proj", "down_proj"],
        "tables": ["input", "output"],
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "batch_size": 2,
        "block_size": LENGTH,
        "epochs": 2,
        "log_every_steps": 1,
    }
    return Tuning(**defaults | changes)


def module(tuning: Tuning, model: PreTrainedModel | None = None, *, steps: int = 8) -> InstructionTuning:
    model = pico_model("llama", tied=False) if model is None else model
    torch.manual_seed(0)
    return InstructionTuning(model.train(), tuning, steps=steps)  # Lightning warns of modules that come in eval mode


def fit(
    tuned: InstructionTuning,
    steps: int = 8,
    *,
    checkpoints: Path | None = None,
    callbacks: tuple[pl.Callback, ...] = (),
    resume: bool = False,
    data: InstructionBlocks | None = None,
    **trainer: Any,
) -> pl.Trainer:
    """As the run makes its trainer."""
    own = [LastCheckpoint(checkpoints, every_n_steps=3)] if checkpoints else []
    fitted = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=tuned.tuning.accumulate,
        gradient_clip_val=tuned.tuning.gradient_clip,
        log_every_n_steps=1,
        enable_checkpointing=checkpoints is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[*own, *callbacks],
        **trainer,
    )
    packed = TuningData(blocks() if data is None else data, batch_size=tuned.tuning.blocks_at_once, seed=3)
    path = str(checkpoints / "last.ckpt") if checkpoints and resume else None
    fitted.fit(tuned, packed, ckpt_path=path)
    return fitted
