"""Straight lines between two models' weights, and the barrier of a curve along one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan

from torch import Tensor

POINTS = 11
"""Places on a line at which a curve is read, both ends included."""
ROUNDING = 1e-12


def state_between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the state so far on the straight line from one to the other; whole numbers are the end's."""
    return {
        name: tensor.lerp(end[name], share) if tensor.is_floating_point() else end[name]
        for name, tensor in start.items()
    }


def barrier(values: Sequence[float]) -> float:
    """Return by how much a curve rises above the line between its ends, at equal steps; 0 where it does not.

    What is within rounding of the line is on it.

    NaN where a value is not finite.

    >>> barrier([0.0, 0.5, 1.0]), barrier([0.0, 1.0, 1.0])
    (0.0, 0.5)

    Source: Frankle et al. 2020 (arXiv 1912.05671), section 2, there above the mean of both ends.
    """
    if not all(map(isfinite, values)):
        return nan
    last = len(values) - 1
    rises = [
        value - ((last - place) * values[0] + place * values[-1]) / last for place, value in enumerate(values)
    ]
    rise = max(rises)
    return rise if rise > ROUNDING * max(map(abs, values)) else 0.0
