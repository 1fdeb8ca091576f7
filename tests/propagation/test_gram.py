import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_models import random_operator
from torch.testing import assert_close

from lep.propagation.gram import (
    accumulate,
    add_symmetric_,
    combined_rows,
    condition_number,
    explained,
    fit_change,
    gram,
    ridge_change,
)


def pairs_of(rows: int, hidden: int = 6, *, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    base, instruct = (torch.randn(rows, hidden, generator=generator, dtype=torch.float64) for _ in range(2))
    return base, instruct, lambda chosen: (base[torch.from_numpy(chosen)], instruct[torch.from_numpy(chosen)])


@given(rows=st.integers(1, 60), chunk_rows=st.integers(1, 70))
@settings(max_examples=20, deadline=None)
def test_chunks_change_nothing(rows, chunk_rows):
    base, instruct, pairs = pairs_of(rows)
    whole, parts = gram(base, instruct), accumulate(pairs, np.arange(rows), chunk_rows=chunk_rows)
    for name, value in vars(whole).items():
        assert_close(getattr(parts, name), value)


def test_chunks_change_neither_fit_nor_diagnostics():
    _, _, pairs = pairs_of(95)
    whole, facts = fit_change(pairs, np.arange(95), ridge=1e-3)
    parts, same = fit_change(pairs, np.arange(95), ridge=1e-3, chunk_rows=7)
    assert_close(parts, whole)
    assert same == pytest.approx(facts)


def test_nothing_is_accumulated_of_no_rows():
    assert accumulate(pairs_of(4)[2], np.arange(0)) is None


def test_explained_is_the_r2_of_the_rows_themselves():
    base, instruct, _ = pairs_of(50)
    sums = gram(base, instruct)
    change_map, _ = ridge_change(sums, ridge=1e-3)
    residual = (base + base @ change_map - instruct).square().sum()
    of_rows, of_change = explained(sums, change_map)
    assert of_rows == pytest.approx((1 - residual / (instruct - instruct.mean(0)).square().sum()).item())
    assert of_change == pytest.approx((1 - residual / (instruct - base).square().sum()).item())
    assert explained(sums, torch.zeros(6, 6, dtype=torch.float64))[1] == pytest.approx(0)


def test_the_held_out_figure_is_of_rows_the_first_fit_has_not_seen():
    base, instruct, pairs = pairs_of(40)
    unseen = torch.arange(40) % 10 == 9
    fitted = torch.linalg.lstsq(base[~unseen], instruct[~unseen]).solution
    change = (instruct - base)[unseen].square().sum()
    expected = 1 - (base[unseen] @ fitted - instruct[unseen]).square().sum() / change
    _, facts = fit_change(pairs, np.arange(40), ridge=1e-14)
    assert facts["held_out_r2_of_change"] == pytest.approx(expected.item())
    assert (facts["rows"], facts["held_out_rows"]) == (40, 4)


def test_noise_does_not_look_explained():
    """Unrelated tables: the map overfits the rows it saw, and the held-out figure says so."""
    _, _, pairs = pairs_of(60, 30)
    assert fit_change(pairs, np.arange(60), ridge=1e-3)[1]["held_out_r2"] < 0


def test_few_rows_are_told():
    _, _, pairs = pairs_of(9)
    assert fit_change(pairs, np.arange(9), ridge=1e-3)[1]["held_out_r2"] is None
    with pytest.raises(ValueError, match="ridge=0"):
        fit_change(pairs, np.arange(3), ridge=0)


def test_condition_number_is_that_of_the_gram_matrix_and_always_finite():
    base, instruct, _ = pairs_of(50)
    assert condition_number(gram(base, instruct)) == pytest.approx(torch.linalg.cond(base.T @ base).item())
    assert condition_number(gram(base[:2], instruct[:2])) == pytest.approx(2**52)


def test_condition_number_of_more_than_a_few_directions_is_an_estimate_from_below():
    spread = torch.linspace(-3, 3, 80, dtype=torch.float64).exp()
    base = torch.linalg.qr(torch.randn(200, 80, generator=torch.Generator().manual_seed(0)).double()).Q * spread
    found = condition_number(gram(base, base))
    assert found <= np.exp(12) * (1 + 1e-9)
    assert found == pytest.approx(np.exp(12), rel=0.05)
    noise, _, _ = pairs_of(400, 80)  # its eigenvalues crowd at both ends
    found, true = condition_number(gram(noise, noise)), torch.linalg.cond(noise.T @ noise).item()
    assert 0.8 * true < found <= true * (1 + 1e-9)


def test_combined_rows_are_the_rows_of_the_product():
    operator, table = random_operator(70, 50, shared=40), torch.randn(53, 6)
    rows = np.array([3, 68, 41, 3])
    expected = operator.weights.toarray().astype(np.float64) @ table[:50].double().numpy()
    assert_close(combined_rows(operator, table.double(), rows), torch.from_numpy(expected[rows]))
    assert_close(combined_rows(operator, table, rows), torch.from_numpy(expected[rows]).float())


def test_near_duplicate_rows_give_a_small_map():
    """Three directions for a thousand rows of hidden size 6, and noise in the tune: there is nothing to explain."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1000, 3, generator=generator).double() @ torch.randn(3, 6, generator=generator).double()
    instruct = base + 0.01 * torch.randn(1000, 6, generator=generator)

    def pairs(rows):
        return base[torch.from_numpy(rows)], instruct[torch.from_numpy(rows)]

    change_map, facts = fit_change(pairs, np.arange(1000), ridge=1e-3)
    assert change_map.norm() < 0.01 and facts["condition_number"] > 1e12


def test_the_symmetric_product_is_the_product(monkeypatch):
    monkeypatch.setattr("lep.propagation.gram.SYMMETRIC_COLUMNS", 4)
    rows = torch.randn(9, 11, dtype=torch.float64)
    total = torch.ones(11, 11, dtype=torch.float64)
    add_symmetric_(total, rows)
    add_symmetric_(total, rows)
    assert_close(total, 1 + 2 * rows.T @ rows)
