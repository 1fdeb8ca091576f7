"""Rows that no rule may move: special tokens, and tokens that only the instruct model has (chat markers)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lep.propagation.gram import combined_rows
from lep.vocabulary import SubtokenOperator


def carry_rows(
    moved: Tensor, instruct: Tensor, operator: SubtokenOperator, kept_rows: Sequence[tuple[int, int]] = ()
) -> Tensor:
    """A copy of `moved` [U, D] in which special tokens have the instruct model's rows; longer if ids go beyond U.

    `kept_rows` pairs (new id, instruct id). Specials of T that no pair names take `T I` (arXiv 2412.21140, section 3:
    chat markers keep the instruct model's rows). Ids between U and a kept row beyond it, if any, are zero.
    """
    rows = max([moved.shape[0], *(new + 1 for new, _ in kept_rows)])
    result = torch.zeros(rows, moved.shape[1], dtype=moved.dtype)
    result[: moved.shape[0]] = moved
    specials = np.flatnonzero(operator.special)
    result[torch.from_numpy(specials)] = combined_rows(operator, instruct, specials).to(moved.dtype)
    for new, old in kept_rows:
        result[new] = instruct[old].detach().to("cpu", moved.dtype)
    return result
