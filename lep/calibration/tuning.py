"""Tuning an instruct model on conversations: LoRA inside the body, tables whole, everything else frozen.

In: a model in memory and packed conversations. Out: what moved (`Tuned`): low-rank factors by module, and the tables
that were trained. The module is that of embedding training with LoRA put into its body, so schedule, precision, loss
curve, checkpoints and resuming are the same. Sources: paper, self-calibration and continued instruction tuning.
"""

# B batch, L block, V vocabulary, D hidden, R rank

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lep.calibration.adapter import LowRank, Tuned
from lep.calibration.packing import InstructionBatches, InstructionBlocks, InstructionData, attention_masks
from lep.embeddings import embeddings_of
from lep.training.loss import IGNORED, chunked_cross_entropy
from lep.training.module import BodyDtype, EmbeddingTraining

Table = Literal["input", "output"]
ADAPTER = "default"


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned.

    rank, alpha: of LoRA, whose product counts alpha / rank. layers: all, or first_and_last. modules: names of the
    linear maps in a layer that get LoRA. tables: those trained whole; of a tied model the one, if either is named.
    batch_size: blocks of an optimizer step, blocks_at_once: of them on the device. block_size: tokens, at most the
    model's context. warmup_share: of the steps. The rest as in embedding training.
    """

    rank: int
    alpha: float
    layers: Literal["all", "first_and_last"]
    modules: Sequence[str]
    tables: Sequence[Table]
    learning_rate: float
    weight_decay: float
    batch_size: int
    block_size: int
    epochs: int = 1
    blocks_at_once: int = 1
    warmup_share: float = 0.1
    final_learning_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0
    body_dtype: BodyDtype = "auto"
    log_every_steps: int = 10
    checkpoint_every_steps: int = 100

    def __post_init__(self) -> None:
        _check(self.rank >= 1, "rank", self.rank, "1 or more")
        _check(self.layers in ("all", "first_and_last"), "layers", self.layers, "all or first_and_last")
        _check(len(self.modules) > 0, "modules", self.modules, "names of linear maps, such as [q_proj, v_proj]")
        _check({*self.tables} <= {"input", "output"}, "tables", self.tables, "some of input, output")
        _check(0 <= self.warmup_share < 1, "warmup_share", self.warmup_share, "at least 0 and below 1")
        _check(self.epochs >= 0, "epochs", self.epochs, "0 or more")
        _check(self.learning_rate >= 0, "learning_rate", self.learning_rate, "0 or more")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _check(self.block_size >= 2, "block_size", self.block_size, "2 tokens or more")
        whole = self.blocks_at_once >= 1 and self.batch_size >= 1 and self.batch_size % self.blocks_at_once == 0
        _check(whole, "batch_size", self.batch_size, f"a multiple of blocks_at_once={self.blocks_at_once}")

    @property
    def accumulate(self) -> int:
        """Batches on the device that make one step."""
        return self.batch_size // self.blocks_at_once

    def steps(self, num_blocks: int) -> int:
        """Optimizer steps in all; the last one of an epoch learns the blocks that are left, however few."""
        return self.epochs * -(-num_blocks // self.batch_size)


def _check(holds: bool, key: str, value: object, limit: str) -> None:
    if not holds:
        raise ValueError(f"tuning.{key}={value} is out of range. Give {limit}")


class InstructionTuning(EmbeddingTraining):
    """Trains LoRA in the body of a model, and the tables that are named; the model belongs to this module from then on.

    steps: optimizer steps in all, from which the warm-up follows. LoRA begins as nothing (its second factor is zero),
    its first factor is drawn from torch's generator.
    """

    def __init__(self, model: PreTrainedModel, tuning: Tuning, *, steps: int) -> None:
        super().__init__(
            model,
            embeddings_of(model),
            learning_rate=tuning.learning_rate,
            warmup_steps=int(tuning.warmup_share * steps),
            weight_decay=tuning.weight_decay,
            betas=tuning.betas,
            final_learning_rate=tuning.final_learning_rate,
            body_dtype=tuning.body_dtype,
        )
        self.tuning = tuning
        tied = self.output is self.input
        self.input.trained.requires_grad_("input" in tuning.tables or (tied and "output" in tuning.tables))
        if not tied:
            self.output.trained.requires_grad_("output" in tuning.tables)
        put_lora_into_(self.body, tuning)

    def loss(
        self, inputs: Tensor, targets: Tensor, *, reduction: Literal["mean", "sum"] = "mean", **reading: Any
    ) -> Tensor:
        """As in embedding training, but no logits are made where nothing is learnt: most of a chat is asked."""
        learnt = targets != IGNORED
        return chunked_cross_entropy(
            self.hidden(inputs, **reading)[learnt],
            self.output.parts(),
            targets=targets[learnt],
            chunk_size=self.chunk_size,
            reduction=reduction,
        )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Summed over the batch and divided by the answer tokens of the whole step: every one of them counts alike.

        So a step of fewer blocks, the last one of an epoch, is a mean over its answers like any other.
        """
        targets = batch["labels"][:, 1:]
        summed = self.loss(
            batch["input_ids"][:, :-1],
            targets,
            reduction="sum",
            position_ids=batch["position_ids"][:, :-1],
            attention_mask=attention_masks(self.body.config, batch["documents"][:, :-1], self.body.dtype),
        )
        self._count(summed, targets.numel(), losses=batch["answer_tokens"])
        # Lightning divides by the number of accumulated batches, also where fewer are left.
        return summed * (self.tuning.accumulate / max(1, batch["answer_tokens_of_step"]))

    def tuned(self) -> Tuned:
        """What moved: float32 copies on the CPU."""
        found = {}
        for name, module in self.body.named_modules():
            if hasattr(module, "lora_A"):
                first, second = (getattr(module, side)[ADAPTER].weight for side in ("lora_A", "lora_B"))
                found[name] = LowRank(*(factor.detach().float().cpu().clone() for factor in (first, second)))
        table = self.input.whole() if self.input.trained.requires_grad else None
        tied = self.output is self.input
        head = self.output.whole() if not tied and self.output.trained.requires_grad else None
        return Tuned(found, self.tuning.rank, self.tuning.alpha, table, head, tied=tied)


def put_lora_into_(body: PreTrainedModel, tuning: Tuning) -> None:
    """LoRA on the named maps of the chosen layers, in float32 and alone in wanting gradients among the body's weights.

    ValueError where peft is missing, or a name is no linear map of the layers.
    """
    peft = load_peft()
    maps = [name for name, module in body.named_modules() if isinstance(module, torch.nn.Linear)]
    check_modules(tuning, maps)
    last = int(body.config.get_text_config().num_hidden_layers) - 1
    layers = ("layers.",) if tuning.layers == "all" else ("layers.0.", f"layers.{last}.")
    chosen = [name for name in maps if name.startswith(layers) and _last(name) in tuning.modules]
    config = peft.LoraConfig(r=tuning.rank, lora_alpha=tuning.alpha, target_modules=chosen)
    peft.inject_adapter_in_model(config, body, adapter_name=ADAPTER)
    for parameter in body.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_modules(tuning: Tuning, maps: Iterable[str]) -> None:
    """ValueError if a name that gets LoRA is none of the model's linear maps, which are given by their full names."""
    own = sorted({_last(name) for name in maps})
    unknown = [name for name in tuning.modules if name not in own]
    if unknown:
        raise ValueError(f"tuning.modules={unknown[0]} is no linear map of the model, which has {', '.join(own)}")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def load_peft() -> Any:
    """The library of adapters. ValueError with the remedy where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ValueError("calibration needs peft, which is not installed: pip install 'lep[calibration]'") from error
    return peft


class StepBatches(InstructionBatches):
    """Batches of packed conversations on one device, with the answer tokens in each and in its whole step.

    An epoch has every block once: its last batch, and its last step, may be smaller.
    """

    def __init__(self, blocks: InstructionBlocks, **settings: Any) -> None:
        super().__init__(blocks, **settings)
        assert self.world_size == 1, "ranks would have unequal batches"
        self._answer_tokens = np.array([int((labels != IGNORED).sum()) for _, labels, *_ in blocks])

    def _per_epoch(self) -> int:
        return -(-len(self.blocks) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in super().__iter__():
            place = self._next - 1
            step = place - place % self.accumulate
            yield batch | {
                "answer_tokens": self._answers(place, place + 1),
                "answer_tokens_of_step": self._answers(step, step + self.accumulate),
            }

    def _answers(self, first: int, last: int) -> int:
        """Answer tokens of the batches from the first on, before the last."""
        return int(self._answer_tokens[self.order()[first * self.batch_size : last * self.batch_size]].sum())


class TuningData(InstructionData):
    """Packed conversations to tune on."""

    batches = StepBatches
