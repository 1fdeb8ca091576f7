import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lep.propagation.end_of_turn import best_step, direction, lost_beyond_chance, margins, restore_end_of_turn, ruined

TOKEN, HIDDEN, VOCABULARY = 3, 24, 40


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def broken_model(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """States at ends and elsewhere, an output table that wins at the ends, one whose rival then overtook, and margins.

    Ends share a direction, which the token's row reads; the rival's row has grown along it.
    """
    mark = normal(HIDDEN, seed=seed)
    mark /= mark.norm()
    ends = 0.3 * normal(30, HIDDEN, seed=seed + 1) + 2 * mark
    others = 0.5 * normal(200, HIDDEN, seed=seed + 2) - mark
    before = normal(VOCABULARY, HIDDEN, seed=seed + 3)
    before -= before @ mark[:, None] * mark
    before[TOKEN] = 4 * mark
    after = before.clone()
    after[TOKEN + 1] += 5 * mark
    return ends, others, before, after, margins(ends, before, TOKEN)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_token_that_lost_its_ends_wins_them_back_and_ruins_fewer_answers(seed):
    ends, others, _, after, original = broken_model(seed)
    row, report = restore_end_of_turn(ends, others, after, token=TOKEN, original_margins=original)
    table = after.clone()
    table[TOKEN] = row
    now = margins(ends, table, TOKEN)
    assert report["won_before"] < 0.5 < report["won_after"] == (now > 0).double().mean()
    # Positions inside answers may be given up only where more ends are won for it.
    before = ruined(margins(ends, after, TOKEN), margins(others, after, TOKEN))
    assert report["changed"] and ruined(now, margins(others, table, TOKEN)) < before
    assert report["relative_change"] == pytest.approx(((row - after[TOKEN]).norm() / after[TOKEN].norm()).item())


def test_nothing_changes_where_it_wins_as_often_as_in_the_original():
    ends, others, before, _, original = broken_model()
    row, report = restore_end_of_turn(ends, others, before, token=TOKEN, original_margins=original)
    assert torch.equal(row, before[TOKEN]) and not report["changed"]
    # Smaller margins that still win, or ends that the original lost as well, are no reason either.
    weaker = before.clone()
    weaker[TOKEN] *= 0.9
    row, report = restore_end_of_turn(ends, others, weaker, token=TOKEN, original_margins=original)
    assert torch.equal(row, weaker[TOKEN]) and "as often" in report["unchanged_because"]
    never = torch.full_like(original, -1.0)
    assert not restore_end_of_turn(ends, others, -before, token=TOKEN, original_margins=never)[1]["changed"]


def test_a_tied_model_is_left_alone_and_the_report_says_so():
    ends, others, _, after, original = broken_model()
    row, report = restore_end_of_turn(ends, others, after, token=TOKEN, original_margins=original, tied=True)
    assert torch.equal(row, after[TOKEN])
    assert "tied" in report["unchanged_because"] and report["won_after"] == report["won_before"] < 1


def test_where_ends_and_other_positions_are_the_same_states_the_others_are_obeyed():
    ends, _, _, after, original = broken_model()
    row, report = restore_end_of_turn(ends, ends.clone(), after, token=TOKEN, original_margins=original)
    assert report["wrongly_won_after"] == report["wrongly_won_before"]
    assert torch.equal(row, after[TOKEN]) and not report["changed"]


def test_the_row_comes_in_the_tables_dtype_and_the_report_is_of_that_row():
    ends, others, _, after, original = broken_model()
    row, report = restore_end_of_turn(ends, others, after.bfloat16(), token=TOKEN, original_margins=original)
    assert row.dtype is torch.bfloat16 and report["won_after"] > 0.8


def test_each_end_needs_its_margin():
    ends, others, _, after, original = broken_model()
    with pytest.raises(ValueError, match="29 original margins"):
        restore_end_of_turn(ends, others, after, token=TOKEN, original_margins=original[1:])


def test_no_positions_are_no_reason():
    nothing = torch.empty(0, HIDDEN)
    row, report = restore_end_of_turn(
        nothing, nothing, normal(VOCABULARY, HIDDEN, seed=0), token=TOKEN, original_margins=torch.empty(0)
    )
    assert not report["changed"] and report["won_after"] is None


def test_margins_are_those_of_the_whole_logits():
    hidden, output = normal(600, 5, seed=0), normal(9, 5, seed=1)
    logits = hidden @ output.T
    rivals = logits[:, [i for i in range(9) if i != TOKEN]].max(dim=1).values
    assert_close(margins(hidden, output, TOKEN), logits[:, TOKEN] - rivals)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_no_length_along_the_direction_ruins_fewer_answers(seed):
    ends, others, _, after, _ = broken_model(seed)
    now, elsewhere = margins(ends, after, TOKEN), margins(others, after, TOKEN)
    step, along = best_step(ends, now, others, elsewhere), direction(ends, others)
    assert_close(step, along * step.norm())
    best = ruined(now + ends @ step, elsewhere + others @ step)
    for length in torch.linspace(0, 10, 2001, dtype=torch.float64):
        assert best <= ruined(now + ends @ (along * length), elsewhere + others @ (along * length))


def test_the_direction_is_that_of_fisher():
    """Against the slow, obvious solution: the inverse of the spread of the others, without shrinkage to speak of."""
    others = normal(5000, 6, seed=0) * torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    ends = others[:50] + normal(6, seed=1)
    slow = torch.linalg.inv(others.T @ others / 5000) @ (ends.mean(dim=0) - others.mean(dim=0))
    assert torch.dot(direction(ends, others), slow / slow.norm()) > 0.98


def test_chance_is_no_loss():
    wanted = torch.arange(100) < 80
    assert not lost_beyond_chance(wanted, torch.arange(100) < 78)  # two lost
    assert lost_beyond_chance(wanted, torch.arange(100) < 60)  # twenty lost
    assert not lost_beyond_chance(wanted, torch.roll(wanted, 20))  # as many gained as lost
