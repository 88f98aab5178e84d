"""How many units each group keeps, so that the whole costs what was asked for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from tpsprune.errors import PruneError
from tpsprune.numerics.macs import MacCount
from tpsprune.pruning.groups import Group
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs

__all__ = ["MacModel", "choose_widths", "least_widths"]

HALVINGS = 60
WORTH_SAYING = 0.01


@dataclass(frozen=True, slots=True)
class _Term:
    """One layer: its multiply-accumulates, and per axis of its weight what share a unit of a group is."""

    macs: int
    axes: tuple[tuple[tuple[int, float], ...], ...]


@final
@dataclass(frozen=True, slots=True)
class MacModel:
    """Multiply-accumulates as a function of widths, exact: every weight is used equally often.

    A layer costs its dense figure times, for each axis of its weight, the share of elements that stay;
    what no cut layer multiplies (attention scores, layers left alone) is constant.
    """

    widths: tuple[int, ...]
    constant: int
    terms: tuple[_Term, ...]

    @classmethod
    def of(cls, groups: Sequence[Group], shapes: Mapping[str, Sequence[int]], count: MacCount) -> MacModel:
        """Build from the dense model's groups, tensor shapes and multiply-accumulates."""
        axes: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        for rank, group in enumerate(groups):
            for slice_ in group.slices:
                module, _, tensor = slice_.tensor.rpartition(".")
                if tensor == "weight" and module in count.by_module:
                    share = slice_.block / shapes[slice_.tensor][slice_.axis]
                    axes[module][slice_.axis].append((rank, share))
        terms = tuple(
            _Term(count.by_module[module], tuple(tuple(each) for each in by_axis.values()))
            for module, by_axis in axes.items()
        )
        constant = count.total - sum(term.macs for term in terms)
        return cls(tuple(group.width for group in groups), constant, terms)

    @property
    def total(self) -> int:
        """Multiply-accumulates of the dense model."""
        return self.constant + sum(term.macs for term in self.terms)

    def at(self, widths: Sequence[int]) -> float:
        """Return the multiply-accumulates at ``widths``, one for each group."""
        gone = [dense - width for dense, width in zip(self.widths, widths, strict=True)]
        return self.constant + sum(
            term.macs * math.prod(1.0 - sum(gone[rank] * share for rank, share in axis) for axis in term.axes)
            for term in self.terms
        )


def least_widths(widths: Sequence[int], settings: Prune) -> tuple[int, ...]:
    """Return the fewest units that the settings let each group keep."""
    return tuple(
        min(
            width,
            _up(max(settings.min_width, math.ceil(width * (1.0 - settings.max_cut_share) - 1e-9)), settings),
        )
        for width in widths
    )


def choose_widths(macs: MacModel, wishes: Sequence[float], settings: Prune) -> tuple[int, ...]:
    """Return widths in proportion to ``wishes`` that cost at most the target, and not a step less.

    width = c · wish, to the nearest multiple of ``round_to``, between the least allowed and the dense
    width; c is the largest that fits, found by halving. What is then left over grows, step by step, the
    group that rounding hurt most, until no group can be a step wider. ``wishes`` are effective ranks, or
    the dense widths for a uniform cut.

    Raises:
        PruneError: even the least widths cost more than the target.
    """
    assert isinstance(settings.target, Macs)
    target = settings.target.macs * macs.total
    least = least_widths(macs.widths, settings)
    if macs.at(least) > target:
        reach = math.ceil(1000 * macs.at(least) / macs.total) / 1000
        raise PruneError(
            f"prune.target {settings.target} cannot be reached: with min_width "
            f"{settings.min_width}, max_cut_share {settings.max_cut_share:g} and round_to "
            f"{settings.round_to} the least is {reach:.3f}{_uncut_words(macs)}"
        )

    def scaled(c: float) -> tuple[int, ...]:
        return tuple(
            max(low, min(width, settings.round_to * math.floor(c * wish / settings.round_to + 0.5)))
            for low, width, wish in zip(least, macs.widths, wishes, strict=True)
        )

    low, high = (
        0.0,
        2.0 * max(width / max(wish, 1e-9) for width, wish in zip(macs.widths, wishes, strict=True)),
    )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if macs.at(scaled(middle)) <= target else (low, middle)
    chosen = scaled(low)
    while True:
        by_need = sorted(range(len(chosen)), key=lambda rank: chosen[rank] - low * wishes[rank])
        wider = (_one_step_wider(chosen, rank, macs, settings) for rank in by_need)
        fitting = next((widths for widths in wider if widths != chosen and macs.at(widths) <= target), None)
        if fitting is None:
            return chosen
        chosen = fitting


def _one_step_wider(widths: tuple[int, ...], rank: int, macs: MacModel, settings: Prune) -> tuple[int, ...]:
    grown = min(macs.widths[rank], widths[rank] + settings.round_to)
    return (*widths[:rank], grown, *widths[rank + 1 :])


def _uncut_words(macs: MacModel) -> str:
    share = macs.constant / macs.total
    if share < WORTH_SAYING:
        return "; lower those, or ask for more"
    return f", because {share:.0%} of the multiply-accumulates lie in layers that cannot be cut"


def _up(width: int, settings: Prune) -> int:
    return settings.round_to * math.ceil(width / settings.round_to)
