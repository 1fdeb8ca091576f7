"""A model of a few thousand weights, blocks of random tokens, and a fit of a few steps: shared by these tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lep.embeddings import Embeddings
from lep.training import EmbeddingTraining, LastCheckpoint, PackedData

OLD, NEW, WIDTH = 30, 41, 16


def pico_model(*, tied: bool = False, **config: Any) -> LlamaForCausalLM:
    """Llama with a vocabulary of OLD tokens."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": OLD,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes | config))


def pico_tables(*, tied: bool = False) -> Embeddings:
    """Tables for a vocabulary of NEW tokens."""
    generator = torch.Generator().manual_seed(1)
    tables = [torch.randn(NEW, WIDTH, generator=generator) for _ in range(2)]
    return Embeddings(tables[0], None if tied else tables[1])


def pico_module(*, tied: bool = False, **settings: Any) -> EmbeddingTraining:
    settings = {"learning_rate": 0.01, "warmup_steps": 2} | settings
    return EmbeddingTraining(pico_model(tied=tied), pico_tables(tied=tied), **settings)


def pico_blocks(count: int = 44) -> np.ndarray:
    """Blocks in which a token follows from the one before, so that there is something to learn."""
    starts = np.random.default_rng(0).integers(0, NEW, (count, 1))
    return (starts + 7 * np.arange(9)) % NEW


def pico_trainer(max_steps: int, *, checkpoints: Path | None = None, every: int = 3, **settings: Any) -> pl.Trainer:
    callbacks = settings.pop("callbacks", [])
    if checkpoints is not None:
        callbacks = [*callbacks, LastCheckpoint(checkpoints, every_n_steps=every)]
    defaults = {"log_every_n_steps": 2, "gradient_clip_val": 1.0, "enable_progress_bar": False, "logger": False}
    return pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=callbacks,
        enable_checkpointing=checkpoints is not None,
        enable_model_summary=False,
        **defaults | settings,
    )


def pico_fit(
    module: EmbeddingTraining,
    max_steps: int = 12,
    *,
    data: PackedData | None = None,
    resume: bool = False,
    **trainer: Any,
) -> pl.Trainer:
    """Train for some steps, from the last checkpoint if asked to."""
    fitted = pico_trainer(max_steps, **trainer)
    path = trainer["checkpoints"] / "last.ckpt" if resume else None
    fitted.fit(module, data or PackedData(pico_blocks(), batch_size=4, seed=3), ckpt_path=path)
    return fitted
