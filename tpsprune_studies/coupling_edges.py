"""The trainings of the study ``coupling``, and what they show by width and seed: edges of λ, loops of order.

Couplings that are held lie on a grid of half decades and are named by rank k: λ = 10^(k/2). On a ramp an
order parameter is followed on its way up and down: where it rises, how sharply, whether it returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log, log10, sqrt
from typing import Final, Literal, TypeAlias

import numpy as np

from tpsprune.numerics.small_samples import Interval, slope_interval

Answers: TypeAlias = Literal["sums", "random"]
Scaling: TypeAlias = Literal["none", "sqrt-n"]

FACTOR: Final = 1.5
"""A coupling speeds up where it takes the steps without TPS divided by this, or fewer."""
PATIENCE: Final = 2
"""A coupling still learns where it takes at most so many times the steps without TPS."""
LOWEST: Final = -8
HIGHEST: Final = 6
LEAST_RISE: Final = 0.05
LEAST_SIZES: Final = 3


@dataclass(frozen=True, slots=True)
class CouplingTrial:
    """A training: each of ``couplings`` for ``steps_each`` steps; one of a single λ ends at the level."""

    variant: str
    width: int
    seed: int
    couplings: tuple[float, ...]
    steps_each: int
    answers: Answers = "sums"
    scaling: Scaling = "none"

    @property
    def arm(self) -> str:
        """Kind, variant and width, whose trainings cost alike."""
        kind = f"ramp of {self.steps_each}" if self.is_ramp else "held"
        return f"{kind} {self.variant} {self.width}"

    @property
    def kind(self) -> tuple[str, Answers, int, int]:
        """What is the same in the ramps of several seeds: variant, answers, steps at each λ, width."""
        return self.variant, self.answers, self.steps_each, self.width

    @property
    def is_ramp(self) -> bool:
        """Whether λ changes."""
        return len(self.couplings) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CouplingTraining:
    """A finished training: steps taken, whether the level was reached, validation accuracy then.

    ``orders`` is the variant's order parameter at the end of each coupling, ``train_accuracies`` the
    accuracy on the training items there. Without TPS the order is that of ``labels``.
    """

    trial: CouplingTrial
    steps: int
    reached: bool
    accuracy: float
    orders: tuple[float, ...]
    train_accuracies: tuple[float, ...]
    cpu_seconds: float
    seconds: float = 0.0

    @property
    def loop(self) -> Loop | None:
        """That of a ramp, where the order rose at all."""
        return measure_loop(self.trial.couplings, self.orders)


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps a coupling took to the level, or was allowed where it was not ``reached``."""

    taken: int
    reached: bool

    def speeds_up(self, without: int, factor: float = FACTOR) -> bool:
        """Return whether it took at most ``without`` divided by ``factor``."""
        return self.reached and factor * self.taken <= without


def coupling_of(rank: int) -> float:
    """Return λ of a rank.

    >>> coupling_of(-2), coupling_of(1)
    (0.1, 3.1622776601683795)
    """
    return float(10.0 ** (rank / 2))


def choose_next_rank(without: int, steps: Mapping[int, Steps], first: tuple[int, ...]) -> int | None:
    """Return the rank to be tried next, or none once both edges lie within what was tried.

    First ``first``, neighbours in ascending order; then down while the lowest tried speeds up, and up while
    the highest tried learns, within ``LOWEST`` and ``HIGHEST``.
    """
    for rank in first:
        if rank not in steps:
            return rank
    lowest, highest = min(steps), max(steps)
    if lowest > LOWEST and steps[lowest].speeds_up(without):
        return lowest - 1
    if highest < HIGHEST and steps[highest].reached:
        return highest + 1
    return None


def lower_edge(without: int, steps: Mapping[int, Steps], factor: float = FACTOR) -> float | None:
    """Return the smallest λ that speeds up: where steps, on the way down from the fastest, cross the line.

    Between the last rank that speeds up and the first that does not, log steps are taken as linear in log λ.
    A stopped one counts with its allowed steps, so that the edge is too low, by half a decade at most.
    None where no rank speeds up, or all do, down to the lowest tried. Does not see what lies below the first
    rank that does not speed up: there a lucky training may.
    """
    fastest = _fastest(steps)
    if fastest is None or not steps[fastest].speeds_up(without, factor):
        return None
    for rank in _contiguous(steps, fastest, -1):
        if not steps[rank].speeds_up(without, factor):
            slow, fast = log(steps[rank].taken), log(steps[rank + 1].taken)
            share = (slow - log(without / factor)) / (slow - fast)
            return exp((1 - share) * log(coupling_of(rank)) + share * log(coupling_of(rank + 1)))
    return None


def upper_edge(steps: Mapping[int, Steps]) -> float | None:
    """Return the largest λ that still learns: midway, in log λ, to the first rank above that does not.

    Upwards from the fastest. None where no rank learns, or all do, up to the highest tried.
    """
    fastest = _fastest(steps)
    if fastest is None:
        return None
    for rank in _contiguous(steps, fastest, 1):
        if not steps[rank].reached:
            return sqrt(coupling_of(rank) * coupling_of(rank - 1))
    return None


def _fastest(steps: Mapping[int, Steps]) -> int | None:
    reached = [rank for rank, each in steps.items() if each.reached]
    return min(reached, key=lambda rank: (steps[rank].taken, rank)) if reached else None


def _contiguous(steps: Mapping[int, Steps], start: int, step: int) -> Iterator[int]:
    while start in steps:
        yield start
        start += step


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """An order parameter on a ramp; shares are of the rise from the first reading to the one at the top.

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


def measure_loop(couplings: Sequence[float], orders: Sequence[float]) -> Loop | None:
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
        area=float(np.trapezoid(gaps, places)) / (places[-1] - places[0]),
    )


def _crossing(places: Sequence[float], shares: Sequence[float], level: float) -> float | None:
    """Return where the shares first reach the level, in their order."""
    for (left, right), (before, after) in zip(pairwise(places), pairwise(shares), strict=True):
        if before < level <= after:
            return left + (level - before) / (after - before) * (right - left)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One width and seed under one variant: steps without TPS, and those of each rank of λ."""

    variant: str
    width: int
    seed: int
    without: int
    steps: Mapping[int, Steps]

    @property
    def lower(self) -> float | None:
        """The smallest λ that speeds up."""
        return lower_edge(self.without, self.steps)

    @property
    def doubles(self) -> float | None:
        """The smallest λ that is twice as fast: the same edge at a higher factor."""
        return lower_edge(self.without, self.steps, factor=2.0)

    @property
    def upper(self) -> float | None:
        """The largest λ that still learns."""
        return upper_edge(self.steps)

    @property
    def best(self) -> float:
        """By how much the fastest λ is faster than without TPS; 0 where none learns."""
        reached = [each.taken for each in self.steps.values() if each.reached]
        return self.without / min(reached) if reached else 0.0


def fit_exponent(points: Iterable[tuple[int, float | None]]) -> Interval | None:
    """Return the exponent of N in a power law through the points (N, figure) whose figure is measured.

    None of fewer than three sizes.
    """
    found = [(log(size), log(value)) for size, value in points if value is not None]
    return slope_interval(found) if len({size for size, _ in found}) >= LEAST_SIZES else None
