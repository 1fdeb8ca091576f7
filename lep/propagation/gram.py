"""Least squares between two tables through D x D Gram matrices, so that no table is ever in memory in float64.

In: pairs of base rows and instruct rows. Out: the linear map P that carries base rows to instruct rows, written as
`P = 1 + Q`, and how well it does on rows it has not seen. Assumed: base and instruct are siblings, so that P is near
the identity: the ridge shrinks P towards 1, and an instruct model equal to its base gives exactly P = 1.
"""

# V base vocab, U new vocab, N rows of a fit, D hidden

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from lep.embeddings import untrained_rows
from lep.vocabulary import SubtokenOperator

RowPairs = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # row numbers -> (base rows, instruct rows), float64 [N, D]

CHUNK_ROWS = 4096  # 4,096 x 4,096 float64 is 128 MiB
HELD_OUT_EVERY = 10  # token ids are roughly in order of frequency, so every tenth row samples all frequencies


@dataclass(frozen=True)
class Gram:
    """Sums over pairs of a base row b and an instruct row i that least squares needs, all in float64.

    The target of the fit is the change i - b, so that nothing is lost to cancellation when the two are close.
    """

    base: Tensor  # sum of b^T b, [D, D]
    change: Tensor  # sum of b^T (i - b), [D, D]
    change_squares: float  # sum of |i - b|^2
    instruct_sum: Tensor  # sum of i, [D]
    instruct_squares: float  # sum of |i|^2
    rows: int

    def __add__(self, other: "Gram") -> "Gram":
        return Gram(
            self.base + other.base,
            self.change + other.change,
            self.change_squares + other.change_squares,
            self.instruct_sum + other.instruct_sum,
            self.instruct_squares + other.instruct_squares,
            self.rows + other.rows,
        )


def gram(base: Tensor, instruct: Tensor) -> Gram:
    """The sums over one chunk of rows, [N, D] each."""
    base, instruct = base.to("cpu", torch.float64), instruct.to("cpu", torch.float64)
    change = instruct - base
    return Gram(
        base.T @ base,
        base.T @ change,
        change.square().sum().item(),
        instruct.sum(dim=0),
        instruct.square().sum().item(),
        base.shape[0],
    )


def accumulate(pairs: RowPairs, rows: np.ndarray, *, chunk_rows: int = CHUNK_ROWS) -> Gram | None:
    """The sums over all the rows, chunk by chunk; None when there are no rows."""
    total = None
    for start in range(0, len(rows), chunk_rows):
        part = gram(*pairs(rows[start : start + chunk_rows]))
        total = part if total is None else total + part
    return total


def ridge_change(sums: Gram, *, ridge: float) -> tuple[Tensor, float]:
    """Q of `P = 1 + Q`, [D, D] float64, with the ridge that was added to the diagonal.

    Minimises `sum |b (1 + Q) - i|^2 + ridge * m * |Q|^2`, m the mean diagonal of the base's Gram matrix. Directions in
    which the base rows do not vary (fewer rows than D) stay as they are.
    """
    added = ridge * sums.base.diagonal().mean().item()
    matrix = sums.base.clone()
    matrix.diagonal().add_(added)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise ValueError(
            f"propagation ridge={ridge} is too small for {sums.rows} rows of hidden size {len(matrix)}: the fit has no "
            "one answer. Raise it (1e-3 is the usual), or use propagation=swap."
        )
    return torch.cholesky_solve(sums.change, factor), added


def condition_number(sums: Gram) -> float:
    """Largest eigenvalue of the base's Gram matrix, before the ridge, over its smallest; at most 4.5e15 (float64)."""
    values = torch.linalg.eigvalsh(sums.base)
    return (values[-1] / values[0].clamp_min(values[-1] * torch.finfo(torch.float64).eps)).item()


def explained(sums: Gram, change_map: Tensor) -> tuple[float | None, float | None]:
    """(R2 of the instruct rows, R2 of their change from the base) for `P = 1 + Q` on these rows.

    The first is high for any sibling; the second says what the map adds to swapping: 0 is no better than the identity,
    below 0 worse. None where there is nothing to explain.
    """
    residual = (change_map * (sums.base @ change_map - 2 * sums.change)).sum().item() + sums.change_squares
    variation = sums.instruct_squares - sums.instruct_sum.square().sum().item() / sums.rows
    of_rows = 1 - residual / variation if variation > 0 else None
    return of_rows, 1 - residual / sums.change_squares if sums.change_squares > 0 else None


def fit_change(pairs: RowPairs, rows: np.ndarray, *, ridge: float, chunk_rows: int = CHUNK_ROWS) -> tuple[Tensor, dict]:
    """Q of `P = 1 + Q` fitted on all the rows, [D, D] float64, and the diagnostics of the fit.

    The held-out figures are those of a first fit without every tenth row, measured on these.
    """
    held_out = np.arange(len(rows)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    seen = accumulate(pairs, rows[~held_out], chunk_rows=chunk_rows)
    unseen = accumulate(pairs, rows[held_out], chunk_rows=chunk_rows)
    if seen is None:
        raise ValueError(
            "propagation: no token is left to fit the correction on (specials and untrained rows are left out). "
            "Use propagation=swap or propagation=delta."
        )
    all_rows = seen if unseen is None else seen + unseen
    of_rows, of_change = (None, None) if unseen is None else explained(unseen, ridge_change(seen, ridge=ridge)[0])
    change_map, added = ridge_change(all_rows, ridge=ridge)
    return change_map, {
        "rows": all_rows.rows,
        "held_out_rows": 0 if unseen is None else unseen.rows,
        "held_out_r2": of_rows,
        "held_out_r2_of_change": of_change,
        "condition_number": condition_number(all_rows),
        "ridge": ridge,
        "ridge_added": added,
        "map_change": (change_map.norm() / len(change_map) ** 0.5).item(),  # |P - 1| over |1|
    }


def changed_rows(table: Tensor, change_map: Tensor, *, chunk_rows: int = CHUNK_ROWS) -> Tensor:
    """`table (1 + Q)`, [U, D], computed in float64 a chunk at a time and kept in float32 (float64 if given float64)."""
    result = torch.empty(table.shape, dtype=torch.promote_types(table.dtype, torch.float32))
    for start in range(0, table.shape[0], chunk_rows):
        rows = table[start : start + chunk_rows].detach().to("cpu", torch.float64)
        result[start : start + chunk_rows] = rows + rows @ change_map
    return result


def combined_rows(operator: SubtokenOperator, table: Tensor, rows: np.ndarray) -> Tensor:
    """The given rows of `T E`, float64 [N, D]; only the rows of the table that they need are widened."""
    block = operator.weights[rows]
    used, position = np.unique(block.indices, return_inverse=True)
    dense = table.detach()[torch.from_numpy(used).to(table.device, torch.int64)].to("cpu", torch.float64).numpy()
    narrow = csr_array((block.data.astype(np.float64), position, block.indptr), shape=(len(rows), len(used)))
    return torch.from_numpy(narrow @ dense)


def untrained_in_either(base: Tensor, instruct: Tensor, operator: SubtokenOperator) -> np.ndarray:
    """Marks the base tokens that training never reached in one of the two tables, [V] bool; padding is left out."""
    columns = operator.weights.shape[1]  # type: ignore[index]
    return (untrained_rows(base[:columns]) | untrained_rows(instruct[:columns])).numpy()


def chunks(count: int, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[np.ndarray]:
    """Row numbers 0 .. count - 1, a chunk at a time."""
    for start in range(0, count, chunk_rows):
        yield np.arange(start, min(start + chunk_rows, count))
