"""Rendered conversations in blocks of one length, so that no conversation in a block sees another.

In: token ids with answer masks. Out: blocks of inputs, labels, positions and documents; attention masks for models of
transformers; batches in an order that is a pure function of (seed, epoch).
The law: the logits of a conversation in a block are those of the conversation read alone.
"""

# B rows of a batch, L block length, K conversations

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from lep.calibration.rendering import Rendered
from lep.training.data import BlockBatches, PackedData, stack_blocks
from lep.training.loss import IGNORED

ROWS = ("input_ids", "labels", "position_ids", "documents")
# The document of what fills a block up.
PADDING = -1


@dataclass(frozen=True)
class InstructionBlocks:
    """Blocks as a sequence: `blocks[i]` is int64 [4, L], a row for each of `ROWS`.

    labels: the ids themselves where the assistant speaks, -100 elsewhere; not shifted, and never set on the first
    token of a conversation, so that shifting them crosses no border. position_ids begin at 0 in every conversation.
    documents: the number of the conversation within the block; -1 fills up.
    """

    rendered: Sequence[Rendered]
    layout: Sequence[Sequence[int]]  # the conversations of each block, in their order
    block_size: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, index: int) -> np.ndarray:
        block = np.empty((len(ROWS), self.block_size), dtype=np.int64)
        inputs, labels, positions, documents = block
        inputs[:], labels[:], documents[:], place = self.pad_id, IGNORED, PADDING, 0
        for document, number in enumerate(self.layout[index]):
            one = self.rendered[number]
            part = slice(place, place + len(one))
            inputs[part], documents[part], positions[part] = one.ids, document, np.arange(len(one))
            labels[part] = np.where(one.answered, one.ids, IGNORED)
            labels[place] = IGNORED
            place += len(one)
        positions[place:] = np.arange(self.block_size - place)
        return block

    @property
    def filled(self) -> float:
        """The share of the blocks that is not padding."""
        return sum(map(len, self.rendered)) / (len(self) * self.block_size)


def pack(rendered: Sequence[Rendered], block_size: int, pad_id: int) -> InstructionBlocks:
    """Conversations in as few blocks as best-fit decreasing finds; the result depends on their lengths alone.

    ValueError if one is longer than a block: `render(max_tokens=block_size)` makes sure that none is.
    """
    lengths = [len(one) for one in rendered]
    longest = max(lengths, default=0)
    if longest > block_size:
        raise ValueError(
            f"a conversation of {longest} tokens is longer than a block of {block_size}. Cut conversations at "
            "max_tokens=block_size, or make blocks longer."
        )
    return InstructionBlocks(rendered, _best_fit_decreasing(lengths, block_size), block_size, pad_id)


def _best_fit_decreasing(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Bins of indices: the longest first, each into the fullest bin that still has room for it."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], -1))
        if place < len(room):
            free, number = room.pop(place)
        else:
            free, number = size, len(bins)
            bins.append([])
        bins[number].append(index)
        insort(room, (free - lengths[index], number))
    return bins


class InstructionBatches(BlockBatches):
    """Batches of `InstructionBlocks`, each a dict of `ROWS`, int64 [B, L]."""

    text, group = "instruction data", "calibration"

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        return dict(zip(ROWS, stack_blocks(self.blocks, indices).unbind(1), strict=True))


class InstructionData(PackedData):
    """Lightning data of `InstructionBlocks` with the same promises as in training: order by (seed, epoch), resumed."""

    batches = InstructionBatches


def block_mask(documents: Tensor, *, sliding_window: int | None = None) -> Tensor:
    """Who sees whom: bool [B, 1, L, L], true where the row's token may look at the column's.

    documents: [B, L]. A token sees itself and what stands before it in its own document, under a sliding window the
    last `sliding_window` of these alone. What fills up is a document too, so that every row sees something.
    """
    same = documents[:, :, None] == documents[:, None, :]
    place = torch.arange(documents.shape[1], device=documents.device)
    distance = place[:, None] - place[None, :]
    seen = same & (distance >= 0)
    if sliding_window is not None:
        seen &= distance < sliding_window
    return seen[:, None]


def attention_masks(config: PretrainedConfig, documents: Tensor, dtype: torch.dtype) -> Any:
    """The `attention_mask` with which a model of transformers reads packed blocks; `documents` is [B, L].

    One mask [B, 1, L, L], or a mask for each kind of layer where the model has several (local and global layers). Bool
    under sdpa; under eager 0 and the least number of `dtype`, which is added to the scores. `position_ids` go with it.
    ValueError for another attention, or for layers that no mask of this kind fits.
    """
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation={attention} takes no mask of packed conversations. Load the model with "
            "attn_implementation=sdpa (or eager)."
        )

    def mask(sliding_window: int | None) -> Tensor:
        seen = block_mask(documents, sliding_window=sliding_window)
        if attention == "sdpa":
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)

    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return mask(window)
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(
            f"the model has layers of {', '.join(sorted(unknown))}, through which packed conversations would see each "
            "other. Give a model whose layers attend, fully or under a sliding window."
        )
    return {kind: mask(window if kind == "sliding_attention" else None) for kind in dict.fromkeys(kinds)}
