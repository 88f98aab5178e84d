"""Two cuts, one after the other, as one plan in the numbering of the dense model: for pruning in rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from tpsprune.errors import PruneError
from tpsprune.pruning.groups import GroupCut, Slice
from tpsprune.pruning.layout import element_index
from tpsprune.pruning.open_attention import split_of
from tpsprune.pruning.plan import Plan, TensorFact, first_difference
from tpsprune.pruning.surgery import Elements, elements_kept

__all__ = ["compose"]

Place: TypeAlias = tuple[str, int]
"""A tensor by name, and one of its axes."""


def compose(first: Plan, second: Plan) -> Plan:
    """Return the plan that does at once what ``second`` does to the ticket of ``first``.

    ``replay(model, compose(first, second))`` equals ``replay(replay(model, first), second)`` bit for bit,
    modules' numbers included. A group that both cut is one group again. One that only the second cuts
    keeps its layout where its units still lie in step in the dense model; where they do not (the first cut
    went through them), each of its axes is written out element by element, as a group of its own.

    Raises:
        PruneError: ``second`` was not made on the ticket of ``first``; the message names the first tensor
            that differs. Or it opens an attention of which the first has already cut something.
    """
    alive_1 = elements_kept(first.shapes, first.groups)
    expected = _facts_of_ticket(first, alive_1)
    by_name = {fact.name: rank for rank, fact in enumerate(expected)}
    found = sorted(second.model, key=lambda fact: by_name.get(fact.name, -1))
    if difference := first_difference(found, expected):
        raise PruneError(f"the second plan was not made on the ticket of the first: {difference}")
    packed = {name for module in second.opened for name in split_of(module, first.shapes)}
    if closed := sorted(packed & {name for name, axes in alive_1.items() if axes}):
        raise PruneError(f"the second plan opens an attention that the first has cut, at {closed[0]!r}")
    answer = replace(
        second,
        opened=(*first.opened, *second.opened),
        new_biases=(*first.new_biases, *second.new_biases),
        model=first.model,
        groups=(),
    )
    shapes = answer.shapes
    alive = _Alive(shapes, alive_1, second.new_biases)
    earlier = {cut.name: _with_new_biases(cut, second.new_biases, shapes) for cut in first.groups}
    later: list[GroupCut] = []
    for cut in second.groups:
        again = earlier.get(cut.name)
        if again and _is_same(again, cut, alive):
            del earlier[cut.name]
            kept = tuple(again.kept[unit] for unit in cut.kept)
            later.append(replace(again, kept=kept, attributes=cut.attributes))
        else:
            later += _moved(cut, alive, shapes)
    return replace(answer, groups=(*earlier.values(), *later))


class _Alive:
    """What the first plan leaves of each axis, in the numbering of the dense model."""

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], kept: Elements, new_biases: Sequence[str]
    ) -> None:
        self.shapes = shapes
        self.kept = kept
        # A bias that is added later is as long as the outputs that are left by then.
        self.as_weight = {f"{module}.bias": f"{module}.weight" for module in new_biases}

    def elements(self, place: Place) -> Tensor:
        """Return the elements of an axis that are left."""
        tensor, axis = place
        left = self.kept.get(self.as_weight.get(tensor, tensor), {}).get(axis)
        return torch.arange(self.shapes[tensor][axis]) if left is None else left


def _is_same(first: GroupCut, second: GroupCut, alive: _Alive) -> bool:
    """Return whether ``second`` cuts the units that ``first`` left, and those wholly."""
    if len(first.kept) != second.width or {(a.module, a.name) for a in first.attributes} != {
        (a.module, a.name) for a in second.attributes
    }:
        return False
    before: dict[Place, list[set[int]]] = defaultdict(lambda: [set() for _ in first.kept])
    after: dict[Place, list[set[int]]] = defaultdict(lambda: [set() for _ in first.kept])
    for slice_ in first.slices:
        left = set(alive.elements(_place(slice_)).tolist())
        index = element_index(slice_, first.width).tolist()
        for owned, unit in zip(before[_place(slice_)], first.kept, strict=True):
            owned.update(left.intersection(index[unit]))
    for slice_ in second.slices:
        for owned, elements in zip(after[_place(slice_)], _in_dense(slice_, second, alive), strict=True):
            owned.update(elements.tolist())
    return before == after


def _moved(cut: GroupCut, alive: _Alive, shapes: Mapping[str, Sequence[int]]) -> list[GroupCut]:
    """Return a cut of the ticket as cuts of the dense model: one in its layout, or one for each axis."""
    slices = []
    for slice_ in cut.slices:
        index = _in_dense(slice_, cut, alive)
        stride = int(index[0, slice_.block] - index[0, 0]) if slice_.repeat > 1 else 0
        moved = replace(slice_, offset=int(index[0, 0]), stride=stride)
        if not torch.equal(element_index(moved, cut.width), index):
            break
        slices.append(moved)
    else:
        return [replace(cut, slices=tuple(slices))]
    gone: dict[Place, set[int]] = defaultdict(set)
    for slice_ in cut.slices:
        gone[_place(slice_)].update(_in_dense(slice_, cut, alive)[list(cut.removed)].flatten().tolist())
    answer = [replace(cut, slices=())]
    for (tensor, axis), elements in gone.items():
        length = shapes[tensor][axis]
        kept = tuple(element for element in range(length) if element not in elements)
        name = f"{cut.name}: {tensor}, axis {axis}"
        answer.append(GroupCut(name, length, kept, (Slice(tensor, axis, 0, 1),)))
    return answer


def _in_dense(slice_: Slice, cut: GroupCut, alive: _Alive) -> Tensor:
    """Return where the elements of each unit of the ticket lie in the dense model."""
    return alive.elements(_place(slice_))[element_index(slice_, cut.width)]


def _place(slice_: Slice) -> Place:
    return slice_.tensor, slice_.axis


def _with_new_biases(
    cut: GroupCut, new_biases: Sequence[str], shapes: Mapping[str, Sequence[int]]
) -> GroupCut:
    """Return the first cut as it would be had the layer had its bias by then: cut like its outputs."""
    added = tuple(
        replace(slice_, tensor=f"{module}.bias")
        for module in new_biases
        for slice_ in cut.slices
        if slice_.tensor == f"{module}.weight" and slice_.axis == 0 and len(shapes[slice_.tensor]) > 1
    )
    held = tuple(slice_ for slice_ in cut.slices if slice_.tensor in shapes)
    return replace(cut, slices=tuple(dict.fromkeys((*held, *added))))


def _facts_of_ticket(plan: Plan, alive: Elements) -> list[TensorFact]:
    """Return name, shape and number type of the tensors of the ticket that ``plan`` draws."""
    kinds = {fact.name: fact.dtype for fact in plan.model}
    for module in plan.opened:
        for old, parts in split_of(module, kinds).items():
            kinds.update(dict.fromkeys(parts, kinds[old]))
    kinds |= {f"{module}.bias": kinds[f"{module}.weight"] for module in plan.new_biases}
    return [
        TensorFact(
            name,
            tuple(len(alive.get(name, {}).get(axis, range(size))) for axis, size in enumerate(shape)),
            kinds[name],
        )
        for name, shape in plan.shapes.items()
    ]
