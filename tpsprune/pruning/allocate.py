"""Ways to share a budget out among groups: each a path of widths from the least allowed to the dense.

A path says for a level in 0 … 1 how wide each group is; no group ever narrows as the level rises. Whatever
the target is (multiply-accumulates, parameters, measured time), it is met by going down one path until the
target is met: ``widths.py``.

Shape letters: g groups, n units of a group.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor

from tpsprune.pruning.costs import CostModel

__all__ = ["Bounds", "Path", "by_score", "greedy", "in_proportion", "level_with"]

Path: TypeAlias = Callable[[float], tuple[int, ...]]

STEPS = 100
"""Steps in which greedy allocation takes a group apart; one unit each where it has no more than that."""
CONDENSED = 1e-9
"""Residual share below which what is lost is rounding; units that cost less go in even shares."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which widths each group may end, and of what number its width is a multiple."""

    least: tuple[int, ...]
    dense: tuple[int, ...]
    steps: tuple[int, ...]

    def nearest(self, rank: int, wish: float) -> int:
        """Return the allowed width of group ``rank`` that is nearest to ``wish``; half goes up."""
        if wish >= self.dense[rank]:
            return self.dense[rank]
        step = self.steps[rank]
        return self._within(rank, step * math.floor(wish / step + 0.5))

    def no_less(self, rank: int, wish: int) -> int:
        """Return the least allowed width of group ``rank`` that is not below ``wish``."""
        return self._within(rank, self.steps[rank] * math.ceil(wish / self.steps[rank]))

    def wider(self, rank: int, width: int) -> int:
        """Return the next allowed width above ``width``, or ``width`` where there is none."""
        step = self.steps[rank]
        return min(self.dense[rank], step * (width // step + 1))

    def _within(self, rank: int, width: int) -> int:
        return max(self.least[rank], min(self.dense[rank], width))


def in_proportion(wishes: Sequence[float], bounds: Bounds) -> Path:
    """Return widths c · wish: effective ranks, or the dense widths for a uniform cut.

    Proportions only: doubling every wish changes nothing. A group at one of its bounds stays there.
    """
    held = [max(float(wish), 1e-9) for wish in wishes]
    most = max((dense / wish for dense, wish in zip(bounds.dense, held, strict=True)), default=1.0)
    return lambda level: tuple(bounds.nearest(rank, level * most * wish) for rank, wish in enumerate(held))


def level_with(residuals: Sequence[Sequence[float]], bounds: Bounds) -> Path:
    """Return for each group the fewest units whose residual is no more than one level for all.

    ``residuals[g][k - 1]`` is the share of variance lost with k units; it may be noisy where it is nearly
    nothing.
    """
    curves = [_falling(curve) for curve in residuals]
    marks = sorted({value for curve in curves for value in curve}, reverse=True)
    negative = [[-value for value in curve] for curve in curves]

    def widths(level: float) -> tuple[int, ...]:
        place = min(len(marks), math.floor(level * len(marks)))
        if not place:
            return bounds.least
        # Curves fall, so their negatives rise: the first that is at least −mark is the first at most mark.
        return tuple(
            bounds.no_less(rank, bisect_left(rising, -marks[place - 1]) + 1)
            for rank, rising in enumerate(negative)
        )

    return widths


def greedy(residuals: Sequence[Sequence[float]], costs: CostModel, bounds: Bounds) -> Path:
    """Return the widths met on the way down, each step from the group that loses least per cost saved.

    The loss of a step is the rise of that group's residual share; the saving is exact at the widths of
    that moment, shared layers included. A step is ``round_to`` units or a hundredth of the group. Ties go
    to the group that saves most.

    Cost: one evaluation of every group for each step: some 100 · g² products.
    """
    groups = torch.arange(len(bounds.dense))
    downs = [_stairs(rank, bounds) for rank in range(len(groups))]
    longest = max(map(len, downs), default=0)
    # The last step of each group leads to where it is: none is left, at no price that anything is under.
    stairs_gs = torch.tensor([[*down, *[down[-1]] * (longest + 1 - len(down))] for down in downs])
    lost_gs = torch.stack(
        [
            torch.tensor([1.0, *_falling(curve)], dtype=torch.float64)[stairs_s].diff()
            for curve, stairs_s in zip(residuals, stairs_gs, strict=True)
        ]
    )
    order: list[int] = []
    taken_g = torch.zeros(len(groups), dtype=torch.int64)
    left = sum(len(down) - 1 for down in downs)
    for _ in range(left):
        now_g, lower_g = stairs_gs[groups, taken_g], stairs_gs[groups, taken_g + 1]
        tried_gg = now_g.repeat(len(groups), 1)
        tried_gg[groups, groups] = lower_g
        each_g = costs.at_each(torch.cat([now_g[None], tried_gg]))
        price_g = (lost_gs[groups, taken_g] + 1e-15) / (each_g[0] - each_g[1:]).clamp_min(1e-9)
        rank = int(price_g.masked_fill(lower_g == now_g, torch.inf).argmin())
        order.append(rank)
        taken_g[rank] += 1
    seen = [list(accumulate((int(each == rank) for each in order), initial=0)) for rank in range(len(groups))]

    def widths(level: float) -> tuple[int, ...]:
        steps = len(order) - min(len(order), math.floor(level * (len(order) + 1)))
        return tuple(down[counts[steps]] for down, counts in zip(downs, seen, strict=True))

    return widths


def by_score(scores: Sequence[Tensor], bounds: Bounds) -> Path:
    """Return how many units of each group are among the best of all, by scores ``scores_n`` per group.

    Scores count as multiples of their group's mean. The best are counted out, not found by a threshold: of
    equal scores as many stay as are asked for, in even shares from each group.
    """
    ranked: list[tuple[float, float, int]] = []
    for rank, scores_n in enumerate(scores):
        values = scores_n.double().nan_to_num(nan=0.0, posinf=1e300, neginf=-1e300)
        normed = (values / values.mean().abs().clamp_min(1e-300)).sort(descending=True).values.tolist()
        ranked += [(-value, place / len(normed), rank) for place, value in enumerate(normed)]
    places: list[list[int]] = [[] for _ in scores]
    for place, (_, _, rank) in enumerate(sorted(ranked)):
        places[rank].append(place)

    def widths(level: float) -> tuple[int, ...]:
        count = math.floor(level * len(ranked) + 0.5)
        return tuple(bounds.nearest(rank, bisect_left(own, count)) for rank, own in enumerate(places))

    return widths


def _falling(curve: Sequence[float]) -> list[float]:
    """Return a residual curve that falls all the way to zero at the dense width.

    Where nothing is lost any more the fall is that of ``CONDENSED``: units beyond that go first, and from
    every group the same share.
    """
    lowest = accumulate((max(0.0, float(value)) for value in curve), min)
    count = len(curve)
    return [
        (0.0 if value < CONDENSED else value) + CONDENSED * (1.0 - kept / count)
        for kept, value in enumerate(lowest, start=1)
    ]


def _stairs(rank: int, bounds: Bounds) -> list[int]:
    """Return the widths of a group from dense to least, in steps of a multiple of its own step."""
    own = bounds.steps[rank]
    low, high = bounds.least[rank], bounds.dense[rank]
    step = own * max(1, math.ceil(high / (own * STEPS)))
    return sorted({high, low, *(width for width in range(0, high, step) if width > low)}, reverse=True)
