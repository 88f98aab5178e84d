"""An order parameter on its way up and down: where it rises, how sharply, whether it comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log10
from typing import Final

__all__ = ["Loop", "loop_of"]

LEAST_RISE: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """What a ramp up and down says; shares are of the rise from the first reading to the one at the top.

    ``rise`` and ``fall`` are the λ at which half of it is crossed on the way up and on the way down, where it
    is; ``width_decades`` is what lies between a tenth and nine tenths of it on the way up, ``jump_share`` the
    most of it between two neighbouring λ, ``area`` the mean of down less up over log λ, 1 where the rise
    stands at the very top and nothing ever comes back.
    """

    low: float
    high: float
    rise: float | None
    fall: float | None
    width_decades: float | None
    jump_share: float
    area: float


def loop_of(couplings: Sequence[float], orders: Sequence[float]) -> Loop | None:
    """Return the loop of an order parameter read at couplings that rise to a top and return the same way.

    Between readings it is taken to be linear in log λ. None where it rises by less than 0.05: there is
    nothing to time. Invariant under scaling and shifting the order, but for that; λ scales with λ.
    """
    top = len(couplings) // 2
    places = [log10(coupling) for coupling in couplings[: top + 1]]
    up, down = list(orders[: top + 1]), list(orders[top:])[::-1]
    low, high = up[0], up[-1]
    if high - low < LEAST_RISE:
        return None
    up, down = ([(order - low) / (high - low) for order in way] for way in (up, down))
    first, last = (_crossing(places, up, level) for level in (0.1, 0.9))
    rise, fall = _crossing(places, up, 0.5), _crossing(places[::-1], [1 - each for each in down[::-1]], 0.5)
    gaps = [late - early for early, late in zip(up, down, strict=True)]
    return Loop(
        low=low,
        high=high,
        rise=None if rise is None else float(10**rise),
        fall=None if fall is None else float(10**fall),
        width_decades=None if first is None or last is None else last - first,
        jump_share=max(after - before for before, after in pairwise(up)),
        area=_mean_over(places, gaps),
    )


def _crossing(places: Sequence[float], shares: Sequence[float], level: float) -> float | None:
    """Return where the shares first reach the level, in their order."""
    for rank in range(1, len(shares)):
        before, after = shares[rank - 1], shares[rank]
        if before < level <= after:
            part = (level - before) / (after - before)
            return places[rank - 1] + part * (places[rank] - places[rank - 1])
    return None


def _mean_over(places: Sequence[float], values: Sequence[float]) -> float:
    """Return the mean by trapezoids."""
    pieces = (
        (places[rank] - places[rank - 1]) * (values[rank] + values[rank - 1]) / 2
        for rank in range(1, len(places))
    )
    return sum(pieces) / (places[-1] - places[0])
