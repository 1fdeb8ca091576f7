"""Delta: the tune's change, carried token by token. A rule that the paper does not have."""

import numpy as np
import torch
from torch import Tensor

from lep.shards import BLOCK_ROWS, ComputedTable, Table, take
from lep.vocabulary import SubtokenOperator


def delta(
    adapted: Table,
    base: Table,
    instruct: Table,
    operator: SubtokenOperator,
    *,
    chunk_rows: int = BLOCK_ROWS,
) -> tuple[Table, dict]:
    """`A + T (I - B)`: each new token moves as the old tokens that spell it moved, on average.

    Takes adapted [U, D], base and instruct [>= V, D] of any dtype; gives [U, D] float32 (float64 if given float64),
    computed when read. Adapted rows beyond the tokenizer (padding) stay. The diagnostic is the size of what is added
    against the adapted rows (Frobenius).
    """
    dtype = torch.promote_types(adapted.dtype, torch.float32)
    tokens = len(operator.exact)

    def change(old_ids: np.ndarray) -> Tensor:
        return take(instruct, old_ids).to(dtype) - take(base, old_ids).to(dtype)

    def added_to(rows: slice) -> Tensor:
        return operator.combine(change, np.arange(rows.start, min(rows.stop, tokens)), dtype)

    def compute(rows: slice) -> Tensor:
        result = adapted[rows].detach().to("cpu", dtype, copy=True)
        added = added_to(rows)
        result[: len(added)] += added
        return result

    added_squares = adapted_squares = 0.0
    for start in range(0, tokens, chunk_rows):
        rows = slice(start, min(start + chunk_rows, tokens))
        added_squares += added_to(rows).double().square().sum().item()
        adapted_squares += adapted[rows].detach().to("cpu", torch.float64).square().sum().item()
    return ComputedTable(adapted.shape, dtype, compute), {"relative_addition": (added_squares / adapted_squares) ** 0.5}
