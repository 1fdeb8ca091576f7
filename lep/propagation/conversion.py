"""Vocabulary conversion: the map that carries converted base rows to converted instruct rows, on the new vocabulary."""

import numpy as np
from torch import Tensor

from lep.propagation.gram import CHUNK_ROWS, combined_rows, fitted_rows, untrained_in_either
from lep.shards import Table
from lep.vocabulary import SubtokenOperator


def conversion(
    adapted: Table,
    base: Table,
    instruct: Table,
    operator: SubtokenOperator,
    *,
    ridge: float,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Table, dict]:
    """`A P` with `P = argmin |(T B) P - (T I)|` (arXiv 2412.21140, section 3), and diagnostics.

    Takes adapted [U, D], base and instruct [>= V, D] of any dtype; gives [U, D] float32, computed when read. Special
    tokens, and tokens spelt with a row that training never reached, are left out. `ridge` is relative to the mean
    diagonal of the Gram matrix. New tokens share sub-tokens, so the held-out figures flatter more than overlap's.
    """
    spelt_untrained = operator.weights @ untrained_in_either(base, instruct, operator).astype(np.float32) > 0
    untrained = spelt_untrained & ~operator.special

    def pairs(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return combined_rows(operator, base, rows), combined_rows(operator, instruct, rows)

    rows = np.flatnonzero(~operator.special & ~untrained)
    result, diagnostics = fitted_rows(adapted, pairs, rows, ridge=ridge, chunk_rows=chunk_rows)
    return result, diagnostics | {
        "excluded_special": int(operator.special.sum()),
        "excluded_untrained": int(untrained.sum()),
    }
