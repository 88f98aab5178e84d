"""How many units each group keeps, so that the whole is what was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.pruning.allocate import Bounds, Path, by_score, greedy, in_proportion, level_with
from tpsprune.pruning.costs import CostModel
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Latency, Macs, Params, Tolerance, Widths

__all__ = ["Evidence", "bounds_of", "check_widths", "choose_widths", "needs"]

T = TypeVar("T")

HALVINGS = 60
TIMED_HALVINGS = 9
"""Each costs a measurement; the path is then known to 0.2 %, finer than a clock tells."""
SLACK = 1e-9
"""Share of the cost by which rounding may seem to miss a target."""
WORTH_SAYING = 0.01
NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of each group, in the groups' order; what ``needs`` does not name may be missing.

    ``ranks`` are effective ranks, in units; ``residuals[g][k - 1]`` is the share of what group g says that
    is lost with its best k units, ``loudness[g]`` what the whole of it counts for; ``scores[g]`` holds one
    importance per unit, the higher stays.
    """

    ranks: Sequence[float] | None = None
    residuals: Sequence[Sequence[float]] | None = None
    scores: Sequence[Tensor] | None = None
    loudness: Sequence[float] | None = None


def needs(settings: Prune) -> set[str]:
    """Return which fields of ``Evidence`` these settings read."""
    match settings.target, settings.widths:
        case Widths(), _:
            return set()
        case Tolerance(), _:
            return {"residuals"}
        case _, "effective-rank":
            return {"ranks"}
        case _, "equal-residual" | "greedy":
            return {"residuals"}
        case _, "global-magnitude":
            return {"scores"}
    return set()


def bounds_of(costs: CostModel, settings: Prune, names: Sequence[str]) -> Bounds:
    """Return between which widths the settings let each group end.

    ``min_width`` and ``round_to`` are meant for units; of heads and of blocks one may be left, and they
    are counted one by one. The caps hold for all; a cap wins over the rounding.

    Raises:
        PruneError: a pattern of ``max_cut_shares`` matches no group.
    """
    for pattern in settings.max_cut_shares:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise PruneError(
                f"prune.max_cut_shares: '{pattern}' matches no group{did_you_mean(pattern, names)}; "
                f"groups are {_shown(names)}"
            )
    least, steps = [], []
    for name, width, kind in zip(names, costs.widths, costs.kinds, strict=True):
        matching = [share for each, share in settings.max_cut_shares.items() if fnmatchcase(name, each)]
        cap = math.ceil(width * (1.0 - (matching[-1] if matching else settings.max_cut_share)) - 1e-9)
        step, floor = (settings.round_to, settings.min_width) if kind == "units" else (1, 1)
        steps.append(step)
        least.append(min(width, step * math.ceil(max(floor, cap) / step)))
    return Bounds(tuple(least), costs.widths, tuple(steps))


def check_widths(costs: CostModel, settings: Prune, names: Sequence[str]) -> Bounds:
    """Return the bounds if the target can be met within them, as far as that is known without data.

    A latency is not: it takes a measurement.

    Raises:
        PruneError: even the least widths cost more than the target; a name or pattern matches no group; a
            width that was asked for is none. The message says what is within reach.
    """
    bounds = bounds_of(costs, settings, names)
    match settings.target:
        case Macs(share) | Params(share):
            least = costs.at(bounds.least) / costs.total
            if least > share + SLACK:
                raise _out_of_reach(settings, math.ceil(1000 * least) / 1000, _uncut_words(costs))
        case Widths(asked):
            _check_asked(asked, costs.widths, names)
    return bounds


def choose_widths(
    costs: CostModel,
    evidence: Evidence,
    settings: Prune,
    *,
    names: Sequence[str],
    latency: Callable[[Sequence[int]], float] | None = None,
) -> tuple[int, ...]:
    """Return the width of each group under ``settings.target``, shared out as ``settings.widths`` says.

    For ``macs`` and ``params`` the highest level of the path (``allocate.py``) that fits is found by
    halving; what is then left over grows, step by step, the group that would be next on the path, until
    no group can be a step (``round_to``) wider; with ``uniform`` groups of one width grow together. For
    ``latency`` the path is followed by measurements, and what is chosen has passed two of them. ``tolerance``
    takes for each group the fewest units whose residual is within it. Widths given by name are taken as they
    are, within no other bounds than 1 and the dense width.

    Args:
        costs: in the unit of the target; multiply-accumulates where the target is neither cost.
        evidence: what ``needs(settings)`` names.
        settings: target, allocation, bounds.
        names: of the groups.
        latency: the measured time of a pass at these widths as a share of the dense model's.

    Raises:
        PruneError: as ``check_widths``; or the least widths take longer than the target.
    """
    bounds = check_widths(costs, settings, names)
    match settings.target:
        case Widths(asked):
            return tuple(asked.get(name, width) for name, width in zip(names, costs.widths, strict=True))
        case Tolerance(tolerance):
            return _within_tolerance(tolerance, _given(evidence.residuals), bounds)
        case Latency(share):
            path = _path(costs, evidence, settings, bounds)
            return _fast_enough(path, share, _given(latency), settings)
        case Macs(share) | Params(share):
            path = _path(costs, evidence, settings, bounds)
            peers = _peers(settings, costs, bounds)
            return _affordable(path, (share + SLACK) * costs.total, costs, bounds, peers)


def _path(costs: CostModel, evidence: Evidence, settings: Prune, bounds: Bounds) -> Path:
    match settings.widths:
        case "effective-rank":
            return in_proportion(_given(evidence.ranks), bounds)
        case "uniform":
            return in_proportion(costs.widths, bounds)
        case "equal-residual":
            return level_with(_given(evidence.residuals), bounds)
        case "greedy":
            return greedy(_lost(evidence), costs, bounds)
        case "global-magnitude":
            return by_score(_given(evidence.scores), bounds)


def _lost(evidence: Evidence) -> list[list[float]]:
    """Return what greedy allocation takes for the loss with each group's best k units.

    −ln(1 − share left unsaid), so that losses of layers one behind the other add up, times the root of what
    the group counts for: half-way between all groups alike and the model's own slopes, which hold for small
    errors only. In trials on ResNet-8, CNNs and transformers the half-way did better than either.
    """
    curves = _given(evidence.residuals)
    loudness = evidence.loudness or [1.0] * len(curves)
    whole = max(loudness, default=0.0) or 1.0
    return [
        [-math.log1p(-min(share, 1.0 - 1e-9)) * math.sqrt(loud / whole) for share in curve]
        for curve, loud in zip(curves, loudness, strict=True)
    ]


def _affordable(
    path: Path, budget: float, costs: CostModel, bounds: Bounds, peers: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Return the widest on the path that the budget allows, grown by what is left; peers grow together."""
    low, high = 0.0, 1.0
    if costs.at(path(high)) <= budget:
        return path(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if costs.at(path(middle)) <= budget else (low, middle)
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
    high = 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if path(middle)[rank] > width else (middle, high)
    return high


def _within_tolerance(
    tolerance: float, residuals: Sequence[Sequence[float]], bounds: Bounds
) -> tuple[int, ...]:
    return tuple(
        bounds.no_less(
            rank, next((kept for kept, lost in enumerate(curve, start=1) if lost <= tolerance), len(curve))
        )
        for rank, curve in enumerate(residuals)
    )


def _fast_enough(
    path: Path, share: float, latency: Callable[[Sequence[int]], float], settings: Prune
) -> tuple[int, ...]:
    least = path(0.0)
    if (found := latency(least)) > share:
        raise _out_of_reach(settings, math.ceil(1000 * found) / 1000, " as measured here")
    passed = [least]
    low, high = 0.0, 1.0
    for _ in range(TIMED_HALVINGS):
        middle = (low + high) / 2
        widths = path(middle)
        if widths == passed[-1] or latency(widths) <= share:
            low = middle
            passed.append(widths)
        else:
            high = middle
    # A clock may have been lucky once: what it is to be has to pass again.
    return next((widths for widths in reversed(passed[1:]) if latency(widths) <= share), least)


def _check_asked(asked: Mapping[str, int], dense: Sequence[int], names: Sequence[str]) -> None:
    width_of = dict(zip(names, dense, strict=True))
    faults = []
    for name, width in asked.items():
        if name not in width_of:
            hint = did_you_mean(name, names) or f"; groups are {_shown(names)}"
            faults.append(f"'{name}' is no group that can be cut{hint}")
        elif not 1 <= width <= width_of[name]:
            faults.append(f"'{name}' can keep 1 to {width_of[name]} units (found {width})")
    if faults:
        many = "" if len(faults) == 1 else f" {len(faults)} faults:"
        raise PruneError(f"prune.target.widths:{many}" + "".join(f"\n  {each}" for each in faults))


def _out_of_reach(settings: Prune, least: float, words: str) -> PruneError:
    caps = "".join(f", {pattern} {share:g}" for pattern, share in settings.max_cut_shares.items())
    return PruneError(
        f"prune.target {settings.target} cannot be reached: with min_width {settings.min_width}, "
        f"max_cut_share {settings.max_cut_share:g}{caps} and round_to {settings.round_to} "
        f"the least is {least:.3f}{words}"
    )


def _uncut_words(costs: CostModel) -> str:
    share = costs.constant / costs.total
    if share < WORTH_SAYING:
        return "; lower those, or ask for more"
    return f", because {share:.0%} of the {costs.unit} lie in layers that cannot be cut"


def _shown(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _given(value: T | None) -> T:
    """Return what ``needs`` asked for; a caller that left it out is a mistake of ours."""
    if value is None:
        raise TypeError("the evidence that widths.needs names is missing")
    return value
