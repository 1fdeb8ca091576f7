import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lep.benchmark.metrics import (
    Difference,
    Recovered,
    average,
    bootstrap,
    exact_match,
    length_ratio,
    mean_and_stderr,
    mean_estimate,
    normalise,
    paired_difference,
    ratio_and_stderr,
    ratio_estimate,
    recovered_share,
    stratified_mean,
)

COUNTS = st.integers(min_value=0, max_value=1000)


@given(text=st.text())
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_exact_match_forgives_whitespace_and_nothing_else() -> None:
    assert exact_match("  Мария  купила\tкнигу. ", "Мария купила книгу.")
    assert not exact_match("Мария купила книгу", "Мария купила книгу.")
    assert not exact_match("мария купила книгу.", "Мария купила книгу.")


@given(a=COUNTS, b=COUNTS)
def test_length_ratio_is_symmetric_and_one_only_for_equal_counts(a: int, b: int) -> None:
    assert length_ratio(a, b) == length_ratio(b, a)
    assert 0 <= length_ratio(a, b) <= 1
    assert (length_ratio(a, b) == 1) == (a == b > 0)


def test_a_token_too_many_costs_its_share() -> None:
    assert length_ratio(15, 16) == 0.9375


def test_stderr_of_shares_is_the_binomial_one() -> None:
    mean, stderr = mean_and_stderr([1] * 30 + [0] * 70)
    assert mean == 0.3
    assert stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_one_value_has_a_mean_and_no_stderr() -> None:
    mean, stderr = mean_and_stderr([0.5])
    assert mean == 0.5 and math.isnan(stderr)
    with pytest.raises(ValueError, match="at least one value"):
        mean_and_stderr([])


def test_ratio_of_equal_units_is_the_mean() -> None:
    values = [1.0, 2.0, 4.0, 7.0]
    assert ratio_and_stderr(values, [1.0] * 4) == pytest.approx(mean_and_stderr(values))


def test_ratio_without_noise_has_no_error() -> None:
    ratio, stderr = ratio_and_stderr([2.0, 20.0, 6.0], [1.0, 10.0, 3.0])
    assert (ratio, stderr) == pytest.approx((2.0, 0.0))


def test_ratio_stderr_agrees_with_a_bootstrap_over_units() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 500, size=200)
    totals = sizes * rng.normal(1.3, 0.3, size=200)
    draws = rng.integers(0, 200, size=(4000, 200))
    bootstrap = (totals[draws].sum(1) / sizes[draws].sum(1)).std()
    assert ratio_and_stderr(totals, sizes.tolist())[1] == pytest.approx(bootstrap, rel=0.1)


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_paired_difference_changes_sign_with_the_order(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (mean_estimate(values, name="task") for values in zip(*pairs, strict=True))
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.difference == pytest.approx(-back.difference)
    assert forth.low == pytest.approx(-back.high) and forth.high == pytest.approx(-back.low)
    assert forth == paired_difference(a, mean_estimate([pair[1] for pair in pairs], name="task")), "the name decides"


def test_paired_interval_is_the_plain_bootstraps() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.7
    found = paired_difference(mean_estimate(a, name="x"), mean_estimate(b, name="x"))
    differences = a.astype(float) - b
    means = differences[rng.integers(0, 300, size=(4000, 300))].mean(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.012)


def test_pairing_takes_out_what_the_items_have_in_common() -> None:
    rng = np.random.default_rng(3)
    hard, slight = rng.normal(size=200), rng.normal(scale=0.1, size=200)
    a, b = mean_estimate(hard + slight, name="x"), mean_estimate(hard, name="x")
    paired, apart = paired_difference(a, b), paired_difference(a, mean_estimate(hard, name="y"))
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)


def test_a_bootstrap_knows_the_error_of_means_and_ratios_and_draws_within_strata() -> None:
    rng = np.random.default_rng(0)
    values, sizes = rng.random(200), rng.integers(1, 9, 200)
    mean = mean_estimate(values, name="x")
    assert (mean.value, mean.stderr) == pytest.approx(mean_and_stderr(values), rel=0.06)
    ratio = ratio_estimate(values * sizes, sizes, name="x")
    assert (ratio.value, ratio.stderr) == pytest.approx(ratio_and_stderr(values * sizes, sizes), rel=0.06)
    assert math.isnan(mean_estimate([1.0], name="x").stderr)
    kinds = np.arange(200) % 4
    counted = bootstrap(lambda places: float(np.ptp(np.bincount(kinds[places]))), [*kinds], name="x")
    assert not counted.replicates.any(), "each stratum is drawn as often as it is large"


def test_an_average_of_independent_figures_has_the_error_of_a_sum() -> None:
    rng = np.random.default_rng(0)
    parts = [mean_estimate(rng.random(100), name=str(i)) for i in range(8)]
    whole = average(parts)
    assert whole.value == pytest.approx(np.mean([part.value for part in parts])) and whole.n == 8
    assert whole.stderr == pytest.approx(np.linalg.norm([part.stderr for part in parts]) / 8, rel=0.1)


def test_equal_answers_are_never_beyond_the_noise() -> None:
    def difference(a: list[int], b: list[int]) -> Difference:
        return paired_difference(mean_estimate(a, name="x"), mean_estimate(b, name="x"))

    assert not difference([1, 0, 1], [1, 0, 1]).beyond_noise
    assert not difference([1] * 50 + [1], [1] * 50 + [0]).beyond_noise
    assert difference([1] * 50, [1] * 25 + [0] * 25).beyond_noise


def recovered(*values: list[float] | np.ndarray) -> Recovered | None:
    return recovered_share(*(mean_estimate(of, name="x") for of in values))  # type: ignore[arg-type]


def test_recovered_share_is_the_ratio_of_the_means_and_its_interval_the_plain_bootstraps() -> None:
    rng = np.random.default_rng(1)
    before, whole = (rng.random(120) < 0.4) * 1.0, (rng.random(120) < 0.95) * 1.0
    after = np.maximum(before, (rng.random(120) < 0.3) * whole)
    found = recovered(before, after, whole)
    assert found is not None and found.n == 120
    assert found.share == pytest.approx((after.mean() - before.mean()) / (whole.mean() - before.mean()))
    draws = np.random.default_rng(2).integers(0, 120, (4000, 120))
    shares = (after[draws].mean(1) - before[draws].mean(1)) / (whole[draws].mean(1) - before[draws].mean(1))
    np.testing.assert_allclose([found.low, found.high], np.quantile(shares, [0.025, 0.975]), atol=0.03)


def test_what_goes_all_the_way_recovers_all_and_what_stays_nothing() -> None:
    before, whole = [0.0] * 30 + [1.0] * 10, [1.0] * 40
    assert recovered(before, whole, whole).share == recovered(before, whole, whole).low == 1  # type: ignore[union-attr]
    stayed = recovered(before, before, whole)
    assert stayed is not None and (stayed.share, stayed.low, stayed.high) == (0, 0, 0)


def test_no_share_of_a_gap_that_may_be_none() -> None:
    assert recovered([1.0] * 39 + [0.0], [1.0] * 40, [1.0] * 40) is None
    assert recovered([1.0] * 40, [0.0] * 40, [0.5] * 40) is None


def test_a_group_of_one_is_taken_to_vary_as_the_others() -> None:
    groups = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0], [0.0]]
    mean, error = stratified_mean(groups)
    within = [np.var(group, ddof=1) for group in groups[:2]]
    assert mean == pytest.approx((0.5 + 0.75 + 0.0) / 3)
    assert error == pytest.approx(math.sqrt(within[0] / 4 + within[1] / 4 + np.mean(within)) / 3)
    assert stratified_mean([[1.0], [0.0], [1.0]]) == pytest.approx(mean_and_stderr([1.0, 0.0, 1.0]))
    assert stratified_mean(groups[:2])[1] == pytest.approx(
        math.hypot(*(mean_and_stderr(group)[1] for group in groups[:2])) / 2
    )
