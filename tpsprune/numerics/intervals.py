"""Means of a few numbers, of paired ratios, and slopes of lines, each with its t-interval.

Ratios of costs are skewed and multiply; their logarithms are nearly normal and add. With the few pairs
that a study has, Student's t on log-ratios covers what it promises; a percentile bootstrap covers too little.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from math import comb, exp, log, sqrt

__all__ = ["Interval", "fisher_greater", "mean_interval", "ratio_interval", "slope_interval"]


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
    return Interval(
        mean=exp(logs.mean),
        low=exp(logs.low),
        high=exp(logs.high),
        count=logs.count,
        confidence=confidence,
    )


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Return the mean m of n ≥ 2 numbers, and m ± t(n − 1, (1 + confidence) / 2) · s / √n.

    For numbers that are about normal; it sees neither their order nor which belong together.

    Source: Student 1908, "The Probable Error of a Mean".

    >>> mean_interval([1.0, 3.0]).mean
    2.0
    """
    from scipy.special import stdtrit

    found = list(values)
    middle = statistics.fmean(found)
    quantile = float(stdtrit(len(found) - 1, (1 + confidence) / 2))
    reach = quantile * statistics.stdev(found) / sqrt(len(found))
    return Interval(
        mean=middle, low=middle - reach, high=middle + reach, count=len(found), confidence=confidence
    )


def slope_interval(points: Iterable[tuple[float, float]], confidence: float = 0.95) -> Interval:
    """Return the least-squares slope of y on x over n ≥ 3 points (x, y), with its t-interval.

    With S = Σ (x − x̄)² and r what the line leaves of y: b = Σ (x − x̄)(y − ȳ) / S, and
    b ± t(n − 2, (1 + confidence) / 2) · √(Σ r² / ((n − 2) S)). On logarithms b is the
    exponent of a power law. A constant added to x or y changes nothing. It sees no bend: of a curve it gives
    the mean slope, and an interval that says nothing of the bend. All x alike have no slope, and two points
    no interval.

    Source: Student 1908 and Fisher 1922, "The goodness of fit of regression formulae".

    >>> slope_interval([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]).mean
    2.0
    """
    from scipy.special import stdtrit

    xs, ys = zip(*points, strict=True)
    if len(xs) < 3:
        raise ValueError("a slope's interval requires at least three points")
    slope, intercept = statistics.linear_regression(xs, ys)
    left = sum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    middle = statistics.fmean(xs)
    spread = sum((x - middle) ** 2 for x in xs)
    quantile = float(stdtrit(len(xs) - 2, (1 + confidence) / 2))
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
