"""The control initialisation: a new token begins as noise, so that a comparison shows what the mean is worth."""

import numpy as np
import torch
from torch import Tensor

from lep.vocabulary import SubtokenOperator


def random(table: Tensor, operator: SubtokenOperator, *, generator: torch.Generator) -> Tensor:
    """Rows the old vocabulary holds, and special ones, are kept; the rest are drawn. Float32 [U, D].

    Drawn from N(0, s) with s the standard deviation of the entries of the base table [V, D] (its padding left out).
    The draw depends on the generator and on the size of the new vocabulary alone, not on which rows are kept.
    """
    rows, columns = operator.weights.shape  # type: ignore[misc]
    spread = table.detach()[:columns].float().std().cpu()
    drawn = torch.randn(rows, table.shape[1], generator=generator) * spread
    kept = torch.from_numpy(np.flatnonzero(operator.exact | operator.special))
    drawn[kept] = operator.apply(table)[kept]
    return drawn
