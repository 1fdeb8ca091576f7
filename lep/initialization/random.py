"""The control initialisation: a new token begins as noise, so that a comparison shows what the mean is worth."""

import numpy as np
import torch
from torch import Tensor

from lep.shards import Table, blocks
from lep.vocabulary import SubtokenOperator


def random(table: Table, operator: SubtokenOperator, *, generator: torch.Generator) -> Tensor:
    """Rows the old vocabulary holds, and special ones, are kept; the rest are drawn. Float32 [U, D].

    Drawn from N(0, s) with s the standard deviation of the entries of the base table [V, D] (its padding left out).
    The draw depends on the generator and on the size of the new vocabulary alone, not on which rows are kept.
    """
    rows, columns = operator.weights.shape  # type: ignore[misc]
    drawn = torch.randn(rows, table.shape[1], generator=generator).mul_(spread(table, columns))
    begun, kept = operator.apply(table), operator.exact | operator.special
    start = 0
    for block in blocks(begun):
        here = np.flatnonzero(kept[start : start + len(block)])
        drawn[torch.from_numpy(start + here)] = block[torch.from_numpy(here)]
        start += len(block)
    return drawn


def spread(table: Table, rows: int) -> float:
    """Standard deviation of the entries of the first rows, the sums in float64 over blocks."""
    total = squares = 0.0
    count, left = rows * table.shape[1], rows
    for block in blocks(table):
        entries = block[:left].detach().to("cpu", torch.float64)
        total, squares, left = (
            total + entries.sum().item(),
            squares + entries.square().sum().item(),
            left - len(entries),
        )
        if not left:
            break
    return ((squares - total**2 / count) / (count - 1)) ** 0.5
