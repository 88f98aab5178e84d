"""Which units are coupled: traced by torch-pruning, and turned into groups that might be pruned.

The trace gives, for the units of each layer with weights, every side of every module that they reach
(``trace_couplings``). A coupling becomes a group (``propose_groups``): producers, members and consumers with
the elements of each unit. Nothing here is proved; ``trial`` does that.

Where a coupling meets a grouped convolution or a group norm, single channels cannot be pruned. Two ways are
open:

* *blocks*: unit g is all that group g reads and makes. The convolution is then a member, as a depthwise
  one is, and has fewer groups; what is coupled before and behind it becomes one group.
* *bundles*: unit j is channel j of every group. The convolution keeps its groups, each narrower, and mixes
  units: each of its groups is a consumer of its own.

The way with more units is tried first: the finer the choice, the less pruning costs. A group norm leaves
blocks only.

Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", CVPR. Only this file and ``baselines``
know that library.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Final, TypeAlias, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.dependency import index_mapping

from tpsprune.errors import PruneError, first_line
from tpsprune.numerics.forward import call_model, flat_tensors
from tpsprune.pruning.groups import Attribute, Consumer, Group, Slice
from tpsprune.pruning.layers import (
    PRUNABLE,
    Side,
    fault_of,
    is_grouped,
    is_mixer,
    is_transposed_linear,
    is_vector_norm,
    length,
    norms_over_units,
    tensor_axes,
)
from tpsprune.pruning.surgery import copy_model

HYBRID = torch_pruning._helpers._HybridIndex
ROOTS = (torch_pruning.ops.TORCH_CONV, torch_pruning.ops.TORCH_LINEAR, nn.Embedding)
OWNERS = (*PRUNABLE, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)

COMES_IN: Final = re.compile(r"^(in|input|d_in)_?|^(dim|channels|width|features|hidden)")
FEW_PLACES: Final = 4
"""Up to so many places a unit is read at count as signals of their own; beyond, one signal at many places."""

Reached: TypeAlias = dict[tuple[Any, Any], dict[int, int]]
"""By node of the graph and side of it, the unit of the root that each element belongs to."""

Run: TypeAlias = tuple[int, int, int, int]
"""Offset, block, repeat and stride of units along an axis; see ``groups``."""


@dataclass(frozen=True, slots=True)
class CoupledSide:
    """One side of one module that the units of a coupling reach; the four numbers are those of ``groups``."""

    module: str
    side: Side
    offset: int
    block: int
    repeat: int = 1
    stride: int = 0


@dataclass(frozen=True, slots=True)
class Coupling:
    """Units of one layer and everything they reach; ``fault`` is why they cannot be separated, if so."""

    root: str
    width: int
    sides: tuple[CoupledSide, ...]
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A group as it might be pruned; ``fault`` is the reason in its structure why it cannot, if any."""

    group: Group
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Ways to prune the same units, likeliest first. A way is one group, or several side by side."""

    ways: tuple[tuple[Proposal, ...], ...]


def trace_couplings(model: nn.Module, batch: Any) -> tuple[Coupling, ...]:
    """Trace ``model`` and return the coupled units of each layer with weights, each coupling once.

    The trace runs on ``traceable_copy``; the model handed in is not touched. A layer the output does not
    depend on is not in the result, nor are parameters that no layer holds. An operation that the library
    stumbles over is the fault of the couplings that reach it, not of the rest.

    Raises:
        PruneError: the model cannot be copied, or not be traced at all.

    Cost: one forward pass, a copy, and a traversal of the autograd graph per layer; 0.3 s for ResNet-50.
    """
    traced = traceable_copy(model)
    graph = torch_pruning.DependencyGraph()
    lost: frozenset[Any] = frozenset()
    try:
        with torch.enable_grad():
            graph.build_dependency(
                traced,
                batch,
                # Numbers alone, for the library stumbles over anything else.
                forward_fn=lambda model, batch: list(flat_tensors(call_model(model, batch))),
                unwrapped_parameters=[],
                customized_pruners={},
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
    # The model's own code runs here and the library's on whatever it did: either may raise anything.
    except Exception as error:
        if not hasattr(graph, "module2node"):
            raise PruneError(f"the model cannot be traced ({first_line(error)})") from error
        lost = _map_each_node(graph)
    return tuple(_couplings(traced, graph, lost))


def _map_each_node(graph: Any) -> frozenset[Any]:
    """Make the index maps of a traced graph node by node; return the nodes that the library fails at.

    ``build_dependency`` makes them last, all in one call that the first node it fails at ends.
    """
    lost = set()
    one = copy.copy(graph)
    for module, node in graph.module2node.items():
        one.module2node = {module: node}
        try:
            index_mapping.update_index_mapping(one)
        except Exception:  # noqa: BLE001
            lost.add(node)
    return frozenset(lost)


def traceable_copy(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` to be traced, in evaluation mode, of modules the tracing library knows.

    RMS norms and norms of unknown classes become layer norms, Hugging Face's Conv1D becomes linear: only the
    coupling of units is read from the copy, never a value, so shapes, names and mixing are what counts. All
    gradients are on but those of unwrapped parameters. A frozen layer would be invisible to the trace, and a
    parameter added to the units (positions, a class token, a scale) misleads it: the gradient decides which
    of these belong to a group (``trial``).

    Raises:
        PruneError: the model cannot be copied.
    """
    traced = copy_model(model).eval()
    unwrapped = {id(parameter) for parameter in unwrapped_parameters(traced).values()}
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point() and id(parameter) not in unwrapped)
    for name, module in list(traced.named_modules()):
        if name and (equivalent := _equivalent_module(module)) is not None:
            traced.set_submodule(name, equivalent.eval())
    return traced


def unwrapped_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that no layer of ``OWNERS`` holds, by name."""
    held = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, OWNERS) or is_transposed_linear(module) or is_vector_norm(module)
        for parameter in module.parameters()
    }
    return {name: each for name, each in model.named_parameters() if id(each) not in held}


def _equivalent_module(module: nn.Module) -> nn.Module | None:
    like = next(module.parameters(recurse=False), torch.empty(0))
    if is_transposed_linear(module):
        inputs, outputs = cast(Tensor, module.weight).shape
        return nn.Linear(inputs, outputs, bias=getattr(module, "bias", None) is not None).to(like)
    if isinstance(module, nn.RMSNorm):
        return nn.LayerNorm(module.normalized_shape).to(like)
    return nn.LayerNorm(len(like)).to(like) if is_vector_norm(module) else None


def _couplings(model: nn.Module, graph: Any, lost: frozenset[Any]) -> Iterator[Coupling]:
    names = {module: name for name, module in model.named_modules()}
    seen: set[str] = set()
    longest = max((max(length(m, "in"), length(m, "out")) for m in names if isinstance(m, ROOTS)), default=0)
    for name, module in model.named_modules():
        if not isinstance(module, ROOTS) or name in seen or module not in graph.module2node:
            continue
        pruner = graph.get_pruner_of_module(module)
        if pruner.prune_in_channels == pruner.prune_out_channels and not isinstance(module, nn.Embedding):
            continue  # The units of a depthwise convolution are those of others.
        width = pruner.get_out_channels(module)
        try:
            reached = _reach(graph, module, pruner.prune_out_channels, width, longest)
        except Exception as error:  # noqa: BLE001
            yield Coupling(name, width, (), f"the trace of its units fails ({first_line(error)})")
            continue
        if met := next((node for node, _ in reached if node in lost), None):
            yield Coupling(
                name, width, (), f"the trace cannot follow its units through its operation {_operation(met)}"
            )
            continue
        coupling = _read(name, width, reached, graph, names)
        seen.update(
            each.module
            for each in coupling.sides
            if each.side == "out" or isinstance(model.get_submodule(each.module), nn.Embedding)
        )
        yield coupling


def _operation(node: Any) -> str:
    """Return what a node without weights does, in torch's word for it: reshape, split, concat."""
    kind = getattr(node.grad_fn, "name", lambda: "")() if node.grad_fn is not None else ""
    return kind.removesuffix("0").removesuffix("Backward") or type(node.module).__name__


def _reach(graph: Any, root: nn.Module, handler: Any, width: int, longest: int) -> Reached:
    """Return what the units of ``root`` reach, and by which unit each element there is reached first.

    The library's own traversal compares whole lists of elements, which in some attentions never end; here
    every element of every place is visited once, and one that no layer is long enough for is dropped.
    """
    start = graph.module2node[root]
    reached: Reached = {(start, handler): {unit: unit for unit in range(width)}}
    stack = [(start, handler, [HYBRID(unit, unit) for unit in range(width)])]
    while stack:
        node, came_by, fresh = stack.pop()
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(came_by):
                continue
            there = fresh
            for mapping in dependency.index_mapping:
                there = there if mapping is None else mapping(there)
            target, side = dependency.target, _side(dependency.handler, graph)
            limit = (length(target.module, side) if isinstance(target.module, nn.Module) else 0) or longest
            met = reached.setdefault((target, dependency.handler), {})
            new = {each.idx: each for each in there if 0 <= each.idx < limit and each.idx not in met}
            if new:
                # What is repeated (keys that query heads share) has lost its root.
                met.update({idx: -1 if each.root_idx is None else each.root_idx for idx, each in new.items()})
                stack.append((target, dependency.handler, list(new.values())))
    return {place: elements for place, elements in reached.items() if elements}


def _read(root: str, width: int, reached: Reached, graph: Any, names: dict[nn.Module, str]) -> Coupling:
    met = []
    faults = []
    units = width
    for (target, handler), owners in reached.items():
        # The trace goes backwards from the output: what nothing reads is the output.
        if not (target.outputs or _side(handler, graph) == "in"):
            faults.append("it is the model's output")
        if target.module in names:
            met.append((names[target.module], _side(handler, graph), owners))
            # An operation the trace does not know (chunk, a gated unit) may have halved the units since.
            units = min(units, len(owners))
    if units == 1 < width:
        place = next(name for name, _, owners in met if len(owners) == 1)
        faults.append(f"of its units one alone is traced to {place}")
        units = width
    elif not units or width % units:
        units = width
        faults.append("parts of it reach different layers")
    sides = []
    for name, side, owners in met:
        run = _run_of(owners, units)
        if run is None:
            faults.append(f"its units are not laid out one after the other in {name}")
        else:
            sides.append(CoupledSide(name, side, *run))
    return Coupling(root, units, tuple(sides), faults[0] if faults else "")


def _side(handler: Any, graph: Any) -> Side:
    if graph.is_out_channel_pruning_fn(handler):
        return "both" if graph.is_in_channel_pruning_fn(handler) else "out"
    return "in"


def _run_of(owners: dict[int, int], units: int) -> Run | None:
    """Return offset, block, repeat and stride of ``units`` units, given the root unit of each element.

    Root units that are equal modulo ``units`` are one: the halves of a gate are pruned together.
    """
    per_unit, rest = divmod(len(owners), units)
    if min(owners.values()) < 0 or rest or not per_unit:
        return None
    own = [element for element in sorted(owners) if owners[element] % units == 0]
    block = next((i for i, element in enumerate(own) if element != own[0] + i), len(own))
    if not block or per_unit % block:
        return None
    repeat = per_unit // block
    stride = own[block] - own[0] if repeat > 1 else 0
    offset = own[0]
    laid_out = all(
        owners.get(offset + r * stride + u * block + i, -1) % units == u
        for r in range(repeat)
        for u in range(units)
        for i in range(block)
    )
    return (offset, block, repeat, stride) if laid_out else None


@dataclass(frozen=True, slots=True)
class _Part:
    """A coupling whose fine units are joined: ``join`` that follow each other, or ``bundle`` far apart."""

    coupling: Coupling
    join: int = 1
    bundle: int = 1

    @property
    def width(self) -> int:
        return self.coupling.width // (self.join * self.bundle)

    def run(self, side: CoupledSide) -> Run:
        """Return offset, block, repeat and stride of a unit of this part at ``side``."""
        if self.bundle > 1:
            return side.offset, side.block, self.bundle, self.width * side.block
        return side.offset, side.block * self.join, side.repeat, side.stride


def propose_groups(model: nn.Module, couplings: Sequence[Coupling]) -> Iterator[Candidate]:
    """Yield what may be pruned, in the order of ``couplings``, unproved."""
    order = {name: rank for rank, (name, _) in enumerate(model.named_modules())}
    for family in _families(model, couplings):
        blocks = _blocks(model, family, order)
        if not any(is_grouped(model.get_submodule(each.module)) for part in family for each in part.sides):
            flattened = [each for each in (_flattened_by_place(model, blocks),) if each]
            tiled = [each for each in (_tiled(blocks),) if each]
            numbered = [each for way in (blocks, *tiled) if (each := _with_numbers(model, way))]
            yield Candidate(tuple((each,) for each in (blocks, *flattened, *tiled, *numbered)))
            continue
        bundles = tuple(_bundles(model, coupling, order) for coupling in family)
        finer = blocks.group.width >= min(proposal.group.width for proposal in bundles)
        yield Candidate(((blocks,), bundles) if finer else (bundles, (blocks,)))


def _families(model: nn.Module, couplings: Sequence[Coupling]) -> list[list[Coupling]]:
    """Return the couplings that meet through grouped convolutions, each family in order."""
    family = list(range(len(couplings)))
    first: dict[str, int] = {}
    for rank, coupling in enumerate(couplings):
        for side in coupling.sides:
            if is_grouped(model.get_submodule(side.module)):
                here, there = family[rank], family[first.setdefault(side.module, rank)]
                family = [there if each == here else each for each in family]
    return [
        [coupling for rank, coupling in enumerate(couplings) if family[rank] == each]
        for each in dict.fromkeys(family)
    ]


def _blocks(model: nn.Module, family: Sequence[Coupling], order: Mapping[str, int]) -> Proposal:
    """Join fine units until every group of a convolution or norm is a whole number of them, or they of it."""
    faults = []
    units = gcd(*(coupling.width for coupling in family))
    met: dict[str, set[str]] = {}
    for coupling in family:
        for each in coupling.sides:
            module = model.get_submodule(each.module)
            if not (is_grouped(module) or _is_group_norm(module)):
                continue
            units = gcd(units, int(getattr(module, "groups", 0) or getattr(module, "num_groups", 0)))
            if is_grouped(module):
                met.setdefault(each.module, set()).add(each.side)
            if each.offset or each.repeat > 1 or each.block * coupling.width != length(module, each.side):
                faults.append(f"it is only a part of what {each.module} takes in groups")
            if is_grouped(module) and each.side == "both":
                faults.append(f"{each.module} has different numbers of inputs and outputs")
    for name, sides in met.items():
        if sides == {"in"}:
            faults.append(f"the units that {name} makes of it cannot be determined")
        elif sides == {"out"}:
            faults.append(f"what {name} reads cannot be pruned along with it")
    parts = [_Part(coupling, join=coupling.width // units) for coupling in family]
    return _proposal(model, parts, order, faults, as_members=True)


def _is_group_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.GroupNorm) and module.num_groups > 1


def _bundles(model: nn.Module, coupling: Coupling, order: Mapping[str, int]) -> Proposal:
    """Make units of the channels that have the same number within each group of the convolutions met."""
    faults = []
    modules = [(side, model.get_submodule(side.module)) for side in coupling.sides]
    convolutions = [(side, module) for side, module in modules if is_grouped(module)]
    numbers = {module.groups for _, module in convolutions}
    groups = numbers.pop()
    if numbers or coupling.width % groups:
        faults.append("it meets convolutions whose groups are of different numbers")
        groups = 1
    for side, module in convolutions:
        if module.transposed or side.side == "both":
            faults.append(f"{side.module} is a transposed convolution in groups")
        if side.offset or side.block != 1 or coupling.width != length(module, side.side):
            faults.append(f"it is only a part of what {side.module} takes in groups")
    faults += [
        f"the groups of {side.module} are not those of the convolution"
        for side, module in modules
        if _is_group_norm(module) or side.repeat > 1
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
    met_faults: dict[str, str] = {}
    sides = [(part, side) for part in parts for side in part.coupling.sides]
    for part, side in sorted(sides, key=lambda each: order[each[1].module]):
        module = model.get_submodule(side.module)
        run = part.run(side)
        whole = run[1] * run[2] * part.width == length(module, side.side)
        several = "it spans several groups of units" if not whole and _forgets(module) else ""
        if fault := fault_of(module) or several:
            met_faults.setdefault(side.module, fault)
            continue
        axes = tensor_axes(module, side.side)
        if is_grouped(module) and as_members:
            members[side.module] = None
            attributes[Attribute(side.module, "groups", module.groups // part.width)] = None
            # It loses whole groups, and its weight runs over groups on axis 0.
            axes = {"weight": 0} if (side.side == "in") == module.transposed else {}
            axes |= {"bias": 0} if side.side != "in" else {}
        elif is_grouped(module) and side.side == "in":
            consumers += _consumers_by_group(module, side, part.width)
            slices[Slice(f"{side.module}.weight", 1, 0, side.block)] = None
            continue
        elif side.side == "in":
            positions = side.block * side.repeat if side.repeat > FEW_PLACES else side.block
            consumers.append(Consumer(side.module, *run, positions=positions))
        elif side.side == "out" or isinstance(module, nn.Embedding):
            producers[side.module] = None
        else:
            members[side.module] = None
            attributes.update(dict.fromkeys(_stored_sizes(side.module, module, part.width)))
        slices.update({Slice(f"{side.module}.{tensor}", axis, *run): None for tensor, axis in axes.items()})
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
    own_faults += [why if at == group.name else f"it meets {at}: {why}" for at, why in met_faults.items()]
    if not consumers:
        own_faults.append("no layer that mixes its units was found behind it")
    return Proposal(group, next(iter(own_faults), ""))


def _consumers_by_group(module: nn.Module, side: CoupledSide, width: int) -> Iterator[Consumer]:
    groups = int(getattr(module, "groups", 1))
    outputs = length(module, "out") // groups
    for rank in range(groups):
        offset = side.offset + rank * width * side.block
        yield Consumer(side.module, offset, side.block, outputs=(rank * outputs, (rank + 1) * outputs))


def _stored_sizes(name: str, module: nn.Module, units: int) -> Iterator[Attribute]:
    """Yield what a norm stores about its width or groups, where its tensors do not show it."""
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        yield Attribute(name, "num_groups", module.num_groups // units)
    if _forgets(module):
        long = length(module, "both")
        for attribute, value in vars(module).items():
            if type(value) in (int, tuple) and value in (long, (long,)) and not attribute.startswith("_"):
                yield Attribute(name, attribute, long // units)


def _forgets(module: nn.Module) -> bool:
    """Return whether a norm's sizes cannot be read from its tensors."""
    is_norm = norms_over_units(module) or isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase)
    return is_norm and (is_vector_norm(module) or not any(t.ndim for t in module.state_dict().values()))


def _tiled(proposal: Proposal) -> Proposal | None:
    """Return the other way to read a view of several runs: not a unit's elements in a run, but units in turn.

    A layer that gives several numbers for each unit may give one for each, then another for each.
    """
    group, width = proposal.group, proposal.group.width

    def in_turn(each: Slice) -> Slice:
        runs = each.block > 1 and each.repeat == 1 and not each.offset and each.module in group.producers
        return replace(each, block=1, repeat=each.block, stride=width) if runs else each

    slices = tuple(map(in_turn, group.slices))
    if slices == group.slices or proposal.fault:
        return None
    return Proposal(replace(group, slices=slices))


def _with_numbers(model: nn.Module, proposal: Proposal) -> Proposal | None:
    """Return a group with the whole numbers that modules around its layers store about how many units come.

    A module that splits what it is given by such a number does not run with fewer units unless it follows.
    """
    group = proposal.group
    found: dict[Attribute, None] = {}
    for consumer in group.consumers:
        inside = consumer.module.rpartition(".")[0]
        while inside:
            for name, value in vars(model.get_submodule(inside)).items():
                # Of what comes in: the sizes of its outputs are those of other groups.
                counts = type(value) is int and value > 1 and not value % group.width
                if counts and COMES_IN.search(name) and value in _lengths(group):
                    found[Attribute(inside, name, value // group.width)] = None
            inside = inside.rpartition(".")[0]
    if not found or proposal.fault:
        return None
    return Proposal(replace(group, attributes=(*group.attributes, *found)))


def _lengths(group: Group) -> set[int]:
    """Return how many elements the units of a group are, layer by layer."""
    return {group.width * each.block * each.repeat for each in group.slices}


def _flattened_by_place(model: nn.Module, proposal: Proposal) -> Proposal | None:
    """Return the other way to read a flatten: not a unit's places in a run, but all units place by place."""
    group, width = proposal.group, proposal.group.width
    places_of: dict[str, int] = {}
    for consumer in group.consumers:
        module = model.get_submodule(consumer.module)
        places, rest = divmod(length(module, "in"), width)
        alone = sum(each.module == consumer.module for each in group.consumers) == 1
        starts = alone and not consumer.offset and consumer.repeat == 1 and consumer.block in (1, places)
        if is_mixer(module) and places > 1 and not rest and starts:
            places_of[consumer.module] = places
    if not places_of or proposal.fault:
        return None
    consumers = tuple(
        Consumer(each.module, 0, 1, places, width, positions=places if places > FEW_PLACES else 1)
        if (places := places_of.get(each.module, 0))
        else each
        for each in group.consumers
    )
    slices = tuple(
        Slice(each.tensor, each.axis, 0, 1, places_of[each.module], width)
        if each.module in places_of
        and each.axis == tensor_axes(model.get_submodule(each.module), "in")["weight"]
        else each
        for each in group.slices
    )
    return Proposal(replace(group, consumers=consumers, slices=slices))
