"""Least squares between two tables through D x D Gram matrices, so that no table is ever in memory in float64.

In: pairs of base rows and instruct rows. Out: the linear map P that carries base rows to instruct rows, written as
`P = 1 + Q`, and how well it does on rows it has not seen. Assumed: base and instruct are siblings, so that P is near
the identity: the ridge shrinks P towards 1, and an instruct model equal to its base gives exactly P = 1.
"""

# V base vocab, U new vocab, N rows of a fit, D hidden

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lep.embeddings import untrained_rows
from lep.shards import ComputedTable, Table, take
from lep.vocabulary import SubtokenOperator

RowPairs = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # row numbers -> (base rows, instruct rows), [N, D]

CHUNK_ROWS = 4096  # 4,096 x 4,096 float64 is 128 MiB
SYMMETRIC_COLUMNS = 512  # of a Gram matrix at once: at D = 4,096 its upper half comes to 56 % of the whole product
SUBSPACE, SUBSPACE_STEPS = 16, 10  # vectors and rounds of subspace iteration
HELD_OUT_EVERY = 10  # token ids are roughly in order of frequency, so every tenth row samples all frequencies


@dataclass
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

    @classmethod
    def zero(cls, hidden: int) -> "Gram":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        return cls(zeros(hidden, hidden), zeros(hidden, hidden), 0.0, zeros(hidden), 0.0, 0)

    def add_rows_(self, base: Tensor, instruct: Tensor) -> None:
        """Adds one chunk of rows, [N, D] each."""
        base, instruct = base.to("cpu", torch.float64), instruct.to("cpu", torch.float64)
        change = instruct - base
        add_symmetric_(self.base, base)
        self.change.addmm_(base.T, change)
        self.change_squares += _squares(change)
        self.instruct_sum += instruct.sum(dim=0)
        self.instruct_squares += _squares(instruct)
        self.rows += base.shape[0]

    def add_(self, other: "Gram") -> None:
        """Adds the sums over other rows."""
        self.base += other.base
        self.change += other.change
        self.change_squares += other.change_squares
        self.instruct_sum += other.instruct_sum
        self.instruct_squares += other.instruct_squares
        self.rows += other.rows


def _squares(rows: Tensor) -> float:
    flat = rows.reshape(-1)
    return torch.dot(flat, flat).item()


def add_symmetric_(total: Tensor, rows: Tensor) -> None:
    """Adds `rows^T rows` to a symmetric [D, D]: the upper half is multiplied out, the lower one copied from it."""
    for start in range(0, total.shape[0], SYMMETRIC_COLUMNS):
        here = slice(start, start + SYMMETRIC_COLUMNS)
        stop = min(here.stop, total.shape[0])
        total[:stop, here].addmm_(rows[:, :stop].T, rows[:, here])
        total[here, :start] = total[:start, here].T


def gram(base: Tensor, instruct: Tensor) -> Gram:
    """The sums over pairs of rows, [N, D] each."""
    sums = Gram.zero(base.shape[1])
    sums.add_rows_(base, instruct)
    return sums


def accumulate(pairs: RowPairs, rows: np.ndarray, *, chunk_rows: int = CHUNK_ROWS) -> Gram | None:
    """The sums over all the rows, chunk by chunk; None when there are no rows."""
    total = None
    for start in range(0, len(rows), chunk_rows):
        base, instruct = pairs(rows[start : start + chunk_rows])
        total = total or Gram.zero(base.shape[1])
        total.add_rows_(base, instruct)
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
    """Largest eigenvalue of the base's Gram matrix, before the ridge, over its smallest; at most 4.5e15 (float64).

    Both come from subspace iteration, which takes a tenth of the time of all eigenvalues: they lie within those of the
    matrix, so the figure is never too high, and it is a few percent too low where many eigenvalues crowd at an end.
    """
    size = len(sums.base)
    factor, failed = torch.linalg.cholesky_ex(sums.base)
    largest = _largest_eigenvalue(lambda block: sums.base @ block, size)
    least = largest * torch.finfo(torch.float64).eps
    if failed:
        return largest / least
    smallest = 1 / _largest_eigenvalue(lambda block: torch.cholesky_solve(block, factor), size)
    return largest / max(smallest, least)


def _largest_eigenvalue(multiply: Callable[[Tensor], Tensor], size: int) -> float:
    """Of a symmetric [D, D], from its products with a few vectors at a time [D, K]; the true one for D up to K."""
    start = torch.randn(size, min(size, SUBSPACE), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(start).Q
    for _ in range(SUBSPACE_STEPS):
        basis = torch.linalg.qr(multiply(basis)).Q
    return torch.linalg.eigvalsh(basis.T @ multiply(basis))[-1].item()


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
    of_rows, of_change = (None, None) if unseen is None else explained(unseen, ridge_change(seen, ridge=ridge)[0])
    sums, held_out_rows = seen, 0 if unseen is None else unseen.rows
    if unseen is not None:
        sums.add_(unseen)
        del unseen
    change_map, added = ridge_change(sums, ridge=ridge)
    return change_map, {
        "rows": sums.rows,
        "held_out_rows": held_out_rows,
        "held_out_r2": of_rows,
        "held_out_r2_of_change": of_change,
        "condition_number": condition_number(sums),
        "ridge": ridge,
        "ridge_added": added,
        "map_change": (change_map.norm() / len(change_map) ** 0.5).item(),  # |P - 1| over |1|
    }


def fitted_rows(
    adapted: Table, pairs: RowPairs, rows: np.ndarray, *, ridge: float, chunk_rows: int = CHUNK_ROWS
) -> tuple[Table, dict]:
    """`A P`, [U, D], with P fitted on the pairs of these rows, and the diagnostics of the fit."""
    change_map, diagnostics = fit_change(pairs, rows, ridge=ridge, chunk_rows=chunk_rows)
    return changed_rows(adapted, change_map), diagnostics


def changed_rows(table: Table, change_map: Tensor) -> ComputedTable:
    """`table (1 + Q)`, [U, D], in float32 (float64 if given float64): fine enough, as it is rounded to the model's."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    narrow = change_map.to(dtype)

    def compute(rows: slice) -> Tensor:
        block = table[rows].detach().to("cpu", dtype)
        return torch.addmm(block, block, narrow)

    return ComputedTable(table.shape, dtype, compute)


def combined_rows(operator: SubtokenOperator, table: Table, rows: np.ndarray) -> Tensor:
    """The given rows of `T E`, [N, D]; only the rows of the table that they need are read and widened.

    In float32 (float64 of a float64 table), which is as fine as the weights of T are.
    """
    return operator.combine(lambda used: take(table, used), rows, torch.promote_types(table.dtype, torch.float32))


def untrained_in_either(base: Table, instruct: Table, operator: SubtokenOperator) -> np.ndarray:
    """Marks the base tokens that training never reached in one of the two tables, [V] bool; padding is left out."""
    columns = operator.weights.shape[1]  # type: ignore[index]
    return (untrained_rows(base, rows=columns) | untrained_rows(instruct, rows=columns)).numpy()
