"""Overlapping token correction: the map that carries base rows to instruct rows, on tokens both vocabularies hold."""

import numpy as np
import torch
from torch import Tensor

from lep.propagation.gram import CHUNK_ROWS, changed_rows, fit_change, untrained_in_either
from lep.vocabulary import SubtokenOperator


def overlap(
    adapted: Tensor,
    base: Tensor,
    instruct: Tensor,
    operator: SubtokenOperator,
    *,
    ridge: float,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, dict]:
    """`A P` with `P = argmin |B[C] P - I[C]|` over the shared tokens C (arXiv 2412.21140, section 3), and diagnostics.

    Takes adapted [U, D], base and instruct [>= V, D] of any dtype; gives [U, D] float32. Special tokens and rows that
    training never reached are no part of C. `ridge` is relative to the mean diagonal of the Gram matrix.
    """
    _, old_ids = operator.shared
    # By old id, once each: the answer then depends on which tokens are shared, not on how the new ids are ordered.
    old_ids = np.unique(old_ids)
    untrained = untrained_in_either(base, instruct, operator)[old_ids]

    def pairs(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        places = torch.from_numpy(rows)
        return tuple(table.detach()[places.to(table.device)].to("cpu", torch.float64) for table in (base, instruct))  # type: ignore[return-value]

    change_map, diagnostics = fit_change(pairs, old_ids[~untrained], ridge=ridge, chunk_rows=chunk_rows)
    diagnostics["excluded_untrained"] = int(untrained.sum())
    return changed_rows(adapted, change_map, chunk_rows=chunk_rows), diagnostics
