"""From couplings to groups that may be cut: what a unit is, where convolutions and norms come in groups.

Where a coupling meets a grouped convolution or a group norm, single channels cannot go. Two ways are open:

* *blocks*: unit g is all that group g reads and puts out. The convolution is then a member, as a depthwise
  one is, and has fewer groups; what is coupled before and behind it becomes one group.
* *bundles*: unit j is channel j of every group. The convolution keeps its groups, each narrower, and mixes
  units: each of its groups is a consumer of its own.

The way with more units is tried first: the finer the choice, the less a cut costs. A group norm leaves
blocks only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd

from torch import nn

from tpsprune.pruning.coupling import Coupling, Touch
from tpsprune.pruning.groups import Attribute, Consumer, Group, Slice
from tpsprune.pruning.layers import fault_of, is_grouped, is_mixer, length, tensor_axes
from tpsprune.pruning.norms import is_vector_norm, norms_over_units

__all__ = ["Candidate", "Proposal", "candidates"]

FEW_PLACES = 4
"""Up to so many places a unit is read at count as signals of their own; beyond, one signal at many places."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A group as it might be cut; ``fault`` says why it cannot, as far as its structure tells."""

    group: Group
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Ways to cut the same units, likeliest first. A way is one group, or several beside each other."""

    ways: tuple[tuple[Proposal, ...], ...]

    @property
    def told(self) -> tuple[Proposal, ...]:
        """The way whose names and reasons are given when there is none: that of most groups."""
        return max(self.ways, key=len)


@dataclass(frozen=True, slots=True)
class _Part:
    """A coupling whose fine units are joined: ``join`` that follow each other, or ``bundle`` far apart."""

    coupling: Coupling
    join: int = 1
    bundle: int = 1

    @property
    def width(self) -> int:
        return self.coupling.width // (self.join * self.bundle)

    def run(self, touch: Touch) -> tuple[int, int, int, int]:
        """Return offset, block, repeat and stride of a unit of this part at ``touch``."""
        if self.bundle > 1:
            return touch.offset, touch.block, self.bundle, self.width * touch.block
        return touch.offset, touch.block * self.join, touch.repeat, touch.stride


def candidates(model: nn.Module, couplings: Sequence[Coupling]) -> Iterator[Candidate]:
    """Yield what may be cut, in the order of ``couplings``, unproved."""
    order = {name: rank for rank, (name, _) in enumerate(model.named_modules())}
    for members in _families(model, couplings):
        convolutions = {
            touch.module: module
            for coupling in members
            for touch in coupling.touches
            if is_grouped(module := model.get_submodule(touch.module))
        }
        if not convolutions:
            plain = _blocks(model, members, order)
            ways = [(plain,)]
            if side_by_side := _side_by_side(model, plain):
                ways.append((side_by_side,))
            yield Candidate(tuple(ways))
            continue
        blocks = _blocks(model, members, order)
        bundles = tuple(_bundles(model, coupling, order) for coupling in members)
        finer = blocks.group.width >= min(proposal.group.width for proposal in bundles)
        yield Candidate(((blocks,), bundles) if finer else (bundles, (blocks,)))


def _families(model: nn.Module, couplings: Sequence[Coupling]) -> list[list[Coupling]]:
    """Return the couplings that meet through grouped convolutions, each family in order."""
    family = list(range(len(couplings)))
    first: dict[str, int] = {}
    for rank, coupling in enumerate(couplings):
        for touch in coupling.touches:
            if is_grouped(model.get_submodule(touch.module)):
                here, there = family[rank], family[first.setdefault(touch.module, rank)]
                family = [there if each == here else each for each in family]
    return [
        [coupling for rank, coupling in enumerate(couplings) if family[rank] == each]
        for each in dict.fromkeys(family)
    ]


def _blocks(model: nn.Module, family: Sequence[Coupling], order: Mapping[str, int]) -> Proposal:
    """Join fine units until every group of a convolution or norm is a whole number of them, or they of it."""
    faults = []
    units = gcd(*(coupling.width for coupling in family))
    sides: dict[str, set[str]] = {}
    for coupling in family:
        for touch in coupling.touches:
            module = model.get_submodule(touch.module)
            in_groups = is_grouped(module) or (isinstance(module, nn.GroupNorm) and module.num_groups > 1)
            if not in_groups:
                continue
            units = gcd(units, _number_of_groups(module))
            sides.setdefault(touch.module, set()).add(touch.side)
            whole = touch.block * coupling.width == length(module, touch.side)
            if touch.offset or touch.repeat > 1 or not whole:
                faults.append(f"it is only a part of what {touch.module} takes in groups")
            if is_grouped(module) and touch.side == "both":
                faults.append(f"{touch.module} reads and puts out channels of different numbers")
    for name, met in sides.items():
        if is_grouped(model.get_submodule(name)) and met == {"in"}:
            faults.append(f"what {name} puts out from it is not known")
        elif is_grouped(model.get_submodule(name)) and met == {"out"}:
            faults.append(f"what {name} reads cannot be cut along with it")
    parts = [_Part(coupling, join=coupling.width // units) for coupling in family]
    return _proposal(model, parts, order, faults, as_members=True)


def _number_of_groups(module: nn.Module) -> int:
    return module.num_groups if isinstance(module, nn.GroupNorm) else int(getattr(module, "groups", 1))


def _bundles(model: nn.Module, coupling: Coupling, order: Mapping[str, int]) -> Proposal:
    """Make units of the channels that have the same number within each group of the convolutions met."""
    faults = []
    modules = [(touch, model.get_submodule(touch.module)) for touch in coupling.touches]
    convolutions = [(touch, module) for touch, module in modules if is_grouped(module)]
    numbers = {module.groups for _, module in convolutions}
    groups = numbers.pop()
    if numbers or coupling.width % groups:
        faults.append("it meets convolutions whose groups are of different numbers")
        groups = 1
    for touch, module in convolutions:
        if module.transposed or touch.side == "both":
            faults.append(f"{touch.module} is a transposed convolution in groups")
        if touch.offset or touch.block != 1 or coupling.width != length(module, touch.side):
            faults.append(f"it is only a part of what {touch.module} takes in groups")
    faults += [
        f"the groups of {touch.module} are not those of the convolution"
        for touch, module in modules
        if (isinstance(module, nn.GroupNorm) and module.num_groups > 1) or touch.repeat > 1
    ]
    return _proposal(model, [_Part(coupling, bundle=groups)], order, faults, as_members=False)


def _proposal(
    model: nn.Module,
    parts: Sequence[_Part],
    order: Mapping[str, int],
    faults: Sequence[str],
    *,
    as_members: bool,
) -> Proposal:
    producers: dict[str, None] = {}
    members: dict[str, None] = {}
    consumers: list[Consumer] = []
    slices: dict[Slice, None] = {}
    attributes: dict[Attribute, None] = {}
    own_faults = [part.coupling.fault for part in parts if part.coupling.fault] + list(faults)
    touches = [(part, touch) for part in parts for touch in part.coupling.touches]
    for part, touch in sorted(touches, key=lambda each: order[each[1].module]):
        module = model.get_submodule(touch.module)
        run = part.run(touch)
        whole = run[1] * run[2] * part.width == length(module, touch.side)
        if (fault := fault_of(module)) or (fault := _size_fault(module, whole)):
            first = touch.module == next(iter(producers), parts[0].coupling.root)
            own_faults.append(fault if first else f"it meets {touch.module}: {fault}")
            continue
        if is_grouped(module) and as_members:
            members[touch.module] = None
            attributes[Attribute(touch.module, "groups", module.groups // part.width)] = None
            axes = _axes_of_member(module, touch)
        elif is_grouped(module) and touch.side == "in":
            consumers += _group_by_group(module, touch, part.width)
            slices[Slice(f"{touch.module}.weight", 1, 0, touch.block)] = None
            continue
        else:
            axes = tensor_axes(module, touch.side)
            if touch.side == "in":
                consumers.append(Consumer(touch.module, *run, positions=_positions(touch)))
            elif touch.side == "out" or isinstance(module, nn.Embedding):
                producers[touch.module] = None
            else:
                members[touch.module] = None
                attributes.update(dict.fromkeys(_sizes(touch.module, module, part.width)))
        slices.update({Slice(f"{touch.module}.{tensor}", axis, *run): None for tensor, axis in axes.items()})
    fine = all(part.join == part.bundle == 1 for part in parts)
    group = Group(
        next(iter(producers), parts[0].coupling.root),
        parts[0].width,
        tuple(producers),
        tuple(members),
        tuple(consumers),
        tuple(slices),
        tuple(attributes),
        kind="units" if fine else "blocks",
    )
    if not consumers:
        own_faults.append("it is the model's output")
    return Proposal(group, next(iter(own_faults), ""))


def _axes_of_member(module: nn.Module, touch: Touch) -> dict[str, int]:
    """Return the tensors of a convolution that loses whole groups: its weight runs over groups on axis 0."""
    transposed = bool(getattr(module, "transposed", False))
    if touch.side == "in":
        return {"weight": 0} if transposed else {}
    return {"bias": 0} if transposed else {"weight": 0, "bias": 0}


def _group_by_group(module: nn.Module, touch: Touch, width: int) -> Iterator[Consumer]:
    groups = int(getattr(module, "groups", 1))
    outputs = length(module, "out") // groups
    for rank in range(groups):
        offset = touch.offset + rank * width * touch.block
        yield Consumer(touch.module, offset, touch.block, outputs=(rank * outputs, (rank + 1) * outputs))


def _positions(touch: Touch) -> int:
    return touch.block * touch.repeat if touch.repeat > FEW_PLACES else touch.block


def _sizes(name: str, module: nn.Module, units: int) -> Iterator[Attribute]:
    """Yield what a norm remembers about its width or groups, where its tensors do not tell."""
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        yield Attribute(name, "num_groups", module.num_groups // units)
    if _forgets(module):
        long = length(module, "both")
        for attribute, value in vars(module).items():
            if type(value) in (int, tuple) and value in (long, (long,)) and not attribute.startswith("_"):
                yield Attribute(name, attribute, long // units)


def _size_fault(module: nn.Module, whole: bool) -> str:
    return "it spans several groups of units" if not whole and _forgets(module) else ""


def _forgets(module: nn.Module) -> bool:
    """Return whether a norm's sizes cannot be read from its tensors."""
    is_norm = norms_over_units(module) or isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase)
    return is_norm and (is_vector_norm(module) or not any(t.ndim for t in module.state_dict().values()))


def _side_by_side(model: nn.Module, plain: Proposal) -> Proposal | None:
    """Return the other way to read a flatten: not a unit's places in a run, but all units place by place."""
    group, width = plain.group, plain.group.width
    turned: dict[str, tuple[int, int]] = {}
    for consumer in group.consumers:
        module = model.get_submodule(consumer.module)
        places, rest = divmod(length(module, "in"), width)
        alone = sum(each.module == consumer.module for each in group.consumers) == 1
        starts = alone and not consumer.offset and consumer.repeat == 1 and consumer.block in (1, places)
        if is_mixer(module) and places > 1 and not rest and starts:
            turned[consumer.module] = (places, width)
    if not turned or plain.fault:
        return None
    consumers = tuple(
        each
        if each.module not in turned
        else Consumer(
            each.module,
            0,
            1,
            *turned[each.module],
            positions=turned[each.module][0] if turned[each.module][0] > FEW_PLACES else 1,
        )
        for each in group.consumers
    )
    slices = tuple(
        Slice(each.tensor, each.axis, 0, 1, *turned[owner])
        if (owner := each.tensor.rpartition(".")[0]) in turned
        and each.axis == tensor_axes(model.get_submodule(owner), "in")["weight"]
        else each
        for each in group.slices
    )
    return Proposal(replace(group, consumers=consumers, slices=slices))
