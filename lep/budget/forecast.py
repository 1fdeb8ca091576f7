"""A run in numbers: sizes, batches and devices as its config gives them, and the size of its model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig

from lep import cost
from lep.checkpoints import find_config, shape_config
from lep.config import check_context, plain, planned_stages, trained_rows
from lep.corpus import CorpusFilters
from lep.cost import Batch, Memory, Shape, Trained
from lep.embeddings import TABLES_FILE, open_embeddings
from lep.processes import share_of_step
from lep.training.loss import positions_at_once

# Of text that nobody has read: characters of a new vocabulary's token, bytes of a character of Russian.
CHARACTERS_PER_TOKEN, BYTES_PER_CHARACTER = 3.5, 1.8
# Of activations, what the C library's heap keeps beside them on a CPU: 0.24 to 0.71 over eight shapes of models.
HEAP_SHARE = 0.5


@dataclass(frozen=True)
class Device:
    """Where a run takes place, as the group `hardware` names it.

    tflops: 10^12 operations a second of dense products. memory_gb: 10^9 bytes. efficiency: the share of the former that
    a run reaches.
    """

    name: str
    accelerator: Literal["cpu", "gpu"]
    tflops: float
    memory_gb: float
    efficiency: float

    def __post_init__(self) -> None:
        for key in ("tflops", "memory_gb", "efficiency"):
            if not getattr(self, key) > 0:
                raise ValueError(
                    f"hardware.{key}={getattr(self, key)} must be above 0. Give what a data sheet or run says"
                )
        if self.efficiency > 1:
            raise ValueError(f"hardware.efficiency={self.efficiency} is a share of hardware.tflops. Give at most 1")
        if self.accelerator not in ("cpu", "gpu"):
            raise ValueError(f"hardware.accelerator={self.accelerator} is unknown. Give cpu or gpu")

    @property
    def memory(self) -> int:
        return int(self.memory_gb * 1e9)

    @property
    def is_cpu(self) -> bool:
        return self.accelerator == "cpu"


@dataclass(frozen=True)
class Row:
    """What a stage takes.

    tokens: that it reads. memory: of the device, by kind. host: bytes of the machine's memory beside it. disk: bytes
    written. timed: whether the operations are done on the device, so that they tell the hours. batches: of training, on
    each device.
    """

    stage: str
    what: str
    tokens: int | None = None
    flops: int | None = None
    memory: Memory | None = None
    host: int | None = None
    disk: int | None = None
    timed: bool = False
    batches: int = 0


@dataclass
class Forecast:
    """A run in numbers; `notes` gathers what could not be told.

    source: where the shape was read. stored: bytes of a weight on disk. context: positions of the model, where its own
    config.json was there to tell.
    """

    config: DictConfig
    device: Device
    shape: Shape
    source: str
    stored: int
    context: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Bytes of a number in the body while tables are trained."""
        return width_of(self.config.training.body_dtype, self.device)

    @property
    def trained(self) -> Trained:
        """The new vocabulary, as large as its config lets it be, and the rows that move."""
        node, old = self.config.tokenizer, self.shape.vocabulary
        added = node.get("new_tokens") or 0
        rows = node.get("vocab_size") or old + added
        if self.config.adapted:
            rows = self._adapted_rows() or rows
        moving = added if trained_rows(self.config) == "new" else rows
        return Trained(rows, output=moving, input=0 if self.shape.tables == 1 else moving)

    def _adapted_rows(self) -> int | None:
        """Rows of the trained tables that are given; None, with a note, where they are not on this machine."""
        reference = str(self.config.adapted)
        directory = Path(reference).expanduser()
        if (directory / TABLES_FILE).is_file():
            return open_embeddings(directory).input.shape[0]
        if found := find_config(reference, None, key="adapted"):
            return found[0].vocab_size
        self.notes.append(f"adapted={reference} is not on this machine: its rows are counted as those of the tokenizer")
        return None

    @property
    def batch(self) -> Batch:
        """Of one device; the blocks of a step are the same on any number of them."""
        training = self.config.training
        accumulate = self.config.trainer.get("accumulate_grad_batches", 1)
        blocks, batches = share_of_step(training.batch_size, accumulate, self.devices)
        return self.make_batch(blocks, training.block_size, self.width, batches)

    def make_batch(self, blocks: int, block_size: int, width: int, accumulate: int) -> Batch:
        """A batch with the loss in chunks as the device has them."""
        chunk = positions_at_once(self.trained.vocabulary, "cpu" if self.device.is_cpu else "cuda")
        return Batch(blocks, block_size, width, chunk, accumulate)

    @property
    def devices(self) -> int:
        """That train alike; where the trainer takes what it finds, one."""
        trainer = self.config.trainer
        asked = plain(trainer.devices)
        each = len(asked) if isinstance(asked, list) else int(asked) if str(asked).isdecimal() else 1
        return each * trainer.get("num_nodes", 1)

    @property
    def shards(self) -> int:
        """Devices among which the frozen body lies."""
        strategy = str(plain(self.config.trainer.get("strategy", "auto"))).lower()
        return self.devices if "fsdp" in strategy or "shard" in strategy else 1

    @property
    def measured_tokens(self) -> float:
        """Tokens of the held-out text that models are measured on, of all languages."""
        languages = self.config.corpus.filters.get("languages") or CorpusFilters().languages
        return len(languages) * self.config.measured_characters / CHARACTERS_PER_TOKEN


def with_heap(memory: Memory, device: Device) -> Memory:
    """Memory with what a CPU's allocator holds back while tensors of many sizes come and go."""
    held = int(HEAP_SHARE * memory.activations) if device.is_cpu else 0
    return replace(memory, process=memory.process + held)


def width_of(body_dtype: str, device: Device) -> int:
    """Bytes of a frozen weight: `auto` is bfloat16 on an accelerator and float32 on a CPU."""
    return 2 if body_dtype == "bfloat16" or (body_dtype == "auto" and not device.is_cpu) else cost.WIDE


def read_forecast(config: DictConfig, device: Device) -> Forecast:
    """The size of the model from its own config.json where that is on this machine, else from `model.shape`."""
    model = config.model
    found = find_config(model.base, model.base_revision, key="model.base")
    if found is None and not model.get("shape"):
        raise ValueError(
            f"model.base={model.base} is not on this machine and model.shape is not set, so nothing tells its size. "
            "Give a directory, or the fields of its config.json: +model.shape={model_type: llama, hidden_size: ...}"
        )
    described, directory = found or (shape_config(plain(model.shape)), None)
    context = described.max_position_embeddings if directory else None
    if context is not None and "training" in planned_stages(config):
        check_context(config.training.block_size, context)
    return Forecast(
        config,
        device,
        Shape.of(described),
        source=str(Path(directory) / "config.json") if directory else f"model.shape of {model.name}",
        stored=getattr(torch, str(described.dtype or torch.float32).removeprefix("torch.")).itemsize,
        context=context,
    )


def gigabytes(nbytes: float | None) -> str:
    """As people read it: in 10^9 bytes, or in 10^6 where that is less than a tenth of one."""
    if nbytes is None:
        return "an unknown size"
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.1f} MB"
