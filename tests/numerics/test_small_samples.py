"""Tests on paired values: closed forms, invariances, slow twins, and what they promise in the long run."""

from __future__ import annotations

import itertools
from math import isnan, log, sqrt

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.numerics.small_samples import (
    detectable_effect,
    fieller,
    holm,
    lower_bound,
    needed_pairs,
    sign_flip_p,
    t_p,
    t_power,
)

VALUES = st.lists(st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3), min_size=3, max_size=9)


def spread(values: list[float]) -> bool:
    return float(np.std(values)) > 1e-3


@given(VALUES.filter(spread))
def test_students_p_is_scipys(values: list[float]) -> None:
    assert t_p(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0.0).pvalue, rel=1e-9)


def test_values_that_are_all_alike_are_certain_or_say_nothing() -> None:
    assert (t_p([0.3, 0.3, 0.3]), t_p([0.0, 0.0, 0.0])) == (0.0, 1.0)
    assert lower_bound([0.3, 0.3]) == pytest.approx(0.3)


def test_ratios_that_are_alike_but_for_rounding_are_alike() -> None:
    assert t_p([log(0.3 / 0.1), log(3.0), log(0.9 / 0.3)]) == 0.0


@given(VALUES)
def test_sign_flips_are_those_of_a_slow_twin(values: list[float]) -> None:
    observed = abs(sum(values)) * (1 - 1e-12)
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert sign_flip_p(values) == pytest.approx(sum(each >= observed for each in sums) / len(sums))


@given(VALUES, st.floats(0.01, 100))
def test_sign_flips_see_neither_scale_nor_side(values: list[float], scale: float) -> None:
    assert sign_flip_p([scale * value for value in values]) == pytest.approx(sign_flip_p(values))
    assert sign_flip_p([-value for value in values]) == sign_flip_p(values)


@pytest.mark.parametrize(("pairs", "least"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_the_least_p_of_sign_flips_is_two_to_the_one_minus_n(pairs: int, least: float) -> None:
    assert sign_flip_p([1.0] * pairs) == least


def test_many_pairs_draw_their_signs_and_come_near_the_exact_share() -> None:
    values = [0.1 * k - 0.55 for k in range(17)]
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=17)))
    exact = float((np.abs(signs @ values) >= abs(sum(values)) * (1 - 1e-12)).mean())
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.005)
    assert sign_flip_p(values) == sign_flip_p(values)


@given(VALUES.filter(spread))
def test_the_lower_bound_is_where_a_one_sided_test_turns(values: list[float]) -> None:
    bound = lower_bound(values)
    p_value = scipy.stats.ttest_1samp(values, bound, alternative="greater").pvalue
    assert p_value == pytest.approx(0.05, rel=1e-6)


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


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=6))
def test_holm_keeps_the_order_and_never_lowers_a_p(p_values: dict[str, float]) -> None:
    corrected = holm(p_values)
    assert list(corrected) == list(p_values)
    for one, two in itertools.combinations(p_values, 2):
        if p_values[one] < p_values[two]:
            assert corrected[one] <= corrected[two]
    assert all(p_values[name] <= corrected[name] <= 1 for name in p_values)


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
