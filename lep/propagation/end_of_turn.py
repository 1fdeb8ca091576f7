"""The end of a turn, after the rest of the output table has moved: one row changed so that it wins where it should.

The end-of-turn token keeps the instruct model's output row, but its rivals (newline, `</s>`) were trained on. Here its
row is given the smallest change that puts it back on top at the ends of answers and nowhere else. In: hidden states of
the propagated model. Out: the row and what it took. Collecting the states is the caller's work.
"""

# N ends of answers, M other positions, K rows of a constraint, V vocabulary, D hidden

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

ROWS_AT_ONCE = 256  # logits of 256 positions over 128k tokens are 256 MiB in float64
NEW_PER_ROUND = 256
# Two parts in a thousand of a margin are given up rather than chased with a large change.
RIDGE = 1e-3
# Where ends and other positions ask for opposite things, the other positions are obeyed first.
OTHER_RIDGE = 1e-5


def margins(hidden: Tensor, output: Tensor, token: int) -> Tensor:
    """Logit of `token` above its best rival, at each position: float64 [N] from states [N, D] and output table [V, D].

    Above zero where greedy decoding picks the token.
    """
    table = output.detach().to("cpu", torch.float64)
    result = []
    for states in hidden.detach().to("cpu", torch.float64).split(ROWS_AT_ONCE):
        logits = states @ table.T
        own = logits[:, token].clone()
        logits[:, token] = -torch.inf
        result.append(own - logits.max(dim=1).values)
    return torch.cat(result) if result else torch.empty(0, dtype=torch.float64)


def restore_end_of_turn(
    ends: Tensor,
    others: Tensor,
    output: Tensor,
    *,
    token: int,
    original_margins: Tensor,
    tied: bool = False,
) -> tuple[Tensor, dict]:
    """The token's output row [D] that wins at the ends as in the original model, in the table's dtype, and a report.

    Takes the propagated model's states at the ends of answers [N, D] and at other positions [M, D], its output table
    [V, D], and the margins [N] that the original instruct model had at these ends. If the token already wins at as many
    ends as in the original, nothing is changed. Else the change is the shortest that
    - gives the ends it lost the original's margin, and takes nothing from ends it still wins;
    - at other positions leaves it as far below the winner as it was, or at least as far as it stands above its rivals
      at the ends of the original.
    When these contradict, the second is kept before the first, and the report says how far each holds. A tied model is
    left alone: its row is also the token's input, which is right as it is.
    """
    ends, others = (states.detach().to("cpu", torch.float64) for states in (ends, others))
    original_margins = original_margins.to("cpu", torch.float64)
    if len(ends) != len(original_margins):
        raise ValueError(
            f"end of turn: {len(ends)} states at ends, but {len(original_margins)} original margins. Give one each."
        )
    now, elsewhere = margins(ends, output, token), margins(others, output, token)
    wanted = original_margins > 0
    lost = wanted & (now <= 0)
    row = output[token].detach().to("cpu", torch.float64)
    change, reason = torch.zeros_like(row), None
    if (now > 0).sum() >= wanted.sum():
        reason = "it wins as often as in the original"
    elif tied:
        reason = "tied: the row is also the token's input"
    else:
        keep = wanted & ~lost
        needs = torch.where(lost, original_margins - now, -(now - torch.minimum(now, original_margins)))[lost | keep]
        room = (-elsewhere - original_margins[wanted].mean()).clamp_min(0)
        change = shortest_change(ends[lost | keep], needs, others, room)
    new_row = (row + change).to(output.dtype)
    taken = new_row.to(torch.float64) - row
    return new_row, {
        "changed": bool(taken.any()),
        "unchanged_because": reason,
        "ends": len(ends),
        "won_in_original": _share(wanted),
        "won_before": _share(now > 0),
        "won_after": _share(now + ends @ taken > 0),
        "others": len(others),
        "wrongly_won_before": _share(elsewhere > 0),
        "wrongly_won_after": _share(elsewhere + others @ taken > 0),
        "relative_change": (taken.norm() / row.norm()).item(),
    }


def shortest_change(ends: Tensor, needs: Tensor, others: Tensor, room: Tensor) -> Tensor:
    """The shortest d [D] with `ends d >= needs` and `others d <= room`, up to a small ridge on what is missed.

    A quadratic programme, solved in its dual (non-negative least squares) over the constraints that matter: those
    the answer so far violates are added until none is left.
    """
    rows, bounds = torch.cat([ends, -others]), torch.cat([needs, -room])
    scale = ends.square().sum(dim=1).mean()
    ridges = torch.cat([torch.full_like(needs, RIDGE), torch.full_like(room, OTHER_RIDGE)]) * scale
    tolerance = 1e-6 * bounds.abs().max().clamp_min(1e-12)
    change = torch.zeros_like(rows[0])
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    while True:
        missed = torch.where(chosen, 0.0, bounds - rows @ change)
        worst = missed.topk(min(NEW_PER_ROUND, len(missed)))
        fresh = worst.indices[worst.values > tolerance]
        if not len(fresh):
            return change
        chosen[fresh] = True
        change = _dual(rows[chosen], bounds[chosen], ridges[chosen])


def _dual(rows: Tensor, bounds: Tensor, ridges: Tensor) -> Tensor:
    """Minimiser of `|d|^2 + sum |missed|^2 / ridge` under `rows d + missed >= bounds`: d = rows^T x, x >= 0."""
    lower = torch.linalg.cholesky(rows @ rows.T + torch.diag(ridges))
    target = torch.linalg.solve_triangular(lower, bounds[:, None], upper=False).squeeze(1)
    weights, _ = nnls(lower.T.numpy(), target.numpy(), maxiter=30 * len(rows))
    return torch.from_numpy(np.asarray(weights)) @ rows


def _share(marks: Tensor) -> float | None:
    return marks.double().mean().item() if len(marks) else None
