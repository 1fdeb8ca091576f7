"""The end of a turn, after the rest of the output table has moved: one row changed so that it wins where it should.

The end-of-turn token keeps the instruct model's output row, but its rivals (newline, `</s>`) may have moved. Here its
row is moved along one direction, that in which the ends of answers stand out from other positions, as far as it takes
to win as often as it did. In: hidden states of the propagated model. Out: the row and what it took. Collecting the
states is the caller's work.
"""

# N ends of answers, M other positions, V vocabulary, D hidden

import torch
from torch import Tensor

ROWS_AT_ONCE = 256  # logits of 256 positions over 128k tokens are 256 MiB in float64
# Of the spread of the other positions, added evenly: there may be fewer of them than dimensions.
SHRINKAGE = 0.1


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
    """The token's output row [D] that wins at the ends as often as in the original model, and a report.

    Takes the propagated model's states at the ends of answers [N, D] and at other positions [M, D], its output table
    [V, D], and the margins [N] that the original instruct model had at these ends. Nothing is changed where the token
    lost no more ends than chance would have it lose (two standard errors of the difference), nor in a tied model,
    whose row is also the token's input. The step is the one that ruins the fewest answers (ends lost, or won where
    the answer goes on) on every other position, and it is kept only if it ruins fewer on the positions between.
    """
    if len(ends) != len(original_margins):
        raise ValueError(
            f"end of turn: {len(ends)} states at ends, but {len(original_margins)} original margins. Give one each."
        )
    ends, others = (states.detach().to("cpu", torch.float64) for states in (ends, others))
    wanted = original_margins.to("cpu", torch.float64) > 0
    now, elsewhere = margins(ends, output, token), margins(others, output, token)
    row = output[token].detach().to("cpu", torch.float64)
    change, reason = torch.zeros_like(row), None
    if not lost_beyond_chance(wanted, now > 0):
        reason = "it wins as often as in the original, within the noise"
    elif tied:
        reason = "tied: the row is also the token's input"
    else:
        change = best_step(ends[::2], now[::2], others[::2], elsewhere[::2])
        held_out = ruined(now[1::2] + ends[1::2] @ change, elsewhere[1::2] + others[1::2] @ change)
        if held_out >= ruined(now[1::2], elsewhere[1::2]):
            change, reason = torch.zeros_like(row), "no step helps where it was not fitted"
    new_row = (row + change).to(output.dtype)
    taken = new_row.to(torch.float64) - row
    return new_row, {
        "changed": bool(change.any()),
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


def lost_beyond_chance(wanted: Tensor, won: Tensor) -> bool:
    """Whether ends lost outnumber ends gained by more than two standard errors (a sign test on the pairs)."""
    lost, gained = int((wanted & ~won).sum()), int((~wanted & won).sum())
    return lost - gained > 2 * (lost + gained) ** 0.5


def best_step(ends: Tensor, now: Tensor, others: Tensor, elsewhere: Tensor) -> Tensor:
    """The change [D] along `direction` that ruins the fewest answers; the shortest of those that do as well.

    Takes states [N, D] and [M, D] with the token's margins there. Margins change linearly along the way, so only the
    lengths at which one of the ends is won need be tried.
    """
    along = direction(ends, others)
    gains, costs = ends @ along, others @ along
    # A hair beyond the tie, as greedy decoding breaks ties by id.
    lengths = torch.cat([torch.zeros(1), (-now / gains)[(gains > 0) & (now <= 0)].sort().values * 1.001 + 1e-9])
    counts = torch.tensor([ruined(now + gains * length, elsewhere + costs * length) for length in lengths])
    return along * lengths[counts.argmin()]


def ruined(ends: Tensor, others: Tensor) -> int:
    """Answers that do not end where they should, and answers that end before: by margins [N] and [M]."""
    return int((ends <= 0).sum() + (others > 0).sum())


def direction(ends: Tensor, others: Tensor) -> Tensor:
    """The direction [D] that tells ends from other positions with the least effect on the latter (Fisher's)."""
    spread = others.T @ others / max(len(others), 1)
    spread.diagonal().add_(SHRINKAGE * spread.diagonal().mean() + torch.finfo(torch.float64).tiny)
    along = torch.linalg.solve(spread, ends.mean(dim=0) - others.mean(dim=0))
    return along / along.norm().clamp_min(torch.finfo(torch.float64).tiny)


def _share(marks: Tensor) -> float | None:
    return marks.double().mean().item() if len(marks) else None
