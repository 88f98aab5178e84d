"""How many units each group keeps, so that the whole meets the target.

An allocation is a path of widths from the least allowed to the dense: for a level in 0 … 1 it gives each
group's width, and no group ever narrows as the level rises. Whatever the target is (multiply-accumulates,
parameters, bytes, measured time), it is met by descending one path.

Shape letters: g groups, n units of a group.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.pruning.costs import CostModel
from tpsprune.recipe.prune import Bytes, Joules, Latency, Macs, Params, Prune, Tolerance, Widths
from tpsprune.records import CheckedLayer

Path: TypeAlias = Callable[[float], tuple[int, ...]]
T = TypeVar("T")

STEPS = 100
"""Steps in which greedy allocation takes a group apart; one unit each where it has no more than that."""
CONDENSED = 1e-9
"""Residual share below which what is lost is rounding; units that cost less are pruned in even shares."""

HALVINGS = 60
TIMED_HALVINGS = 9
"""Each costs a measurement; the level is then found to 0.2 %, finer than a clock resolves."""
SLACK = 1e-9
"""Share of the cost by which rounding may seem to miss a target."""
WIDTH_STEPS = (8, 4, 2, 1)
"""Multiples that ``round_to = "auto"`` tries, most first."""
FEWEST_STEPS = 4
"""So many multiples a layer must have to choose from."""
WORTH_NAMING = 0.01
"""Share of the cost in layers that cannot be pruned from which on a message names it."""
NAMES_LISTED = 8
MOST_NAMED = 3
"""Layers and groups that a message names as what holds up a target: those that cost most."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which widths each group may end, and of what number its width is a multiple."""

    least: tuple[int, ...]
    dense: tuple[int, ...]
    steps: tuple[int, ...]

    def nearest(self, rank: int, wish: float) -> int:
        """Return the allowed width of group ``rank`` that is nearest to ``wish``; half is rounded up."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Figures of each group, in the groups' order; what ``needed_evidence`` does not name may be empty.

    ``ranks`` are effective ranks, in units; ``residuals[g][k - 1]`` is the share of group g's output variance
    that is lost with its best k units, ``loudness[g]`` the weight of the whole; ``scores[g]`` holds one
    importance per unit, the higher is kept.
    """

    ranks: Sequence[float] = ()
    residuals: Sequence[Sequence[float]] = ()
    scores: Sequence[Tensor] = ()
    loudness: Sequence[float] = ()


def needed_evidence(settings: Prune) -> set[str]:
    """Return which fields of ``Evidence`` these settings read."""
    if isinstance(settings.target, Widths):
        return set()
    if isinstance(settings.target, Tolerance) or settings.widths in {"equal-residual", "greedy"}:
        return {"residuals"}
    return {"effective-rank": {"ranks"}, "global-magnitude": {"scores"}}.get(settings.widths, set())


def width_step(width: int, most: int = WIDTH_STEPS[0]) -> int:
    """Return what a layer of so many units had better keep a multiple of, at most ``most``.

    Registers and tiles hold 8 or 16 numbers: other widths fill them no better and are copied besides, so that
    few operations less are no time less. A training step of ResNet-20 on an H100 (bfloat16, batch 512,
    channels-last) took 12.1 ms at a first width of 64, but 18.7 at 60, 14.5 at 56, 11.7 at 48, 15.8 at 44,
    11.7 at 40 and 7.8 at 32. A layer keeps at least four multiples to choose from.

    >>> [width_step(width) for width in (7, 8, 16, 31, 32, 512)]
    [1, 2, 4, 4, 8, 8]
    """
    return next(step for step in WIDTH_STEPS if step <= most and (step == 1 or width >= FEWEST_STEPS * step))


def bounds_of(costs: CostModel, settings: Prune, names: Sequence[str]) -> Bounds:
    """Return between which widths the settings let each group end.

    ``min_width`` and ``round_to`` are meant for units; of heads and of blocks one may be left, and they
    are counted one by one. The caps hold for all; a cap wins over the rounding. Widths of experts are
    multiples of 16 bytes whatever is set, for grouped products take no other. With ``round_to = "auto"`` the
    multiple is that of ``width_step``, or less of it where the target is out of reach else.

    Raises:
        PruneError: a pattern of ``max_pruning_ratios`` matches no group.
    """
    for pattern in settings.max_pruning_ratios:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise PruneError(
                f"prune.max_pruning_ratios: '{pattern}' matches no group{did_you_mean(pattern, names)}; "
                f"groups are {_list_names(names)}"
            )
    if settings.round_to != "auto":
        step = settings.round_to
        return _bounds_at(costs, settings, names, lambda _: step)
    for most in WIDTH_STEPS:
        bounds = _bounds_at(costs, settings, names, partial(width_step, most=most))
        if _is_within(costs, settings, bounds):
            break
    return bounds


def _bounds_at(
    costs: CostModel, settings: Prune, names: Sequence[str], step_of: Callable[[int], int]
) -> Bounds:
    least, steps = [], []
    for name, width, kind, multiple in zip(names, costs.widths, costs.kinds, costs.multiples, strict=True):
        matching = [share for each, share in settings.max_pruning_ratios.items() if fnmatchcase(name, each)]
        cap = math.ceil(width * (1.0 - (matching[-1] if matching else settings.max_pruning_ratio)) - 1e-9)
        step, floor = (step_of(width), settings.min_width) if kind == "units" else (1, 1)
        step = math.lcm(step, multiple)
        steps.append(step)
        least.append(min(width, step * math.ceil(max(floor, cap) / step)))
    return Bounds(tuple(least), costs.widths, tuple(steps))


def _is_within(costs: CostModel, settings: Prune, bounds: Bounds) -> bool:
    """Return whether the least widths meet a target that is a share of a cost."""
    match settings.target:
        case Macs(share) | Params(share) | Bytes(share):
            return costs.at(bounds.least) <= (share + SLACK) * costs.total
        case _:
            return True


def check_widths(
    costs: CostModel,
    settings: Prune,
    names: Sequence[str],
    fixed: Callable[[], Sequence[CheckedLayer]] = tuple,
) -> Bounds:
    """Return the bounds if the target can be met within them, as far as that is decided without data.

    A latency, or an energy, is not: it takes a measurement.

    Args:
        costs: in the unit of the target.
        settings: target and bounds.
        names: of the groups.
        fixed: lists the layers that lose nothing whatever the widths are; called for the message alone.

    Raises:
        PruneError: even the least widths cost more than the target; a name or pattern matches no group; a
            width set by name is out of range. The message names what is within reach, and what holds it up.
    """
    bounds = bounds_of(costs, settings, names)
    match settings.target:
        case Macs(share) | Params(share) | Bytes(share) if not _is_within(costs, settings, bounds):
            least = costs.at(bounds.least)
            reason = _describe_constant(costs, fixed())
            # Where what is fixed leaves room for the target, or is the smaller part, the widths hold it up.
            if costs.constant <= max(share * costs.total, least / 2):
                reason += _describe_narrowest(costs, bounds, names)
            raise _out_of_reach(settings, math.ceil(1000 * least / costs.total) / 1000, reason)
        case Widths(by_name):
            _check_names(by_name, costs, names)
    return bounds


def choose_widths(
    costs: CostModel,
    evidence: Evidence,
    settings: Prune,
    *,
    names: Sequence[str],
    measured: Callable[[Sequence[int]], float] | None = None,
    fixed: Callable[[], Sequence[CheckedLayer]] = tuple,
) -> tuple[int, ...]:
    """Return the width of each group under ``settings.target``, allocated by ``settings.widths``.

    For ``macs``, ``params`` and ``bytes`` the highest level of the path that fits is found by halving; what
    is then left over grows, step by step, the group that would be next on the path, until no group can be a
    step (``round_to``) wider; with ``uniform`` groups of one width grow together. For ``latency`` and
    ``joules`` the path is followed by measurements, and what is chosen has passed two of them. ``tolerance``
    takes for each group the fewest units whose residual is within it. Widths set by name are taken as they
    are, within no other bounds than 1 and the dense width.

    Args:
        costs: in the unit of the target; multiply-accumulates where the target is neither cost.
        evidence: what ``needed_evidence(settings)`` names.
        settings: target, allocation, bounds.
        names: of the groups.
        measured: the time or energy of a pass at these widths as a share of the dense model's.
        fixed: as ``check_widths`` takes it.

    Raises:
        PruneError: as ``check_widths``; or the least widths take more than the target.
    """
    bounds = check_widths(costs, settings, names, fixed)
    match settings.target:
        case Widths(by_name):
            return tuple(by_name.get(name, width) for name, width in zip(names, costs.widths, strict=True))
        case Tolerance(tolerance):
            return _fit_tolerance(tolerance, evidence.residuals, bounds)
        case Latency(share) | Joules(share):
            assert measured is not None, "a target that is measured comes with a clock"
            path = _choose_path(costs, evidence, settings, bounds)
            return _fit_measured(path, share, measured, settings)
        case Macs(share) | Params(share) | Bytes(share):
            path = _choose_path(costs, evidence, settings, bounds)
            peers = _peers(settings, costs, bounds)
            return _fit_budget(path, (share + SLACK) * costs.total, costs, bounds, peers)


def _choose_path(costs: CostModel, evidence: Evidence, settings: Prune, bounds: Bounds) -> Path:
    match settings.widths:
        case "effective-rank":
            return allocate_in_proportion(evidence.ranks, bounds)
        case "uniform":
            return allocate_in_proportion(costs.widths, bounds)
        case "equal-residual":
            return allocate_by_residual(evidence.residuals, bounds)
        case "greedy":
            return allocate_greedily(_losses(evidence), costs, bounds)
        case "global-magnitude":
            return allocate_by_score(evidence.scores, bounds)


def _losses(evidence: Evidence) -> list[list[float]]:
    """Return what greedy allocation takes for the loss with each group's best k units.

    −ln(1 − residual share), so that losses of layers one behind the other add up, times the root of what
    the group counts for (``planning``).
    """
    curves = evidence.residuals
    loudness = evidence.loudness or [1.0] * len(curves)
    whole = max(loudness, default=0.0) or 1.0
    return [
        [-math.log1p(-min(share, 1.0 - 1e-9)) * math.sqrt(loud / whole) for share in curve]
        for curve, loud in zip(curves, loudness, strict=True)
    ]


def _fit_budget(
    path: Path, budget: float, costs: CostModel, bounds: Bounds, peers: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Return the widest on the path that the budget allows, grown by what is left; peers grow together."""
    if costs.at(path(1.0)) <= budget:
        return path(1.0)
    low, _ = _bisect(lambda level: costs.at(path(level)) <= budget)
    now_g = torch.tensor(path(low))
    grows_pg = torch.tensor([[rank in ranks for rank in range(len(now_g))] for ranks in peers])
    next_at = [_level_beyond(path, ranks[0], int(now_g[ranks[0]]), low) for ranks in peers]
    while True:
        wider_g = torch.tensor([bounds.wider(rank, width) for rank, width in enumerate(now_g.tolist())])
        tried_pg = torch.where(grows_pg, wider_g, now_g)
        fits = ((costs.at_each(tried_pg) <= budget) & (tried_pg > now_g).any(1)).tolist()
        if not any(fits):
            return tuple(now_g.tolist())
        place = min((place for place, fit in enumerate(fits) if fit), key=next_at.__getitem__)
        now_g = tried_pg[place]
        rank = peers[place][0]
        next_at[place] = _level_beyond(path, rank, int(now_g[rank]), low)


def _peers(settings: Prune, costs: CostModel, bounds: Bounds) -> list[list[int]]:
    """Return the groups that have one width throughout: with ``uniform`` those that are alike, else each."""
    found: dict[object, list[int]] = {}
    for rank, alike in enumerate(zip(costs.widths, costs.kinds, bounds.least, strict=True)):
        found.setdefault(alike if settings.widths == "uniform" else rank, []).append(rank)
    return list(found.values())


def _level_beyond(path: Path, rank: int, width: int, low: float) -> float:
    """Return the level from which on the path gives a group more than ``width``; 1 where it never does."""
    return _bisect(lambda level: path(level)[rank] <= width, low)[1]


def _bisect(fits: Callable[[float], bool], low: float = 0.0) -> tuple[float, float]:
    """Return the levels between which ``fits`` turns false, next to one another."""
    high = 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


def _fit_tolerance(tolerance: float, residuals: Sequence[Sequence[float]], bounds: Bounds) -> tuple[int, ...]:
    return tuple(
        bounds.no_less(
            rank, next((kept for kept, lost in enumerate(curve, start=1) if lost <= tolerance), len(curve))
        )
        for rank, curve in enumerate(residuals)
    )


def _fit_measured(
    path: Path, share: float, measured: Callable[[Sequence[int]], float], settings: Prune
) -> tuple[int, ...]:
    least = path(0.0)
    if (found := measured(least)) > share:
        raise _out_of_reach(settings, math.ceil(1000 * found) / 1000, " as measured here")
    passed = [least]
    low, high = 0.0, 1.0
    for _ in range(TIMED_HALVINGS):
        middle = (low + high) / 2
        widths = path(middle)
        if widths == passed[-1] or measured(widths) <= share:
            low = middle
            passed.append(widths)
        else:
            high = middle
    # One measurement may be low by chance: the widths chosen have to pass twice.
    return next((widths for widths in reversed(passed[1:]) if measured(widths) <= share), least)


def _check_names(by_name: Mapping[str, int], costs: CostModel, names: Sequence[str]) -> None:
    width_of = dict(zip(names, costs.widths, strict=True))
    multiple_of = dict(zip(names, costs.multiples, strict=True))
    faults = []
    for name, width in by_name.items():
        if name not in width_of:
            hint = did_you_mean(name, names) or f"; groups are {_list_names(names)}"
            faults.append(f"'{name}' is no group that can be pruned{hint}")
        elif not 1 <= width <= width_of[name]:
            faults.append(f"'{name}' can keep 1 to {width_of[name]} units (found {width})")
        elif width % multiple_of[name] and width != width_of[name]:
            faults.append(f"'{name}' can keep multiples of {multiple_of[name]} units (found {width})")
    if faults:
        many = "" if len(faults) == 1 else f" {len(faults)} faults:"
        raise PruneError(f"prune.target.widths:{many}" + "".join(f"\n  {each}" for each in faults))


def _out_of_reach(settings: Prune, least: float, reason: str) -> PruneError:
    caps = "".join(f", {pattern} {share:g}" for pattern, share in settings.max_pruning_ratios.items())
    return PruneError(
        f"prune.target {settings.target} cannot be reached: with min_width {settings.min_width}, "
        f"max_pruning_ratio {settings.max_pruning_ratio:g}{caps} and round_to {settings.round_to} "
        f"the least is {least:.3f}{reason}"
    )


def _describe_constant(costs: CostModel, fixed: Sequence[CheckedLayer]) -> str:
    """Return what share of the cost no width changes, and the largest of the layers it lies in, with why."""
    share = costs.constant / costs.total
    if share < WORTH_NAMING:
        return ""
    own = {layer: layer.parameters if costs.unit == "parameters" else layer.macs for layer in fixed}
    heaviest = [
        f"{layer.name} {cost / costs.total:.0%} ({layer.reason})"
        for layer, cost in _largest(own)
        if cost >= WORTH_NAMING * costs.total
    ]
    where = f": {', '.join(heaviest)}" if heaviest else ""
    return f", because {share:.0%} of the {costs.unit} lie in layers that cannot be pruned{where}"


def _describe_narrowest(costs: CostModel, bounds: Bounds, names: Sequence[str]) -> str:
    """Return which groups cost most at their least widths: those without whose units most would be saved."""
    least = costs.at(bounds.least)
    saved = {
        rank: least - costs.at([*bounds.least[:rank], 0, *bounds.least[rank + 1 :]])
        for rank in range(len(names))
    }
    held = ", ".join(
        f"{names[rank]} {cost / costs.total:.1%} ({bounds.least[rank]} of {bounds.dense[rank]} {kind})"
        for rank, cost in _largest(saved)
        for kind in [costs.kinds[rank]]
    )
    return f"; at those widths most lies in {held}: lower those, or raise the target"


def _largest(cost_of: Mapping[T, float]) -> list[tuple[T, float]]:
    return sorted(cost_of.items(), key=lambda each: -each[1])[:MOST_NAMED]


def _list_names(names: Sequence[str]) -> str:
    more = len(names) - NAMES_LISTED
    return ", ".join(names[:NAMES_LISTED]) + (f" and {more} more" if more > 0 else "")


def allocate_in_proportion(wishes: Sequence[float], bounds: Bounds) -> Path:
    """Return widths c · wish: effective ranks, or the dense widths for uniform pruning.

    Proportions only: doubling every wish changes nothing. A group at one of its bounds remains there.
    """
    held = [max(float(wish), 1e-9) for wish in wishes]
    most = max((dense / wish for dense, wish in zip(bounds.dense, held, strict=True)), default=1.0)
    return lambda level: tuple(bounds.nearest(rank, level * most * wish) for rank, wish in enumerate(held))


def allocate_by_residual(residuals: Sequence[Sequence[float]], bounds: Bounds) -> Path:
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


def allocate_greedily(residuals: Sequence[Sequence[float]], costs: CostModel, bounds: Bounds) -> Path:
    """Return the widths met on the way down, each step from the group that loses least per cost saved.

    The loss of a step is the rise of that group's residual share; the saving is exact at the widths of that
    step, shared layers included. A step is ``round_to`` units or a hundredth of the group. Of equal steps
    that of the group that saves most is taken.

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


def allocate_by_score(scores: Sequence[Tensor], bounds: Bounds) -> Path:
    """Return how many units of each group are among the best of all, by scores ``scores_n`` per group.

    Scores count as multiples of their group's mean. The best are counted out, not found by a threshold: of
    equal scores exactly the wanted number is kept, in even shares from each group.
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

    Where nothing is lost any more the fall is that of ``CONDENSED``: units beyond that are pruned first, and
    in every group the same share.
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
