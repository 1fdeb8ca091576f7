"""What two processes of torchrun do for test_parallel.py: train whole, train until killed, go on; each by ddp and fsdp.

torchrun --nproc-per-node=2 parallel_run.py FOLDER
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pico_models
import pytorch_lightning as pl
import torch
from pico import NEW, OLD, pico_blocks, pico_fit, pico_module
from pytorch_lightning.strategies import DDPStrategy
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from lep.embeddings import embeddings_of
from lep.processes import count, is_leader, share_of_step, word_of_leader
from lep.training import Disband, EmbeddingTraining, PackedData, ShardedBody
from lep.training.data import HeldOutWindow
from lep.training.module import BodyDtype

STEPS, KILLED_AT_STEP, BATCH, ACCUMULATE, CLIP = 20, 11, 4, 2, 0.05
ARCHITECTURES: list[tuple[str, BodyDtype]] = [(family, "float32") for family in pico_models.FAMILIES]
ARCHITECTURES.append(("llama", "bfloat16"))
STRATEGIES = {"ddp": DDPStrategy, "fsdp": ShardedBody}


class Killed(Exception):
    pass


class KillAtStep(pl.Callback):
    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == KILLED_AT_STEP:
            raise Killed


class EveryClipBites(pl.Callback):
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        assert gradients and torch.nn.utils.get_total_norm(gradients) > 2 * CLIP


def fit(
    name: str | None,
    *,
    module: EmbeddingTraining | None = None,
    steps: int = STEPS,
    callbacks: Sequence[pl.Callback] = (),
    **settings: Any,
) -> EmbeddingTraining:
    """Twenty steps of four times two blocks, in this process or shared with the others."""
    batch, accumulate = share_of_step(BATCH, ACCUMULATE, count())
    windows = [HeldOutWindow(block[:-1], block[1:], 9) for block in pico_blocks(7)]
    data = PackedData(pico_blocks(70), batch_size=batch, seed=3, held_out={"ru": windows})
    module = module or pico_module(rows="new", first_new_row=OLD, frozen_rows=[35])
    several = {"strategy": STRATEGIES[name](), "devices": count()} if name else {}
    common = {"accumulate_grad_batches": accumulate, "val_check_interval": 5 * accumulate, "every": 3}
    common |= {"check_val_every_n_epoch": None, "log_every_n_steps": 2, "gradient_clip_val": CLIP, "max_epochs": -1}
    pico_fit(module, steps, data=data, callbacks=[EveryClipBites(), *callbacks], **common, **several, **settings)
    return module


def loss_of(name: str | None, family: str, body_dtype: BodyDtype) -> float:
    """The last logged loss of an architecture whose tables are tied."""
    model = pico_models.pico_model(family, tied=True, vocab_size=NEW)
    tables = embeddings_of(model).map(lambda table: table.detach().clone())
    module = EmbeddingTraining(model, tables, learning_rate=0.01, warmup_steps=2, body_dtype=body_dtype)
    module.train()  # Lightning warns of modules in eval mode; the module itself puts the body there
    return fit(name, module=module, steps=4).history[-1]["train/loss"]


def fit_until_killed(name: str | None, checkpoints: Path) -> None:
    try:
        fit(name, checkpoints=checkpoints, callbacks=[KillAtStep()])
    except Killed:
        return
    raise AssertionError("was not killed")


def leave(folder: Path, module: EmbeddingTraining) -> None:
    """What the test looks at: curve and tables, by one process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curve.json").write_text(json.dumps(module.history))
    tables = module.embeddings()
    save_file({"input": tables.input, "output": tables.output}, folder / "tables.safetensors")


def weights_here(module: EmbeddingTraining) -> dict[str, int]:
    """How many weights of the body and of the tables this process holds."""

    def number(part: torch.nn.Module) -> int:
        return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in part.parameters())

    return {"body": number(module.body), "tables": number(module.input) + number(module.output)}


class Busy(pl.Callback):
    """The leader is busy until the other process has ended altogether."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert not torch.distributed.is_initialized()
        if trainer.is_global_zero:
            other = int((self.folder / "pid of 1").read_text())
            for _ in range(600):
                if not Path(f"/proc/{other}").exists():
                    (self.folder / "others left").touch()
                    return
                time.sleep(0.1)


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    (folder / f"pid of {rank}").write_text(str(os.getpid()))
    (folder / f"heard by {rank}").write_text(word_of_leader("train" if is_leader() else "nothing"))
    losses = [loss_of("fsdp", *architecture) for architecture in ARCHITECTURES]
    for name in STRATEGIES:
        module = fit(name)
        (folder / f"{name} {rank}.json").write_text(json.dumps(weights_here(module)))
        if is_leader():
            leave(folder / f"{name} whole", module)
        fit_until_killed(name, folder / f"{name} killed")
        torch.distributed.barrier()
        if is_leader():  # for one process to go on from
            (folder / f"{name} kept").mkdir()
            (folder / f"{name} kept" / "last.ckpt").write_bytes((folder / f"{name} killed" / "last.ckpt").read_bytes())
        for killed in (f"{name} killed", f"one killed for {name}"):
            torch.distributed.barrier()
            module = fit(name, checkpoints=folder / killed, resume=True)
            if is_leader():
                leave(folder / f"{killed}, then {name}", module)
    if is_leader():
        (folder / "architectures.json").write_text(json.dumps(losses))
    fit("ddp", callbacks=[Disband(), Busy(folder)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
