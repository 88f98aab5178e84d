"""The t-interval on log-ratios: closed forms, invariances, two independent twins, what it covers."""

from __future__ import annotations

from math import exp, gamma, log, pi, sqrt, tan

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from tpsprune.numerics.intervals import fisher_greater, ratio_interval, slope_interval

positive = st.floats(1e-3, 1e4)
pairs = st.lists(st.tuples(positive, positive), min_size=2, max_size=8)


def twin(data: list[tuple[float, float]], confidence: float) -> tuple[float, float, float]:
    """The same from the density of Student's t: integrated, then searched for its quantile."""
    n = len(data)
    logs = [log(a) - log(b) for a, b in data]
    mean = sum(logs) / n
    deviation = sqrt(sum((x - mean) ** 2 for x in logs) / (n - 1))
    freedom = n - 1
    scale = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))

    def inside(t: float) -> float:
        return 2 * quad(lambda x: scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2), 0, t, limit=200)[0]

    quantile = brentq(lambda t: inside(t) - confidence, 0, 100)
    reach = quantile * deviation / sqrt(n)
    return exp(mean), exp(mean - reach), exp(mean + reach)


def test_two_pairs_have_the_quantile_of_cauchy() -> None:
    found = ratio_interval([(6.0, 1.0), (2.0, 1.0)])
    reach = tan(0.475 * pi) * (log(6) - log(2)) / 2
    assert found.mean == pytest.approx(sqrt(12))
    assert (found.low, found.high) == pytest.approx((sqrt(12) * exp(-reach), sqrt(12) * exp(reach)))
    assert found.count == 2


def test_three_pairs_have_the_closed_quantile_of_two_degrees_of_freedom() -> None:
    p = 0.95
    found = ratio_interval([(exp(1), 1.0), (exp(2), 1.0), (exp(3), 1.0)], confidence=2 * p - 1)
    reach = (2 * p - 1) / sqrt(2 * p * (1 - p)) / sqrt(3)
    assert (log(found.low), log(found.mean), log(found.high)) == pytest.approx((2 - reach, 2, 2 + reach))


def test_equal_ratios_leave_no_doubt() -> None:
    found = ratio_interval([(8.0, 1.0), (16.0, 2.0), (4.0, 0.5)])
    assert (found.low, found.mean, found.high) == pytest.approx((8.0, 8.0, 8.0))


def test_one_pair_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two"):
        ratio_interval([(2.0, 1.0)])


@given(pairs)
def test_swapping_the_arms_inverts_all_three(data: list[tuple[float, float]]) -> None:
    one, other = ratio_interval(data), ratio_interval([(b, a) for a, b in data])
    found = (log(one.low), log(one.mean), log(one.high))
    assert found == pytest.approx((-log(other.high), -log(other.mean), -log(other.low)), abs=1e-9)


@given(pairs, st.floats(0.1, 10.0))
def test_a_common_factor_goes_through_and_order_does_not_matter(
    data: list[tuple[float, float]], factor: float
) -> None:
    one = ratio_interval(data)
    other = ratio_interval([(a, b * factor) for a, b in reversed(data)])
    assert log(other.low) == pytest.approx(log(one.low) - log(factor), abs=1e-9)
    assert log(other.high) == pytest.approx(log(one.high) - log(factor), abs=1e-9)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("n", [2, 4, 7])
def test_it_is_the_slow_twins_and_scipys(n: int, confidence: float) -> None:
    draw = np.random.default_rng(n)
    data = [(float(a), float(b)) for a, b in draw.lognormal(1.0, 0.3, (n, 2))]
    found = ratio_interval(data, confidence)
    assert (found.mean, found.low, found.high) == pytest.approx(twin(data, confidence), rel=1e-6)
    logs = np.log([a / b for a, b in data])
    theirs = scipy.stats.ttest_1samp(logs, 0.0).confidence_interval(confidence)
    assert (log(found.low), log(found.high)) == pytest.approx((theirs.low, theirs.high))


def test_it_covers_what_it_promises_at_four_pairs() -> None:
    draw = np.random.default_rng(0)
    logs = log(3) + 0.4 * draw.standard_normal((4000, 4))
    found = [ratio_interval([(exp(x), 1.0) for x in row]) for row in logs.tolist()]
    covered = sum(interval.low <= 3 <= interval.high for interval in found) / len(found)
    assert covered == pytest.approx(0.95, abs=0.012)


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


def test_two_points_have_no_interval_of_a_slope() -> None:
    with pytest.raises(ValueError, match="at least three points"):
        slope_interval([(0.0, 1.0), (1.0, 2.0)])


def test_a_slopes_interval_covers_what_it_promises_at_five_points() -> None:
    draw = np.random.default_rng(0)
    places = [0.0, 1.0, 2.0, 3.0, 4.0]
    found = [
        slope_interval([(x, -0.5 * x + e) for x, e in zip(places, noise, strict=True)])
        for noise in (0.4 * draw.standard_normal((4000, 5))).tolist()
    ]
    covered = sum(interval.low <= -0.5 <= interval.high for interval in found) / len(found)
    assert covered == pytest.approx(0.95, abs=0.012)
