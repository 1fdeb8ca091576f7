"""Packed blocks to train on and held-out windows to validate on, as Lightning data.

In: anything with a length whose items are equally long blocks of token ids; held-out texts per language.
Out: batches in an order that is a pure function of (seed, epoch), from any position in it, so that a killed run goes
on exactly where its checkpoint stood; windows that score each held-out token once.
"""

# B blocks of a batch, L block length, W windows

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lep.training.loss import IGNORED


class Blocks(Protocol):
    """Token blocks of one length: a memory map of packed text, or a plain list of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class BlockBatches:
    """Endless shuffled batches [B, L] of this rank; a pass over it goes to the end of the epoch.

    Each epoch is a fresh permutation by (seed, epoch) of which every rank takes its share of every step; what does
    not fill `steps` whole (a batch on every rank, as many times as gradients are accumulated) is left out of this
    epoch. `state_dict` is the position: how many blocks all ranks have given. After a whole step it means the same
    however the blocks of a step are shared out.
    """

    # What the blocks hold and the config group that sets their batch, for the message about too few of them.
    text, group = "corpus", "training"

    def __init__(
        self, blocks: Blocks, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ) -> None:
        self.blocks = blocks
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self._batches = self._per_epoch()
        self.blocks_per_step = batch_size * world_size * accumulate
        self._epoch = 0
        self._next = 0
        if not self._batches:
            raise ValueError(
                f"The {self.text} packs into {len(blocks)} blocks, fewer than the "
                f"{self.blocks_per_step} of one step ({self.group}.batch_size={batch_size} x "
                f"{world_size} devices x {accumulate} accumulated batches). Give more text, or a smaller batch or "
                "block."
            )

    def _per_epoch(self) -> int:
        """Batches of an epoch on every rank."""
        return len(self.blocks) // (self.batch_size * self.world_size * self.accumulate) * self.accumulate

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Any]:
        # Nothing is read before the first `next`: Lightning calls `iter` once before it restores a checkpoint.
        if self._next == len(self):
            self._epoch, self._next = self._epoch + 1, 0
        order = self.order()
        while self._next < len(self):
            first = (self._next * self.world_size + self.rank) * self.batch_size
            self._next += 1
            yield self.batch(order[first : first + self.batch_size])

    def order(self) -> np.ndarray:
        """The places of all blocks in the order of this epoch."""
        return _order(self.seed, self._epoch, len(self.blocks))

    def batch(self, indices: np.ndarray) -> Any:
        """The blocks at these places as the trainer gets them."""
        return stack_blocks(self.blocks, indices)

    def state_dict(self) -> dict[str, int]:
        """The position, and what must be the same for it to mean anything."""
        return {"epoch": self._epoch, "given": self._next * self.batch_size * self.world_size} | self._identity()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to the position of a checkpoint. ValueError if it was made with other data settings."""
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(
                    f"The checkpoint was made with {name}={state[name]}, this run has {name}={value}, so its place in "
                    "the data means nothing here. Resume with the old value, or start a new run."
                )
        self._epoch, self._next = state["epoch"], state["given"] // (self.batch_size * self.world_size)

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "num_blocks": len(self.blocks), "blocks_per_step": self.blocks_per_step}


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def stack_blocks(blocks: Blocks, indices: Sequence[int] | np.ndarray) -> Tensor:
    """The blocks at these places as one int64 tensor [B, L]."""
    return torch.from_numpy(np.stack([np.asarray(blocks[int(i)]) for i in indices]).astype(np.int64, copy=False))


class HeldOutWindow(NamedTuple):
    """One window of a held-out text: what the model reads, what it must guess, and how many bytes the guesses hold."""

    inputs: np.ndarray  # [<= L] int64
    targets: np.ndarray  # as long; -100 where another window scores the token
    num_bytes: int


@dataclass(frozen=True)
class HeldOutBatch:
    """Windows of one language, padded on the right to one length."""

    language: str
    inputs: Tensor  # [W, L] int64
    targets: Tensor  # [W, L] int64, -100 where nothing is scored
    num_bytes: Tensor  # [W] int64

    def to(self, device: torch.device, **_: Any) -> "HeldOutBatch":
        """The batch on another device (Lightning calls this)."""
        return HeldOutBatch(self.language, *(t.to(device) for t in (self.inputs, self.targets, self.num_bytes)))

    def share(self, rank: int, world_size: int) -> "HeldOutBatch":
        """The windows of one rank, or a window that scores nothing: every rank takes as many steps as the others."""
        rows = slice(rank, None, world_size)
        if rank < len(self.inputs):
            return HeldOutBatch(self.language, self.inputs[rows], self.targets[rows], self.num_bytes[rows])
        nothing = torch.full_like(self.targets[:1], IGNORED)
        return HeldOutBatch(self.language, self.inputs[:1], nothing, torch.zeros_like(self.num_bytes[:1]))


def held_out_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, length: int, overlap: int, start_id: int | None
) -> list[HeldOutWindow]:
    """Windows of at most `length` tokens over the texts, in which every token is scored exactly once.

    A window after the first of its text begins `overlap` tokens before what it scores. Each text is read after
    `start_id`, which itself is not scored: the token that comes before a document in training (bos, or eos where there
    is no bos). Without one the first token of a text is not scored, and its bytes do not count.
    """
    if not 0 <= overlap < length:
        raise ValueError(f"overlap={overlap} must be at least 0 and below the window length {length}.")
    texts = [text for text in texts if text]
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    windows: list[HeldOutWindow] = []
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ends = [end for _, end in offsets]
        ids, ends = (ids, ends[1:]) if start_id is None else ([start_id, *ids], ends)
        first = 0 if start_id is not None else offsets[0][1]
        windows += _windows(text, np.array(ids, dtype=np.int64), [first, *ends], length, overlap)
    return windows


def _windows(text: str, ids: np.ndarray, ends: list[int], length: int, overlap: int) -> Iterator[HeldOutWindow]:
    """Windows of one text; `ends[i]` is how many characters of it `ids[: i + 1]` stand for."""
    last = len(ids) - 1
    done = 0  # ids[1 : done + 1] are scored
    while done < last:
        start = max(0, done - overlap)
        stop = min(start + length, last)
        targets = ids[start + 1 : stop + 1].copy()
        targets[: done - start] = IGNORED
        # A token may end inside a character; the next window then counts that character's bytes.
        to = len(text) if stop == last else ends[stop]
        yield HeldOutWindow(ids[start:stop], targets, len(text[ends[done] : to].encode()))
        done = stop


class HeldOutBatches:
    """The validation batches of one rank, in one order, language after language."""

    def __init__(self, batches: Sequence[HeldOutBatch], *, rank: int, world_size: int) -> None:
        self._batches = [batch.share(rank, world_size) for batch in batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[HeldOutBatch]:
        return iter(self._batches)


def held_out_batches(language: str, windows: Sequence[HeldOutWindow], *, batch_size: int) -> list[HeldOutBatch]:
    """Batches of windows of like length, so that little of a batch is padding."""
    ordered = sorted(windows, key=lambda window: len(window.inputs))
    return [_pad(language, ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]


def _pad(language: str, windows: Sequence[HeldOutWindow]) -> HeldOutBatch:
    inputs = np.zeros((len(windows), max(len(window.inputs) for window in windows)), dtype=np.int64)
    targets = np.full_like(inputs, IGNORED)
    for row, window in enumerate(windows):
        inputs[row, : len(window.inputs)] = window.inputs
        targets[row, : len(window.inputs)] = window.targets
    num_bytes = torch.tensor([window.num_bytes for window in windows])
    return HeldOutBatch(language, torch.from_numpy(inputs), torch.from_numpy(targets), num_bytes)


class PackedData(pl.LightningDataModule):
    """Packed blocks to train on, and held-out windows per language to validate on.

    `batch_size` is blocks on one device at once; the trainer accumulates. Validation batches hold as many windows.
    Ranks share the windows of a validation batch.
    """

    batches: type[BlockBatches] = BlockBatches

    def __init__(
        self,
        blocks: Blocks,
        *,
        batch_size: int,
        seed: int,
        held_out: Mapping[str, Sequence[HeldOutWindow]] | None = None,
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.batch_size = batch_size
        self.seed = seed
        self.held_out = [
            batch
            for language, windows in (held_out or {}).items()
            for batch in held_out_batches(language, windows, batch_size=batch_size)
        ]
        self._position: dict[str, int] | None = None
        self._batches: BlockBatches | None = None

    def setup(self, stage: str) -> None:
        if not self.held_out and self.trainer is not None:
            self.trainer.limit_val_batches = 0  # or Lightning warns about a loader that is empty on purpose

    def train_dataloader(self) -> BlockBatches:
        trainer = self.trainer
        assert trainer is not None
        self._batches = self.batches(
            self.blocks,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate=trainer.accumulate_grad_batches,
        )
        if self._position is not None:
            self._batches.load_state_dict(self._position)
        return self._batches

    def val_dataloader(self) -> HeldOutBatches:
        assert self.trainer is not None
        return HeldOutBatches(self.held_out, rank=self.trainer.global_rank, world_size=self.trainer.world_size)

    def state_dict(self) -> dict[str, int]:
        return self._batches.state_dict() if self._batches is not None else {}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        # Lightning may build the loader before or after this, depending on whether the number of steps is known
        # without it; its own restoring of loaders misses the first case.
        self._position = dict(state_dict)
        if self._batches is not None:
            self._batches.load_state_dict(self._position)
