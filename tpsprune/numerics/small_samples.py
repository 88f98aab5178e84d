"""What a few paired numbers show: t-intervals, Student's test, sign flips, power, several claims, ratios.

Ratios of costs are skewed and multiply; their logarithms are nearly normal and add. With the few pairs
that a study has, Student's t on log-ratios covers what it promises; a percentile bootstrap covers too little.

Letters: n pairs, d their log-ratios, m their mean, s their sample deviation.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, comb, exp, log, log1p, nan, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

MOST_PAIRS: Final = 1000
EXACT_PAIRS: Final = 16
"""Pairs up to which every sign pattern is tried; beyond, ``SAMPLED_PATTERNS`` are sampled."""
SAMPLED_PATTERNS: Final = 20_000
POWER: Final = 0.8
ROUNDING: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The mean of ``count`` figures, and an interval for the true one.

    Of ratios the geometric mean; of a line's points its slope.
    """

    mean: float
    low: float
    high: float
    count: int
    confidence: float


def ratio_interval(pairs: Iterable[tuple[float, float]], confidence: float = 0.95) -> Interval:
    """Return the geometric mean of a/b over pairs (a, b) of positive numbers, with its t-interval.

    With x_i = ln(a_i / b_i), their mean m and sample deviation s over n pairs:
    exp(m ± t(n − 1, (1 + confidence) / 2) · s / √n).

    Swapping a and b inverts all three numbers; a common factor on all b divides them by it. Does not see the
    order of pairs, nor how large a and b are. At least two pairs: one has no deviation.

    Source: Student 1908, "The Probable Error of a Mean".

    >>> ratio_interval([(8.0, 1.0), (2.0, 1.0)]).mean
    4.0
    """
    logs = mean_interval((log(a / b) for a, b in pairs), confidence)
    mean, low, high = exp(logs.mean), exp(logs.low), exp(logs.high)
    return Interval(mean=mean, low=low, high=high, count=logs.count, confidence=confidence)


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Return the mean m of n ≥ 2 numbers, and m ± t(n − 1, (1 + confidence) / 2) · s / √n.

    For numbers that are about normal; it sees neither their order nor which belong together.

    Source: Student 1908, "The Probable Error of a Mean".

    >>> mean_interval([1.0, 3.0]).mean
    2.0
    """
    found = list(values)
    middle = statistics.fmean(found)
    quantile = _t_quantile(len(found) - 1, (1 + confidence) / 2)
    reach = quantile * statistics.stdev(found) / sqrt(len(found))
    return Interval(
        mean=middle, low=middle - reach, high=middle + reach, count=len(found), confidence=confidence
    )


def slope_interval(points: Iterable[tuple[float, float]], confidence: float = 0.95) -> Interval:
    """Return the least-squares slope of y on x over n ≥ 3 points (x, y), with its t-interval.

    With S = Σ (x − x̄)² and r what the line leaves of y: b = Σ (x − x̄)(y − ȳ) / S, and b ± t(n − 2, (1 +
    confidence) / 2) · √(Σ r² / ((n − 2) S)). On logarithms b is the exponent of a power law. A constant added
    to x or y changes nothing. It sees no bend: of a curve it gives the mean slope, and an interval that does
    not see the bend. All x alike have no slope, and two points no interval.

    Source: Student 1908 and Fisher 1922, "The goodness of fit of regression formulae".

    >>> slope_interval([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]).mean
    2.0
    """
    xs, ys = zip(*points, strict=True)
    if len(xs) < 3:
        raise ValueError("a slope's interval requires at least three points")
    slope, intercept = statistics.linear_regression(xs, ys)
    left = sum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    middle = statistics.fmean(xs)
    spread = sum((x - middle) ** 2 for x in xs)
    quantile = _t_quantile(len(xs) - 2, (1 + confidence) / 2)
    reach = quantile * sqrt(left / ((len(xs) - 2) * spread))
    return Interval(mean=slope, low=slope - reach, high=slope + reach, count=len(xs), confidence=confidence)


def fisher_greater(hits: int, tried: int, others: int, others_tried: int) -> float:
    """Return how likely so many hits or more are, were they as common as among the others.

    Σ_k C(m, k) C(n, h − k) / C(m + n, h) over k ≥ ``hits``, m and n the two numbers tried, h all hits.

    Source: Fisher 1935, "The Design of Experiments": the exact test, one-sided.

    >>> fisher_greater(3, 3, 0, 3)
    0.05
    """
    all_hits = hits + others
    ways = sum(
        comb(tried, k) * comb(others_tried, all_hits - k) for k in range(hits, min(tried, all_hits) + 1)
    )
    return ways / comb(tried + others_tried, all_hits)


def t_p(values: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's test that n ≥ 2 values have mean zero: 2 · P(T > |m|√n / s).

    Without any deviation: 0, or 1 where all are zero. For values that are about normal.

    Source: Student 1908, "The Probable Error of a Mean".

    >>> t_p([1.0, -1.0])
    1.0
    """
    from scipy.special import stdtr

    mean, reach = statistics.fmean(values), _standard_error(values)
    if reach == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2.0 * stdtr(len(values) - 1, -abs(mean) / reach))


def sign_flip_p(values: Sequence[float]) -> float:
    """Return the two-sided p-value of the sign-flip test: the share of sign patterns whose |mean| is no less.

    Under the null each value is as likely with the other sign; no shape is assumed. The least that n values
    can give is 2^(1 − n): six are the fewest that can be below 0.05. Exact up to 16 values, thereafter
    (1 + hits) / (1 + 20,000) of patterns sampled from a fixed seed.

    Source: Fisher 1935, "The Design of Experiments", section 21.

    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    value_n = np.asarray(values, dtype=np.float64)
    observed = abs(value_n.sum()) * (1.0 - ROUNDING)
    hit_p = np.abs(_signs(len(value_n)) @ value_n) >= observed
    if len(value_n) <= EXACT_PAIRS:
        return float(hit_p.mean())
    return (1 + int(hit_p.sum())) / (1 + SAMPLED_PATTERNS)


@cache
def _signs(count: int) -> NDArray[np.float64]:
    """Return sign patterns, a row each: all of them but for the mirrored half, or so many sampled ones."""
    if count <= EXACT_PAIRS:
        bit_pn = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1
        return np.asarray(1.0 - 2.0 * bit_pn, dtype=np.float64)
    return np.random.default_rng(0).choice((-1.0, 1.0), size=(SAMPLED_PATTERNS, count))


def lower_bound(values: Sequence[float], confidence: float = 0.95) -> float:
    """Return the one-sided lower bound of the mean of n ≥ 2 values: m − t(n − 1, confidence) · s / √n.

    >>> lower_bound([1.0, 1.0, 1.0])
    1.0
    """
    quantile = _t_quantile(len(values) - 1, confidence)
    return statistics.fmean(values) - quantile * _standard_error(values)


def t_power(effect: float, deviation: float, pairs: int, alpha: float = 0.05) -> float:
    """Return how often ``pairs`` pairs of true mean ``effect`` give p < α on its side: a noncentral t.

    1 − F(t(n − 1, 1 − α/2); n − 1, δ√n / σ), with δ the effect and σ the deviation of a log-ratio.

    >>> round(t_power(0.105, 0.113, 10), 2)
    0.74
    """
    from scipy.special import nctdtr

    if deviation == 0.0:
        return 1.0 if effect else alpha / 2
    critical = _t_quantile(pairs - 1, 1 - alpha / 2)
    return float(1.0 - nctdtr(pairs - 1, abs(effect) * sqrt(pairs) / deviation, critical))


def detectable_effect(deviation: float, pairs: int, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the least mean log-ratio that so many pairs show with that power; see ``t_power``.

    >>> round(detectable_effect(0.1, 6), 3)
    0.143
    """
    from scipy.special import nctdtrinc

    critical = _t_quantile(pairs - 1, 1 - alpha / 2)
    return float(nctdtrinc(pairs - 1, 1.0 - power, critical)) * deviation / sqrt(pairs)


def needed_pairs(saving_share: float, deviation: float, least: int) -> int | None:
    """Return the fewest pairs, ``least`` or more, with which a saving is claimed with power 0.8.

    Claimed is what is also no smaller than the effect that so many pairs detect with power 0.8, which is
    stricter than p < 0.05: P(T ≥ t′) ≥ 0.8 with T noncentral as in ``t_power`` and t′ the detectable effect
    over s/√n. For one claim and one test; sign flips, which seldom decide, are left out. ``None`` above 1,000
    pairs.

    >>> needed_pairs(0.2, 0.113, 6), needed_pairs(0.1, 0.113, 6)
    (6, 18)
    """
    from scipy.special import nctdtr

    effect = -log1p(-saving_share)
    if deviation <= ROUNDING:
        return least
    for pairs in range(least, MOST_PAIRS + 1):
        scale = sqrt(pairs) / deviation
        wanted = detectable_effect(deviation, pairs) * scale
        if 1.0 - nctdtr(pairs - 1, effect * scale, wanted) >= POWER:
            return pairs
    return None


def fewest_without_long_runs(saving_share: float, missed_at_most: float) -> int:
    """Return the fewest n that lack a kind of run which would reverse a saving with at most that probability.

    Were a share q of the runs twice as long, the mean would rise to 1 + q: q = s / (1 − s) reverses a saving
    s, and n runs lack such ones with a probability of (1 − q)ⁿ.

    >>> [fewest_without_long_runs(share, 0.05) for share in (0.1, 0.2, 0.3, 0.5)]
    [26, 11, 6, 1]
    """
    reversing_share = saving_share / (1.0 - saving_share)
    return 1 if reversing_share >= 1.0 else ceil(log(missed_at_most) / log1p(-reversing_share))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for being several: the chance of any false claim is below α.

    The k-th smallest of m is multiplied by m − k + 1, kept ascending and at most 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - rank)))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


@dataclass(frozen=True, slots=True)
class Bounds:
    """A ratio and its interval; all three are NaN where the data do not bound it."""

    ratio: float
    low: float
    high: float


def fieller(tops: Sequence[float], bottoms: Sequence[float], confidence: float = 0.95) -> Bounds:
    """Return mean(tops) / mean(bottoms) over n ≥ 2 pairs with Fieller's interval, for bottoms above zero.

    With means a, b, variances of the means v_a, v_b, covariance c, and t = t(n − 1, (1 + confidence) / 2):
    the roots q of (a − q b)² = t² (v_a − 2 q c + q² v_b). Where b is not beyond doubt above zero, that is
    b² ≤ t² v_b or b ≤ 0, nothing bounds the ratio: three NaN.

    Source: Fieller 1954, "Some problems in interval estimation".

    >>> fieller([2.0, 2.0], [1.0, 1.0])
    Bounds(ratio=2.0, low=2.0, high=2.0)
    """
    count = len(tops)
    top, bottom = statistics.fmean(tops), statistics.fmean(bottoms)
    square = _t_quantile(count - 1, (1 + confidence) / 2) ** 2
    top_variance = statistics.variance(tops) / count
    bottom_variance = statistics.variance(bottoms) / count
    covariance = statistics.covariance(tops, bottoms) / count
    lead = bottom**2 - square * bottom_variance
    if bottom <= 0 or lead <= 0:
        return Bounds(nan, nan, nan)
    middle = top * bottom - square * covariance
    root = sqrt(max(middle**2 - lead * (top**2 - square * top_variance), 0.0))
    return Bounds(top / bottom, (middle - root) / lead, (middle + root) / lead)


def _t_quantile(freedom: int, share: float) -> float:
    # Here, because importing it takes longer than most commands.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def _standard_error(values: Sequence[float]) -> float:
    deviation = statistics.stdev(values)
    # Equal numbers differ by rounding after a logarithm; that is no evidence of anything.
    floor = ROUNDING * max(1.0, *map(abs, values))
    return 0.0 if deviation <= floor else deviation / sqrt(len(values))
