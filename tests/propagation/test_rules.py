"""Laws of the four rules, against slow and obvious versions in float64."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_models import identity_operator, random_operator
from torch import Tensor
from torch.testing import assert_close

from lep.propagation import Rule
from lep.propagation.conversion import conversion
from lep.propagation.delta import delta
from lep.propagation.overlap import overlap
from lep.propagation.swap import swap
from lep.shards import in_memory
from lep.vocabulary import SubtokenOperator

TINY = 1e-12  # a ridge that is none
FITTED = {"overlap": overlap, "conversion": conversion}


def rules(ridge: float) -> dict:
    """Every rule as `propagate` calls it, its result read into memory."""
    fitted = {name: partial(rule, ridge=ridge) for name, rule in FITTED.items()}
    return {name: partial(whole, rule) for name, rule in ({"swap": swap, "delta": delta} | fitted).items()}


def whole(rule: Rule, *tables_and_operator, **options) -> tuple[Tensor, dict]:
    result, diagnostics = rule(*tables_and_operator, **options)
    return in_memory(result), diagnostics


def table(rows: int, hidden: int = 8, *, seed: int) -> Tensor:
    return torch.randn(rows, hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def near_identity(hidden: int = 8, *, seed: int = 9) -> Tensor:
    return torch.eye(hidden, dtype=torch.float64) + 0.3 * table(hidden, hidden, seed=seed)


def dense(operator: SubtokenOperator) -> Tensor:
    return torch.from_numpy(operator.weights.toarray()).double()


@pytest.mark.parametrize("name", ["swap", "overlap", "conversion", "delta"])
@pytest.mark.parametrize("ridge", [TINY, 1e-3, 10.0])
@pytest.mark.parametrize("old", [5, 40])  # 5 rows leave most directions of 8 undetermined
def test_an_instruct_model_equal_to_its_base_swaps(name, ridge, old):
    adapted, base, operator = table(60, seed=0), table(old, seed=1), random_operator(60, old, shared=old)
    result, _ = rules(ridge)[name](adapted, base, base, operator)
    assert_close(result, adapted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["overlap", "conversion"])
def test_a_mapped_instruct_model_comes_back_when_nothing_was_adapted(name):
    base = table(40, seed=1)
    instruct = base @ near_identity()
    result, _ = rules(TINY)[name](base, base, instruct, identity_operator(40, specials=3))
    assert_close(result, instruct, rtol=1e-7, atol=1e-7)
    loosely, _ = rules(1e-3)[name](base, base, instruct, identity_operator(40, specials=3))
    assert (loosely - instruct).norm() < 0.01 * (instruct - base).norm()


def test_delta_gives_any_instruct_model_back_when_nothing_was_adapted():
    base, instruct = table(40, seed=1), table(40, seed=2)
    result, _ = whole(delta, base, base, instruct, identity_operator(40))
    assert_close(result, instruct, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["overlap", "conversion"])
@given(seed=st.integers(0, 10**6), hidden=st.integers(1, 12))
@settings(max_examples=10, deadline=None)
def test_a_known_map_is_recovered_and_explains_everything(name, seed, hidden):
    operator = random_operator(70, 50, shared=45, specials=2, seed=seed)
    adapted, base = table(70, hidden, seed=seed), table(50, hidden, seed=seed + 1)
    known = near_identity(hidden, seed=seed + 2)
    result, found = rules(TINY)[name](adapted, base, base @ known, operator)
    assert_close(result, adapted @ known, rtol=1e-6, atol=1e-6)
    assert found["held_out_r2_of_change"] == pytest.approx(1, abs=1e-6)
    assert found["held_out_r2"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["overlap", "conversion"])
def test_without_a_ridge_the_maps_are_those_of_lstsq(name):
    operator = random_operator(70, 50, shared=40, specials=2)
    adapted, base, instruct = table(70, seed=0), table(50, seed=1), table(50, seed=2)
    if name == "overlap":
        left, right = base[2:40], instruct[2:40]
    else:
        left, right = (dense(operator) @ old for old in (base, instruct))
        left, right = left[2:], right[2:]
    expected = adapted @ torch.linalg.lstsq(left, right, driver="gelsd").solution
    result, _ = rules(TINY)[name](adapted, base, instruct, operator)
    assert_close(result, expected, rtol=1e-8, atol=1e-8)


def test_the_ridge_minimises_what_it_says():
    operator = random_operator(70, 50, shared=40)
    adapted, base, instruct = torch.eye(8, dtype=torch.float64).repeat(9, 1)[:70], table(50, seed=1), table(50, seed=2)
    mapped, found = whole(overlap, adapted, base, instruct, operator, ridge=0.5)
    mean_diagonal = base[:40].square().sum() / 8
    assert found["ridge_added"] == pytest.approx(0.5 * mean_diagonal.item())
    one = torch.eye(8, dtype=torch.float64)
    stacked = torch.cat([base[:40], found["ridge_added"] ** 0.5 * one])
    target = torch.cat([instruct[:40], found["ridge_added"] ** 0.5 * one])  # towards the identity, not towards zero
    assert_close(mapped[:8], torch.linalg.lstsq(stacked, target).solution)


def test_delta_adds_the_mean_change_of_the_subtokens():
    operator = random_operator(70, 50, shared=40)
    adapted, base, instruct = table(70, seed=0), table(50, seed=1), table(50, seed=2)
    result, found = whole(delta, adapted, base, instruct, operator, chunk_rows=16)
    added = dense(operator) @ (instruct - base)
    assert_close(result, adapted + added)
    assert found["relative_addition"] == pytest.approx((added.norm() / adapted.norm()).item())


@pytest.mark.parametrize("name", ["swap", "overlap", "conversion", "delta"])
def test_rotating_the_instruct_model_rotates_the_answer(name):
    """Rotating the tune's hidden space. For swap and delta, whose answers live in the base's, all three tables turn."""
    operator = random_operator(70, 50, shared=40)
    adapted, base, instruct = table(70, seed=0), table(50, seed=1), table(50, seed=2)
    turn = torch.linalg.qr(table(8, seed=3)).Q
    rule = rules(TINY)[name]
    plain, _ = rule(adapted, base, instruct, operator)
    if name in FITTED:
        assert_close(rule(adapted, base, instruct @ turn, operator)[0], plain @ turn, rtol=1e-8, atol=1e-8)
    for ridge in (TINY, 0.1):
        rule = rules(ridge)[name]
        plain, _ = rule(adapted, base, instruct, operator)
        assert_close(
            rule(adapted @ turn, base @ turn, instruct @ turn, operator)[0], plain @ turn, rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("name", ["overlap", "conversion", "delta"])
def test_padded_and_longer_tables_change_nothing(name):
    operator = random_operator(70, 50, shared=40)
    adapted, base, instruct = table(70, seed=0), table(50, seed=1), table(50, seed=2)
    junk = 1e3 * table(6, seed=4)
    plain, _ = rules(1e-3)[name](adapted, base, instruct, operator)
    padded, _ = rules(1e-3)[name](adapted, torch.cat([base, junk]), torch.cat([instruct, junk, junk]), operator)
    assert torch.equal(plain, padded)
    longer, _ = rules(1e-3)[name](torch.cat([adapted, junk]), base, instruct, operator)
    assert_close(longer[:70], plain)
    assert longer.shape == (76, 8)


@pytest.mark.parametrize("name", ["overlap", "conversion"])
def test_untrained_rows_stay_out_of_the_fit(name):
    operator = random_operator(90, 70, shared=60, specials=2)
    adapted, base = table(90, seed=0), table(70, seed=1)
    instruct = base @ near_identity()
    base[20:25] = 1e-6 * base[20:25]
    result, found = rules(TINY)[name](adapted, base, instruct, operator)
    assert_close(result, adapted @ near_identity(), rtol=1e-6, atol=1e-6)
    spelt = (operator.weights.toarray()[2:, 20:25] > 0).any(axis=1).sum()
    assert found["excluded_untrained"] == (5 if name == "overlap" else spelt)
    assert found["rows"] == (58 if name == "overlap" else 88) - found["excluded_untrained"]


@pytest.mark.parametrize("name", ["overlap", "conversion"])
def test_special_rows_stay_out_of_the_fit(name):
    operator = random_operator(70, 50, shared=40, specials=3)
    adapted, base, instruct = table(70, seed=0), table(50, seed=1), table(50, seed=2)
    plain, _ = rules(1e-3)[name](adapted, base, instruct, operator)
    instruct[:3] += 100
    assert torch.equal(rules(1e-3)[name](adapted, base, instruct, operator)[0], plain)


def test_nothing_to_fit_on_is_an_error_that_names_the_way_out():
    operator = random_operator(20, 10, shared=0)
    with pytest.raises(ValueError, match="propagation=delta"):
        overlap(table(20, seed=0), table(10, seed=1), table(10, seed=2), operator, ridge=1e-3)


@pytest.mark.parametrize("name", ["swap", "overlap", "conversion", "delta"])
def test_bfloat16_tables_are_worked_on_in_full_precision(name):
    operator = random_operator(70, 50, shared=40)
    coarse = [table(rows, seed=seed).bfloat16() for seed, rows in enumerate((70, 50, 50))]
    result, _ = rules(1e-3)[name](*coarse, operator)
    exact, _ = rules(1e-3)[name](*(rows.double() for rows in coarse), operator)
    assert result.dtype is (torch.bfloat16 if name == "swap" else torch.float32)
    assert_close(result.double(), exact, rtol=1e-6, atol=1e-6)
