"""The end of a turn, after the rest of the output table has moved: one row changed so that it wins where it should.

The end-of-turn token keeps the instruct model's output row, but its rivals (newline, `</s>`) were trained on. Here its
row is given the smallest change that puts it back on top at the ends of answers and nowhere else. In: hidden states of
the propagated model. Out: the row and what it took. Collecting the states is the caller's work.
"""

# N ends of answers, M other positions, V vocabulary, D hidden

import torch
from torch import Tensor

ROWS_AT_ONCE = 256  # logits of 256 positions over 128k tokens are 256 MiB in float64
MOST_STEPS, SMALLEST_STEP = 100, 1e-6  # about ten steps are usual
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
    - at other positions takes at most half of its distance to the winner, and nothing where it wrongly wins.
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
        room = (-elsewhere / 2).clamp_min(0)
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

    Minimises `|d|^2 + sum missed^2 / ridge`, which is convex and piecewise quadratic, by Newton steps on the
    constraints missed so far: a few steps of one D x D system each.
    """
    rows, bounds = torch.cat([ends, -others]), torch.cat([needs, -room])
    ridges = torch.cat([torch.full_like(needs, RIDGE), torch.full_like(room, OTHER_RIDGE)])
    weights = 1 / (ridges * ends.square().sum(dim=1).mean())

    def cost(change: Tensor) -> Tensor:
        return change.square().sum() + (weights * (bounds - rows @ change).clamp_min(0).square()).sum()

    change = torch.zeros_like(rows[0])
    for _ in range(MOST_STEPS):
        missed = bounds - rows @ change
        pressing = rows[missed > 0]
        pressed = pressing.T * weights[missed > 0]
        slope = change - pressed @ missed[missed > 0]
        step = -torch.linalg.solve(torch.eye(len(change), dtype=torch.float64) + pressed @ pressing, slope)
        size, now = 1.0, cost(change)
        while size > SMALLEST_STEP and cost(change + size * step) > now + 1e-4 * size * (slope @ step):
            size /= 2
        if size <= SMALLEST_STEP or step.norm() <= 1e-10 * change.norm():
            break
        change = change + size * step
    return change


def _share(marks: Tensor) -> float | None:
    return marks.double().mean().item() if len(marks) else None
