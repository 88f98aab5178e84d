"""The coupling of units, traced by torch-pruning: nothing but the baselines knows that library beside this.

Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", CVPR.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch_pruning
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model
from tpsprune.pruning.layers import Side, length
from tpsprune.pruning.stand_ins import double
from tpsprune.pruning.trial import flat_tensors

__all__ = ["Coupling", "Touch", "couplings"]

HYBRID = torch_pruning._helpers._HybridIndex

Reached: TypeAlias = dict[tuple[Any, Any], dict[int, int]]
"""By node of the graph and side of it, the unit of the root that each element belongs to."""

ROOTS = (torch_pruning.ops.TORCH_CONV, torch_pruning.ops.TORCH_LINEAR, nn.Embedding)


@dataclass(frozen=True, slots=True)
class Touch:
    """One side of one module that a group of units reaches; the four numbers are those of ``groups``."""

    module: str
    side: Side
    offset: int
    block: int
    repeat: int = 1
    stride: int = 0


@dataclass(frozen=True, slots=True)
class Coupling:
    """Units of one layer and everything they reach; ``fault`` says why they cannot be told apart."""

    root: str
    width: int
    touches: tuple[Touch, ...]
    fault: str = ""


def couplings(model: nn.Module, batch: Any) -> tuple[Coupling, ...]:
    """Trace ``model`` and return the coupled units of each layer with weights, each coupling once.

    The trace runs on the model's double (see ``stand_ins``); the model handed in is not touched. A layer
    the output does not depend on is not in the answer, nor are parameters that no layer holds.

    Cost: one forward pass, a copy, and a walk over the autograd graph per layer; 0.3 s for ResNet-50.
    """
    traced = double(model)
    names = {module: name for name, module in traced.named_modules()}
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            traced,
            batch,
            forward_fn=_said,
            unwrapped_parameters=[],
            customized_pruners={},
            ignored_layers=[],
            ignored_params=[],
            verbose=False,
        )
    return tuple(_couplings(traced, graph, names))


def _said(model: nn.Module, batch: Any) -> list[Tensor]:
    """Return what is traced from: numbers alone, for the tracing library stumbles over anything else."""
    return list(flat_tensors(call_model(model, batch)))


def _couplings(model: nn.Module, graph: Any, names: dict[nn.Module, str]) -> Iterator[Coupling]:
    seen: set[str] = set()
    longest = max((max(length(m, "in"), length(m, "out")) for m in names if isinstance(m, ROOTS)), default=0)
    for name, module in model.named_modules():
        if not isinstance(module, ROOTS) or name in seen or module not in graph.module2node:
            continue
        pruner = graph.get_pruner_of_module(module)
        if pruner.prune_in_channels == pruner.prune_out_channels and not isinstance(module, nn.Embedding):
            continue  # A depthwise convolution puts out the units of others.
        width = pruner.get_out_channels(module)
        try:
            reached = _walk(graph, module, pruner.prune_out_channels, width, longest)
        except (AssertionError, AttributeError, IndexError, TypeError, ValueError) as error:
            yield Coupling(name, width, (), f"its coupling cannot be traced ({error})")
            continue
        coupling = _read(name, width, reached, graph, names)
        seen.update(
            touch.module
            for touch in coupling.touches
            if touch.side == "out" or isinstance(model.get_submodule(touch.module), nn.Embedding)
        )
        yield coupling


def _walk(graph: Any, root: nn.Module, handler: Any, width: int, longest: int) -> Reached:
    """Return what the units of ``root`` reach, and by which unit each element there is reached first.

    The library's own walk compares whole lists of elements, which in some attentions never end; here every
    element of every place is gone through once, and one that no layer is long enough for is dropped.
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
                roots = {element: each.root_idx for element, each in new.items()}
                met.update({element: -1 if root is None else root for element, root in roots.items()})
                stack.append((target, dependency.handler, list(new.values())))
    return {place: elements for place, elements in reached.items() if elements}


def _read(root: str, width: int, reached: Reached, graph: Any, names: dict[nn.Module, str]) -> Coupling:
    sides = []
    faults = []
    units = width
    for (target, handler), owners in reached.items():
        if target.type == torch_pruning.ops.OPTYPE.OUTPUT:
            faults.append("it is the model's output")
        elif target.module in names:
            sides.append((names[target.module], _side(handler, graph), owners))
            # An operation the trace does not know (chunk, a gated unit) may have halved the units since.
            units = min(units, len(owners))
    if not units or width % units:
        units = width
        faults.append("parts of it go different ways")
    touches = []
    for name, side, owners in sides:
        layout = _layout(owners, units)
        if layout is None:
            faults.append(f"its units are not laid out one after the other in {name}")
        else:
            touches.append(Touch(name, side, *layout))
    return Coupling(root, units, tuple(touches), faults[0] if faults else "")


def _side(handler: Any, graph: Any) -> Side:
    if graph.is_out_channel_pruning_fn(handler):
        return "both" if graph.is_in_channel_pruning_fn(handler) else "out"
    return "in"


def _layout(owners: dict[int, int], units: int) -> tuple[int, int, int, int] | None:
    """Return offset, block, repeat and stride of ``units`` units, given the root unit of each element.

    Root units that are equal modulo ``units`` are one: the halves of a gate go together.
    """
    if min(owners.values()) < 0:
        return None
    ordered = sorted(owners)
    per_unit, rest = divmod(len(ordered), units)
    if rest or not per_unit:
        return None
    own = [element for element in ordered if owners[element] % units == 0]
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
