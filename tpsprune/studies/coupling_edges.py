"""From what couplings did to the edges of where they help: numbers in, numbers out.

Couplings lie on a grid of half decades and are named by rank k: λ = 10^(k/2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

__all__ = ["FACTOR", "HIGHEST", "LOWEST", "PATIENCE", "Outcome", "coupling_of", "due", "lower", "upper"]

FACTOR: Final = 1.5
"""A coupling speeds up where it takes the steps without TPS divided by this, or fewer."""
PATIENCE: Final = 2
"""A coupling still learns where it takes at most so many times the steps without TPS."""
LOWEST: Final = -8
HIGHEST: Final = 6


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many steps a coupling took to the level, or was given in vain where it was not ``reached``."""

    steps: int
    reached: bool

    def speeds_up(self, without: int, factor: float = FACTOR) -> bool:
        """Say whether it took at most ``without`` divided by ``factor``."""
        return self.reached and factor * self.steps <= without


def coupling_of(rank: int) -> float:
    """Return λ of a rank.

    >>> coupling_of(-2), coupling_of(1)
    (0.1, 3.1622776601683795)
    """
    return float(10.0 ** (rank / 2))


def due(without: int, outcomes: Mapping[int, Outcome], first: tuple[int, ...]) -> int | None:
    """Return the rank to be tried next, or none once both edges lie within what was tried.

    First ``first``, neighbours in ascending order; then down while the lowest tried speeds up, and up while
    the highest tried learns, within ``LOWEST`` and ``HIGHEST``.
    """
    for rank in first:
        if rank not in outcomes:
            return rank
    lowest, highest = min(outcomes), max(outcomes)
    if lowest > LOWEST and outcomes[lowest].speeds_up(without):
        return lowest - 1
    if highest < HIGHEST and outcomes[highest].reached:
        return highest + 1
    return None


def lower(without: int, outcomes: Mapping[int, Outcome], factor: float = FACTOR) -> float | None:
    """Return the smallest λ that speeds up: where steps, on the way down from the fastest, cross the line.

    Between the last rank that speeds up and the first that does not, log steps are taken as linear in log λ.
    One given up counts with the steps it was given, which puts the edge too low, by half a decade at most.
    None where no rank speeds up, or all do, down to the lowest tried. Does not see what lies below the first
    rank that does not speed up: there a lucky training may.
    """
    fastest = _fastest(outcomes)
    if fastest is None or not outcomes[fastest].speeds_up(without, factor):
        return None
    for rank in _contiguous(outcomes, fastest, -1):
        if not outcomes[rank].speeds_up(without, factor):
            slow, fast = log(outcomes[rank].steps), log(outcomes[rank + 1].steps)
            share = (slow - log(without / factor)) / (slow - fast)
            return exp((1 - share) * log(coupling_of(rank)) + share * log(coupling_of(rank + 1)))
    return None


def upper(outcomes: Mapping[int, Outcome]) -> float | None:
    """Return the largest λ that still learns: midway, in log λ, to the first rank above that does not.

    Upwards from the fastest. None where no rank learns, or all do, up to the highest tried.
    """
    fastest = _fastest(outcomes)
    if fastest is None:
        return None
    for rank in _contiguous(outcomes, fastest, 1):
        if not outcomes[rank].reached:
            return sqrt(coupling_of(rank) * coupling_of(rank - 1))
    return None


def _fastest(outcomes: Mapping[int, Outcome]) -> int | None:
    reached = [rank for rank, outcome in outcomes.items() if outcome.reached]
    return min(reached, key=lambda rank: (outcomes[rank].steps, rank)) if reached else None


def _contiguous(outcomes: Mapping[int, Outcome], start: int, step: int) -> Iterator[int]:
    while start in outcomes:
        yield start
        start += step
