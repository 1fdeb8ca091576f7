"""Overlapping token correction: the map that carries base rows to instruct rows, on tokens both vocabularies hold."""

import numpy as np
from torch import Tensor

from lep.propagation.gram import CHUNK_ROWS, fitted_rows, untrained_in_either
from lep.shards import Table, take
from lep.vocabulary import SubtokenOperator


def overlap(
    adapted: Table,
    base: Table,
    instruct: Table,
    operator: SubtokenOperator,
    *,
    ridge: float,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Table, dict]:
    """`A P` with `P = argmin |B[C] P - I[C]|` over the shared tokens C (arXiv 2412.21140, section 3), and diagnostics.

    Takes adapted [U, D], base and instruct [>= V, D] of any dtype; gives [U, D] float32, computed when read. Special
    tokens and rows that training never reached are no part of C. `ridge` is relative to the mean diagonal of the Gram
    matrix.
    """
    _, old_ids = operator.shared
    # By old id, once each: the answer then depends on which tokens are shared, not on how the new ids are ordered.
    old_ids = np.unique(old_ids)
    untrained = untrained_in_either(base, instruct, operator)[old_ids]

    def pairs(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return take(base, rows), take(instruct, rows)

    result, diagnostics = fitted_rows(adapted, pairs, old_ids[~untrained], ridge=ridge, chunk_rows=chunk_rows)
    return result, diagnostics | {"excluded_untrained": int(untrained.sum())}
