"""Intervals and tests on a few paired numbers: closed forms, invariances, and scipy."""

from __future__ import annotations

import itertools
from math import exp, isnan, log, pi, sqrt, tan

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.numerics.small_samples import (
    detectable_effect,
    fieller,
    fisher_greater,
    holm,
    lower_bound,
    needed_pairs,
    ratio_interval,
    sign_flip_p,
    slope_interval,
    t_p,
    t_power,
)

VALUES = st.lists(st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3), min_size=3, max_size=9)


def spread(values: list[float]) -> bool:
    return float(np.std(values)) > 1e-3


@pytest.mark.parametrize(("pairs", "least"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_the_least_p_of_sign_flips_is_two_to_the_one_minus_n(pairs: int, least: float) -> None:
    assert sign_flip_p([1.0] * pairs) == least


def test_many_pairs_draw_their_signs_and_come_near_the_exact_share() -> None:
    values = [0.1 * k - 0.55 for k in range(17)]
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=17)))
    exact = float((np.abs(signs @ values) >= abs(sum(values)) * (1 - 1e-12)).mean())
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.005)
    assert sign_flip_p(values) == sign_flip_p(values)


@pytest.mark.parametrize(
    ("cv", "saving", "pairs", "expected"),
    [
        (0.08, 0.1, 20, 0.98),
        (0.08, 0.1, 10, 0.74),
        (0.08, 0.2, 5, 0.91),
        (0.02, 0.05, 5, 0.86),
        (0.15, 0.2, 10, 0.85),
    ],
)
def test_power_is_that_of_the_published_simulation(
    cv: float, saving: float, pairs: int, expected: float
) -> None:
    assert t_power(log(1 - saving), cv * sqrt(2), pairs) == pytest.approx(expected, abs=0.012)


def test_the_detectable_effect_is_seen_with_power_four_fifths() -> None:
    for pairs in (5, 6, 10, 40):
        assert t_power(detectable_effect(0.1, pairs), 0.1, pairs) == pytest.approx(0.8, abs=1e-6)
    assert detectable_effect(0.2, 6) == pytest.approx(2 * detectable_effect(0.1, 6))


def test_needed_pairs_are_the_fewest_that_have_the_power() -> None:
    needed = needed_pairs(0.1, 0.113, 6)
    assert needed is not None
    assert claimed(log(0.9), 0.113, needed) >= 0.78
    assert claimed(log(0.9), 0.113, needed - 2) < 0.8
    assert needed_pairs(0.5, 0.01, 6) == needed_pairs(0.4, 1e-17, 6) == 6
    assert needed_pairs(0.001, 1.0, 6) is None


def claimed(effect: float, deviation: float, pairs: int) -> float:
    """Return how often so many pairs show the effect, and one no smaller than what they detect."""
    random = np.random.default_rng(5)
    logs_wn = effect + deviation * random.standard_normal((20000, pairs))
    means, deviations = logs_wn.mean(1), logs_wn.std(1, ddof=1)
    factor = detectable_effect(1.0, pairs)
    return float((-means >= factor * deviations).mean())


def test_holm_is_his_own_example_and_one_claim_is_left_alone() -> None:
    assert holm({"a": 0.01, "b": 0.02, "c": 0.04}) == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.04})
    assert holm({"only": 0.04}) == {"only": 0.04}


def test_fieller_of_a_sure_bottom_is_the_interval_of_the_top() -> None:
    tops = [9.0, 10.0, 11.0, 12.0]
    bounds = fieller(tops, [2.0] * 4)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(tops), scipy.stats.sem(tops))
    assert (bounds.low, bounds.high) == pytest.approx((low / 2, high / 2))


def test_fieller_bounds_the_ratio_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    tops = random.normal(10, 2, (2000, 6))
    bottoms = random.normal(4, 0.5, (2000, 6))
    bounds = [fieller(list(top), list(bottom)) for top, bottom in zip(tops, bottoms, strict=True)]
    assert np.mean([each.low <= 2.5 <= each.high for each in bounds]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("bottoms", [[-1.0, -1.1, -0.9], [0.1, -0.1, 0.2]])
def test_fieller_has_no_bounds_where_the_bottom_is_not_above_zero_beyond_doubt(
    bottoms: list[float],
) -> None:
    assert isnan(fieller([1.0, 2.0, 3.0], bottoms).ratio)


positive = st.floats(1e-3, 1e4)
ratios = st.lists(st.tuples(positive, positive), min_size=2, max_size=8)


def test_two_pairs_have_the_quantile_of_cauchy() -> None:
    found = ratio_interval([(6.0, 1.0), (2.0, 1.0)])
    reach = tan(0.475 * pi) * (log(6) - log(2)) / 2
    assert found.mean == pytest.approx(sqrt(12))
    assert (found.low, found.high) == pytest.approx((sqrt(12) * exp(-reach), sqrt(12) * exp(reach)))
    assert found.count == 2


@given(ratios)
def test_swapping_the_arms_inverts_all_three(data: list[tuple[float, float]]) -> None:
    one, other = ratio_interval(data), ratio_interval([(b, a) for a, b in data])
    found = (log(one.low), log(one.mean), log(one.high))
    assert found == pytest.approx((-log(other.high), -log(other.mean), -log(other.low)), abs=1e-9)


@given(ratios, st.floats(0.1, 10.0))
def test_a_common_factor_multiplies_the_result_and_order_does_not_matter(
    data: list[tuple[float, float]], factor: float
) -> None:
    one = ratio_interval(data)
    other = ratio_interval([(a, b * factor) for a, b in reversed(data)])
    assert log(other.low) == pytest.approx(log(one.low) - log(factor), abs=1e-9)
    assert log(other.high) == pytest.approx(log(one.high) - log(factor), abs=1e-9)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("n", [2, 4, 7])
def test_it_is_scipys(n: int, confidence: float) -> None:
    draw = np.random.default_rng(n)
    data = [(float(a), float(b)) for a, b in draw.lognormal(1.0, 0.3, (n, 2))]
    found = ratio_interval(data, confidence)
    logs = np.log([a / b for a, b in data])
    assert log(found.mean) == pytest.approx(logs.mean())
    theirs = scipy.stats.ttest_1samp(logs, 0.0).confidence_interval(confidence)
    assert (log(found.low), log(found.high)) == pytest.approx((theirs.low, theirs.high))


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_the_exact_test_is_that_of_scipy(hits: int, tried: int, others: int, others_tried: int) -> None:
    hits, others = min(hits, tried), min(others, others_tried)
    table = [[hits, tried - hits], [others, others_tried - others]]
    expected = scipy.stats.fisher_exact(table, alternative="greater").pvalue
    assert fisher_greater(hits, tried, others, others_tried) == pytest.approx(expected)


def test_three_points_have_the_slope_and_the_quantile_of_cauchy() -> None:
    found = slope_interval([(-1.0, 1.0), (0.0, 0.0), (1.0, 3.0)])
    # Slope 1, intercept 4/3; the line leaves 2/3, -4/3, 2/3: squares 8/3 on one degree of freedom, S = 2.
    reach = tan(0.475 * pi) * sqrt(8 / 3 / 2)
    assert (found.low, found.mean, found.high) == pytest.approx((1 - reach, 1, 1 + reach))
    assert found.count == 3


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
def test_shifts_leave_a_slope_alone_and_a_line_leaves_no_doubt(slope: float, x: float, y: float) -> None:
    found = slope_interval([(x + place, y + slope * place) for place in (0.0, 1.0, 2.0, 4.0)])
    assert (found.low, found.mean, found.high) == pytest.approx((slope, slope, slope), abs=1e-6)


def test_a_slope_is_scipys() -> None:
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal((2, 9))
    found, theirs = slope_interval(zip(x.tolist(), y.tolist(), strict=True)), scipy.stats.linregress(x, y)
    reach = scipy.stats.t.ppf(0.975, 7) * theirs.stderr
    assert found.mean == pytest.approx(theirs.slope)
    assert found.high - found.mean == pytest.approx(reach)


def test_too_few_numbers_have_no_interval_and_equal_ones_leave_no_doubt() -> None:
    with pytest.raises(ValueError, match="at least two"):
        ratio_interval([(2.0, 1.0)])
    with pytest.raises(ValueError, match="at least three points"):
        slope_interval([(0.0, 1.0), (1.0, 2.0)])
    found = ratio_interval([(8.0, 1.0), (16.0, 2.0), (4.0, 0.5)])
    assert (found.low, found.mean, found.high) == pytest.approx((8.0, 8.0, 8.0))
    assert (t_p([0.3, 0.3, 0.3]), t_p([0.0, 0.0, 0.0])) == (0.0, 1.0)
    assert t_p([log(0.3 / 0.1), log(3.0), log(0.9 / 0.3)]) == 0.0, "alike but for rounding"
    assert lower_bound([0.3, 0.3]) == pytest.approx(0.3)


@given(VALUES.filter(spread))
def test_students_p_and_the_lower_bound_are_scipys(values: list[float]) -> None:
    assert t_p(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0.0).pvalue, rel=1e-9)
    one_sided = scipy.stats.ttest_1samp(values, lower_bound(values), alternative="greater")
    assert one_sided.pvalue == pytest.approx(0.05, rel=1e-6)


@given(VALUES, st.floats(0.01, 100))
def test_sign_flips_are_those_of_a_slow_twin_and_see_neither_scale_nor_side(
    values: list[float], scale: float
) -> None:
    sums_p = np.abs(np.array(list(itertools.product((1, -1), repeat=len(values)))) @ values)
    share = float((sums_p >= abs(sum(values)) * (1 - 1e-12)).mean())
    assert sign_flip_p(values) == pytest.approx(share)
    assert sign_flip_p([-scale * value for value in values]) == pytest.approx(share)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_keeps_the_order_and_never_lowers_a_p(values: list[float]) -> None:
    p_values = {str(place): value for place, value in enumerate(values)}
    corrected = holm(p_values)
    assert list(corrected) == list(p_values)
    for one, two in itertools.combinations(p_values, 2):
        assert p_values[one] >= p_values[two] or corrected[one] <= corrected[two]
    assert all(p_values[name] <= corrected[name] <= 1 for name in p_values)
