"""Which units of a dense model another tool's pruned model still has: found by their weights.

Units are matched group by group: first those that vectors tell apart whatever else was pruned (biases, batch
norms), then those whose weights lie along axes that are known by then. Distances are those of the elements of
a unit, over their spread in the dense model; each unit of the pruned model has one of the dense model's.

Shape letters: n units of the dense model, k of the pruned, e elements of a unit along its axis, r the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from tpsprune.errors import PruneError
from tpsprune.numerics.assignment import assign
from tpsprune.pruning.groups import Group, Slice, element_index

FAR: Final = 0.5
"""A mean distance beyond it, as a share of that of units at random, is no match."""
TINY: Final = 1e-12


def align_units(
    groups: Sequence[Group], dense: Mapping[str, Tensor], pruned: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[int, ...]], float]:
    """Return the units of each narrower group that a pruned model has, and how far they are from their own.

    Args:
        groups: of the dense model.
        dense: its tensors by name.
        pruned: the other model's, under the same names, some of them smaller.

    Returns:
        Units in ascending order, by group; and the largest mean distance of a group, as a share of the mean
        distance of all pairs of its units: 0 where weights are equal, about 1 where units have nothing to do
        with each other.

    Raises:
        PruneError: a tensor is missing or of a shape that no widths give, units lie in another order, or
            nothing tells which they are.

    Cost: n·k·e·r for each tensor; an assignment of n × k numbers for each group.
    """
    if missing := [name for name in dense if name not in pruned]:
        raise PruneError(f"the pruned model has no tensor {missing[0]!r}: it is of another architecture")
    widths = {group.name: _width(group, dense, pruned) for group in groups}
    left = [group for group in groups if widths[group.name] < group.width]
    # Along these axes of the dense model the pruned one has the elements given.
    known: dict[tuple[str, int], Tensor] = {}
    narrow = {(each.tensor, each.axis) for group in left for each in group.slices}
    found: dict[str, tuple[int, ...]] = {}
    farthest = 0.0
    while left:
        group, layouts = _next(left, known, narrow, dense)
        units, distance = _match(group, layouts, widths[group.name], known, dense, pruned)
        if units != sorted(units):
            raise PruneError(f"{group.name}: the pruned model has its units in another order")
        found[group.name], farthest = tuple(units), max(farthest, distance)
        for each in (each for each in group.slices if each.tensor in dense):
            place = (each.tensor, each.axis)
            whole = known.get(place, torch.arange(dense[each.tensor].shape[each.axis]))
            gone = element_index(each, group.width)[[u for u in range(group.width) if u not in units]]
            known[place] = whole[~torch.isin(whole, gone.flatten())]
        left.remove(group)
    for name, tensor in dense.items():
        axes = {axis: elements for (owner, axis), elements in known.items() if owner == name}
        wanted = [len(axes[axis]) if axis in axes else size for axis, size in enumerate(tensor.shape)]
        if list(pruned[name].shape) != wanted:
            raise PruneError(
                f"{name} is {list(pruned[name].shape)} in the pruned model, and {wanted} by the units found"
            )
    return found, farthest


def _width(group: Group, dense: Mapping[str, Tensor], pruned: Mapping[str, Tensor]) -> int:
    """Return how many units of a group the other model has, by an axis that holds nothing else."""
    for each in group.slices:
        own = each.block * each.repeat
        if each.tensor not in dense or dense[each.tensor].ndim != pruned[each.tensor].ndim:
            continue
        before, after = (tensors[each.tensor].shape[each.axis] for tensors in (dense, pruned))
        if before == group.width * own and after % own == 0 and 0 < after <= before:
            return int(after // own)
    raise PruneError(f"{group.name}: the pruned model has a number of units that no pruning of it leaves")


def _next(
    left: Sequence[Group],
    known: Mapping[tuple[str, int], Tensor],
    narrow: set[tuple[str, int]],
    dense: Mapping[str, Tensor],
) -> tuple[Group, list[Slice]]:
    """Return the group that most tensors tell apart already, and those tensors."""
    usable = {
        group.name: [
            each
            for each in group.slices
            if each.tensor in dense
            and dense[each.tensor].shape[each.axis] == group.width * each.block * each.repeat
            and all(
                (each.tensor, axis) in known or (each.tensor, axis) not in narrow
                for axis in range(dense[each.tensor].ndim)
                if axis != each.axis
            )
        ]
        for group in left
    }
    best = max(left, key=lambda group: sum(dense[each.tensor].numel() for each in usable[group.name]))
    if not usable[best.name]:
        raise PruneError(f"{best.name}: nothing tells which of its units the pruned model has")
    return best, usable[best.name]


def _match(
    group: Group,
    layouts: Sequence[Slice],
    width: int,
    known: Mapping[tuple[str, int], Tensor],
    dense: Mapping[str, Tensor],
    pruned: Mapping[str, Tensor],
) -> tuple[list[int], float]:
    cost_kn = torch.zeros(width, group.width, dtype=torch.float64)
    for each in layouts:
        theirs, ours = pruned[each.tensor].double(), dense[each.tensor].double()
        for axis in range(ours.ndim):
            if axis != each.axis and (elements := known.get((each.tensor, axis))) is not None:
                ours = ours.index_select(axis, elements.to(ours.device))
        theirs, ours = theirs.movedim(each.axis, 0), ours.movedim(each.axis, 0)
        if theirs.shape[1:] != ours.shape[1:]:
            continue
        theirs_kd = theirs[element_index(each, width)].flatten(1).cpu()
        ours_nd = ours[element_index(each, group.width)].flatten(1).cpu()
        spread = (ours_nd - ours_nd.mean(0)).square().mean().clamp_min(TINY)
        cost_kn += torch.cdist(theirs_kd, ours_nd).square() / (spread * ours_nd.shape[1])
    units = assign(cost_kn)
    distance = cost_kn[torch.arange(width), units].mean() / cost_kn.mean().clamp_min(TINY)
    return units, float(distance)
