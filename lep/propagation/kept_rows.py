"""Rows that no rule may move: special tokens, and tokens that only the instruct model has (chat markers)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lep.propagation.gram import combined_rows
from lep.shards import ComputedTable, Table, take
from lep.vocabulary import SubtokenOperator


def carry_rows(
    moved: Table, instruct: Table, operator: SubtokenOperator, kept_rows: Sequence[tuple[int, int]] = ()
) -> ComputedTable:
    """`moved` [U, D] with the instruct model's rows for special tokens, in its dtype; longer if ids go beyond U.

    `kept_rows` pairs (new id, instruct id). Specials of T that no pair names take `T I` (arXiv 2412.21140, section 3:
    chat markers keep the instruct model's rows). Ids between U and a kept row beyond it, if any, are zero.
    """
    kept = dict(kept_rows)
    specials = np.array([i for i in np.flatnonzero(operator.special) if i not in kept], dtype=np.int64)
    ids = np.array([*specials, *kept], dtype=np.int64)
    rows = torch.cat(
        [
            combined_rows(operator, instruct, specials).to(instruct.dtype),
            take(instruct, np.array([*kept.values()], dtype=np.int64)),
        ]
    )
    length = max(moved.shape[0], int(ids.max(initial=-1)) + 1)

    def compute(block: slice) -> Tensor:
        result = torch.zeros(block.stop - block.start, moved.shape[1], dtype=instruct.dtype)
        if block.start < moved.shape[0]:
            own = moved[block.start : min(block.stop, moved.shape[0])]
            result[: len(own)] = own.detach().to("cpu", instruct.dtype)
        here = np.flatnonzero((ids >= block.start) & (ids < block.stop))
        result[torch.from_numpy(ids[here] - block.start)] = rows[torch.from_numpy(here)]
        return result

    return ComputedTable(torch.Size((length, moved.shape[1])), instruct.dtype, compute)
