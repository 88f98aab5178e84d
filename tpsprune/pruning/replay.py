"""A plan carried out: on the weights of another model, on optimizer state, and as one plan after another.

The structured lottery ticket is a plan replayed on initial or rewound weights. Pruning in rounds composes the
plans of its rounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.pruning.factored import factor_layers, factored_entries, factored_shapes
from tpsprune.pruning.groups import PrunedGroup, Slice, element_index
from tpsprune.pruning.opening import (
    close_layers,
    closed_shapes,
    closed_state,
    open_layers,
    opened_state,
    parts_of,
)
from tpsprune.pruning.plan import Plan, TensorFact, first_difference, signature_of
from tpsprune.pruning.surgery import KeptElements, add_biases, elements_kept, prune_in_place, take

Shapes: TypeAlias = Mapping[str, Sequence[int]]
Place: TypeAlias = tuple[str, int]
"""A tensor by name, and one of its axes."""


def replay(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` pruned to the units of ``plan``, every weight kept equal bit for bit.

    Nothing is compensated: this is for initial or rewound weights, and for an empty shell that a ticket's
    state dict is loaded into. Layers in the plan's ``new_biases`` get a bias of zeros, so that the state
    dicts fit. The plan holds the layout of every pruned tensor: no trace is needed. Modules that the
    plan opens are opened first, then biases are added, then units are pruned and the numbers that modules
    store about them (heads) follow; experts are closed again. Layers of low rank become the two that come
    nearest to what is left of their weights: those alone are not equal bit for bit.

    Raises:
        PruneError: the plan is of another model; the message names the first tensor that differs, or the
            module that cannot be opened here.
    """
    if difference := first_difference(plan.model, signature_of(model)):
        raise PruneError(f"the plan is for another model: {difference}")
    ticket, _ = open_layers(model, plan.opened)
    add_biases(ticket, plan.new_biases)
    prune_in_place(ticket, plan.groups)
    close_layers(ticket)
    factor_layers(ticket, plan.factored)
    return ticket


def check_ticket(ticket: nn.Module, plan: Plan) -> None:
    """Raise unless the tensors of a model are those that carrying out ``plan`` leaves, by name.

    Raises:
        PruneError: names the first that differs.
    """
    planned = _facts_of_ticket(plan, elements_kept(plan.shapes, plan.groups))
    found = sorted(signature_of(ticket), key=_name_of)
    if difference := first_difference(sorted(planned, key=_name_of), found):
        raise PruneError(f"the ticket is not as its plan left it: {difference}")


def _name_of(fact: TensorFact) -> str:
    return fact.name


def carry_state(state: Mapping[str, Mapping[str, Any]], plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the state of a dense model's optimizer as that of the ticket's, by parameter name.

    A tensor of its parameter's shape (``exp_avg``, ``momentum_buffer``) is sliced as the parameter was;
    a scalar (``step``) and whatever is no tensor is copied. What is held for a tensor that the
    plan opens falls apart as the tensor does (``opening.opened_state``). Parameters that the plan adds have
    no state and start afresh, as torch's optimizers make it on their first step; so do the two weights of a
    layer that is split.

    Args:
        state: for each parameter name what the optimizer holds for it, as ``optimizer.state[parameter]``.
        plan: of the pruning.

    Raises:
        PruneError: a name is not in the dense model, or a tensor of a pruned parameter has neither its
            shape nor a single element (factored moments), so that it cannot be sliced.
    """
    dense = {fact.name: fact.shape for fact in plan.model}
    shapes = plan.shapes
    kept = elements_kept(shapes, plan.groups)
    for name, entries in state.items():
        if name not in dense:
            raise PruneError(
                f"optimizer state of {name!r}: no such tensor in the plan's model{did_you_mean(name, dense)}"
            )
        for key, value in entries.items():
            # Which part of a weight factored moments belong to is unknown.
            is_sliced = name not in shapes or bool(kept.get(name))
            if (
                isinstance(value, Tensor)
                and is_sliced
                and value.numel() > 1
                and tuple(value.shape) != dense[name]
            ):
                raise PruneError(
                    f"optimizer state {name!r}, {key!r} has shape {list(value.shape)}, its parameter "
                    f"{list(dense[name])}: it cannot be carried over to the ticket; start a fresh optimizer"
                )

    def carry(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        fits = tuple(value.shape) == shapes[name]
        return (take(value, kept.get(name, {})) if fits else value).clone()

    carried = {
        name: {key: carry(name, value) for key, value in entries.items()}
        for name, entries in opened_state(state, plan.opened, dense).items()
    }
    return factored_entries(closed_state(carried, plan.opened, dense), plan.factored)


def compose(first: Plan, second: Plan) -> Plan:
    """Return the plan that does at once what ``second`` does to the ticket of ``first``.

    ``replay(model, compose(first, second))`` equals ``replay(replay(model, first), second)`` bit for bit,
    modules' numbers included. A group that both prune is one group again. One that only the second prunes
    keeps its layout where its units still lie in step in the dense model; where they do not (the first plan
    went through them), each of its axes is written out element by element, as a group of its own.

    Raises:
        PruneError: ``second`` was not made on the ticket of ``first``; the message names the first tensor
            that differs. Or it opens a module of which the first has already pruned something, or the first
            has split layers: their parts are no tensors of the dense model.
    """
    if first.factored:
        raise PruneError(
            f"the first plan splits {first.factored[0].layer!r}: a ticket with layers of low rank is pruned "
            "no further; set prune.low_rank for the last pruning alone"
        )
    kept = elements_kept(first.shapes, first.groups)
    expected = _facts_of_ticket(first, kept)
    rank_of = {fact.name: rank for rank, fact in enumerate(expected)}
    found = sorted(second.model, key=lambda fact: rank_of.get(fact.name, -1))
    if difference := first_difference(found, expected):
        raise PruneError(f"the second plan was not made on the ticket of the first: {difference}")
    later_opened = [name for name in second.opened if name not in first.opened]
    packed = {part.source for name in later_opened for part in parts_of(name, first.shapes).values()}
    if closed := sorted(packed & {name for name, axes in kept.items() if axes}):
        raise PruneError(f"the second plan opens a module that the first has pruned, at {closed[0]!r}")
    both = replace(
        second,
        opened=(*first.opened, *later_opened),
        new_biases=(*first.new_biases, *second.new_biases),
        model=first.model,
        groups=(),
    )
    left = _Left(both.shapes, kept, second.new_biases)
    earlier = {group.name: _with_new_biases(group, second.new_biases, left.shapes) for group in first.groups}
    later: list[PrunedGroup] = []
    for group in second.groups:
        again = earlier.get(group.name)
        if again and _is_same(again, group, left):
            del earlier[group.name]
            units = tuple(again.kept[unit] for unit in group.kept)
            later.append(replace(again, kept=units, attributes=group.attributes))
        else:
            later += _in_dense_numbering(group, left)
    return replace(both, groups=(*earlier.values(), *later))


class _Left:
    """What the first plan leaves of each axis, in the numbering of the dense model."""

    def __init__(self, shapes: Shapes, kept: KeptElements, new_biases: Sequence[str]) -> None:
        self.shapes = shapes
        self._kept = kept
        # A bias that is added later is as long as the outputs that are left by then.
        self._as_weight = {f"{module}.bias": f"{module}.weight" for module in new_biases}

    def elements(self, place: Slice) -> Tensor:
        """Return the elements that are left of an axis."""
        left = self._kept.get(self._as_weight.get(place.tensor, place.tensor), {}).get(place.axis)
        return torch.arange(self.shapes[place.tensor][place.axis]) if left is None else left

    def index(self, place: Slice, width: int) -> Tensor:
        """Return where the elements of each unit of the ticket lie in the dense model."""
        return self.elements(place)[element_index(place, width)]


def _is_same(first: PrunedGroup, second: PrunedGroup, left: _Left) -> bool:
    """Return whether ``second`` prunes the units that ``first`` left, and those wholly."""
    if len(first.kept) != second.width or {(a.module, a.name) for a in first.attributes} != {
        (a.module, a.name) for a in second.attributes
    }:
        return False
    before: dict[Place, list[set[int]]] = defaultdict(lambda: [set() for _ in first.kept])
    after: dict[Place, list[set[int]]] = defaultdict(lambda: [set() for _ in first.kept])
    for each in first.slices:
        alive = set(left.elements(each).tolist())
        index = element_index(each, first.width).tolist()
        for owned, unit in zip(before[each.tensor, each.axis], first.kept, strict=True):
            owned.update(alive.intersection(index[unit]))
    for each in second.slices:
        for owned, elements in zip(
            after[each.tensor, each.axis], left.index(each, second.width), strict=True
        ):
            owned.update(elements.tolist())
    return before == after


def _in_dense_numbering(group: PrunedGroup, left: _Left) -> list[PrunedGroup]:
    """Return a group of the ticket as groups of the dense model: one in its layout, or one for each axis."""
    indices = [left.index(each, group.width) for each in group.slices]
    slices = tuple(
        replace(
            each,
            offset=int(index[0, 0]),
            stride=int(index[0, each.block] - index[0, 0]) if each.repeat > 1 else 0,
        )
        for each, index in zip(group.slices, indices, strict=True)
    )
    if all(
        torch.equal(element_index(each, group.width), index)
        for each, index in zip(slices, indices, strict=True)
    ):
        return [replace(group, slices=slices)]
    removed: dict[Place, set[int]] = defaultdict(set)
    for each, index in zip(group.slices, indices, strict=True):
        removed[each.tensor, each.axis].update(index[list(group.removed)].flatten().tolist())
    groups = [replace(group, slices=())]
    for (tensor, axis), elements in removed.items():
        length = left.shapes[tensor][axis]
        kept = tuple(element for element in range(length) if element not in elements)
        name = f"{group.name}: {tensor}, axis {axis}"
        groups.append(PrunedGroup(name, length, kept, (Slice(tensor, axis, 0, 1),)))
    return groups


def _with_new_biases(group: PrunedGroup, new_biases: Sequence[str], shapes: Shapes) -> PrunedGroup:
    """Return the first plan's group as if the layer had had its bias by then: sliced like its outputs."""
    added = tuple(
        replace(slice_, tensor=f"{module}.bias")
        for module in new_biases
        for slice_ in group.slices
        if slice_.tensor == f"{module}.weight" and slice_.axis == 0 and len(shapes[slice_.tensor]) > 1
    )
    held = tuple(slice_ for slice_ in group.slices if slice_.tensor in shapes)
    return replace(group, slices=tuple(dict.fromkeys((*held, *added))))


def _facts_of_ticket(plan: Plan, kept: KeptElements) -> list[TensorFact]:
    """Return name, shape and number type of the tensors of the ticket that ``plan`` gives."""
    dense = {fact.name: fact.shape for fact in plan.model}
    kinds = {fact.name: fact.dtype for fact in plan.model}
    for module in plan.opened:
        kinds.update({name: kinds[part.source] for name, part in parts_of(module, dense).items()})
    kinds |= {f"{module}.bias": kinds[f"{module}.weight"] for module in plan.new_biases}
    for each in plan.factored:
        kinds |= dict.fromkeys(factored_shapes(plan.shapes, [each]), kinds[f"{each.layer}.weight"]) | kinds
    pruned = {
        name: tuple(len(kept.get(name, {}).get(axis, range(size))) for axis, size in enumerate(shape))
        for name, shape in plan.shapes.items()
    }
    return [
        TensorFact(name, shape, kinds[name])
        for name, shape in factored_shapes(closed_shapes(pruned, plan.opened, dense), plan.factored).items()
    ]
