"""Training by several processes at once: who holds what, and how they part.

In: a module of embedding training. What is trained, two tables, is whole in every process and its gradients are
averaged (Lightning's data-parallel strategy). What is frozen may lie in shards, one in each process, which are put
together for a layer while it computes (FSDP2, Zhao et al. 2023, arXiv 2304.11277, as in torch.distributed.fsdp).
"""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel


class ShardedBody(DDPStrategy):
    """Data parallelism for the trained tables, with the module's frozen `body` in shards.

    As nothing in the body has a gradient, it needs no optimizer and no place in a checkpoint: checkpoints are those of
    one process. Settings are those of `DDPStrategy`.
    """

    def setup(self, trainer: pl.Trainer) -> None:
        module: Any = self.lightning_module
        if not isinstance(module.body, FSDPModule):  # validation before training has done it already
            _keep_out_of_ddp(module, module.body)
            shard_(module.body, self.root_device.type, self.world_size)
        super().setup(trainer)


def shard_(body: nn.Module, device_type: str, processes: int) -> None:
    """Spread the weights of a body over all processes, each of its layers by itself. All of them must call."""
    mesh = init_device_mesh(device_type, (processes,))
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    for layers in reversed(lists):  # those inside others first
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(body, mesh=mesh)


def _keep_out_of_ddp(module: nn.Module, body: nn.Module) -> None:
    """Have DDP neither compare nor send around what is in shards."""
    inside = {id(tensor) for tensor in (*body.parameters(), *body.buffers())}
    names = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if id(tensor) in inside]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


class Disband(pl.Callback):
    """Ends the group of processes with training: what the leader does next, for hours perhaps, nobody waits for."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
