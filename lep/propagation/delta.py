"""Delta: the tune's change, carried token by token. A rule that the paper does not have."""

import torch
from torch import Tensor

from lep.propagation.gram import CHUNK_ROWS, chunks, combined_rows
from lep.vocabulary import SubtokenOperator


def delta(
    adapted: Tensor,
    base: Tensor,
    instruct: Tensor,
    operator: SubtokenOperator,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, dict]:
    """`A + T (I - B)`: each new token moves as the old tokens that spell it moved, on average.

    Takes adapted [U, D], base and instruct [>= V, D] of any dtype; gives [U, D] float32. Adapted rows beyond the
    tokenizer (padding) stay. The diagnostic is the size of what was added against the adapted rows (Frobenius).
    """
    result = adapted.detach().to("cpu", torch.promote_types(adapted.dtype, torch.float32), copy=True)
    added_squares = adapted_squares = 0.0
    for rows in chunks(len(operator.exact), chunk_rows=chunk_rows):
        change = combined_rows(operator, instruct, rows) - combined_rows(operator, base, rows)
        added_squares += change.square().sum().item()
        here = slice(int(rows[0]), int(rows[-1]) + 1)
        own = adapted[here].detach().to("cpu", torch.float64)
        adapted_squares += own.square().sum().item()
        result[here] = own + change
    return result, {"relative_addition": (added_squares / adapted_squares) ** 0.5}
