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
    whose row is also the token's input. The step is found on every other end, and kept only if it also helps on the
    ends it was not found on without letting the token win more often at other positions.
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
        change = smallest_step(ends[::2], now[::2], others, target=int(wanted[::2].sum()))
        if not _helps(now[1::2], ends[1::2] @ change, elsewhere, others @ change):
            change, reason = torch.zeros_like(row), "no step helps on ends that it was not found on"
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


def smallest_step(ends: Tensor, now: Tensor, others: Tensor, *, target: int) -> Tensor:
    """The shortest change [D] along `direction` after which the token wins at `target` of the ends [N, D]."""
    along = direction(ends, others)
    gains = ends @ along
    # Where the token gains, how far it takes to win; the farthest of the nearest `target` is far enough.
    needed = torch.where(gains > 0, (-now / gains).clamp_min(0), torch.inf).sort().values
    reachable = needed[: max(target, 1)]
    reachable = reachable[reachable.isfinite()]
    # A hair beyond the tie, as greedy decoding breaks ties by id.
    return along * (reachable.max().item() * (1 + 1e-3) + 1e-9 if len(reachable) else 0.0)


def direction(ends: Tensor, others: Tensor) -> Tensor:
    """The direction [D] that tells ends from other positions with the least effect on the latter (Fisher's)."""
    spread = others.T @ others / max(len(others), 1)
    spread.diagonal().add_(SHRINKAGE * spread.diagonal().mean() + torch.finfo(torch.float64).tiny)
    along = torch.linalg.solve(spread, ends.mean(dim=0) - others.mean(dim=0))
    return along / along.norm()


def _helps(ends: Tensor, gained: Tensor, others: Tensor, taken: Tensor) -> bool:
    """More ends are won than before, and the token wins at no more of the other positions."""
    return bool((ends + gained > 0).sum() > (ends > 0).sum() and (others + taken > 0).sum() <= (others > 0).sum())


def _share(marks: Tensor) -> float | None:
    return marks.double().mean().item() if len(marks) else None
