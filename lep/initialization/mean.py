"""The paper's initialisation: a new token begins as the mean of the old tokens that spell it."""

import torch
from torch import Tensor

from lep.vocabulary import SubtokenOperator


def mean(table: Tensor, operator: SubtokenOperator, *, generator: torch.Generator | None = None) -> Tensor:
    """`T E` (arXiv 2412.21140, section 3): float32 [U, D] from a base table [V, D] of any dtype. Draws nothing."""
    return operator.apply(table)
