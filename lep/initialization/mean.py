"""The paper's initialisation: a new token begins as the mean of the old tokens that spell it."""

import torch

from lep.shards import Table
from lep.vocabulary import SubtokenOperator


def mean(table: Table, operator: SubtokenOperator, *, generator: torch.Generator | None = None) -> Table:
    """`T E` (arXiv 2412.21140, section 3): float32 [U, D], computed when read, from a base table [V, D]. No draws."""
    return operator.apply(table)
