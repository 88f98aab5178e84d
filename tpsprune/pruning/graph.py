"""The coupling of units, traced by torch-pruning: nothing else here knows that library.

Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", CVPR.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning
from torch import nn

from tpsprune.numerics.forward import call_model
from tpsprune.pruning.cutting import fresh_copy

__all__ = ["Coupling", "Touch", "couplings"]


@dataclass(frozen=True, slots=True)
class Touch:
    """One side of one module that a group of units reaches; unit u owns ``block`` elements there."""

    module: str
    side: Literal["in", "out", "both"]
    offset: int
    block: int


@dataclass(frozen=True, slots=True)
class Coupling:
    """Units of one layer and everything they reach; ``fault`` says why they cannot be told apart."""

    root: str
    width: int
    touches: tuple[Touch, ...]
    fault: str = ""


def couplings(model: nn.Module, batch: Any) -> tuple[Coupling, ...]:
    """Trace ``model`` and return the coupled units of each convolution and linear layer, each once.

    The trace runs on a copy in evaluation mode with every gradient on, because a frozen layer would
    be invisible to it; the model handed in is not touched. A layer the output does not depend on is
    not in the answer.

    Cost: one forward pass, a copy, and a walk over the autograd graph per layer.
    """
    traced = fresh_copy(model)
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    names = {module: name for name, module in traced.named_modules()}
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            traced,
            batch,
            forward_fn=call_model,
            unwrapped_parameters=[],
            customized_pruners={},
            ignored_layers=[],
            ignored_params=[],
            verbose=False,
        )
    return tuple(_couplings(traced, graph, names))


def _couplings(model: nn.Module, graph: Any, names: dict[nn.Module, str]) -> Iterator[Coupling]:
    seen: set[str] = set()
    roots = (torch_pruning.ops.TORCH_CONV, torch_pruning.ops.TORCH_LINEAR)
    for name, module in model.named_modules():
        if not isinstance(module, roots) or name in seen or module not in graph.module2node:
            continue
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
            continue
        pruner = graph.get_pruner_of_module(module)
        width = pruner.get_out_channels(module)
        try:
            items = list(graph.get_pruning_group(module, pruner.prune_out_channels, list(range(width))))
        except (AssertionError, AttributeError, IndexError, TypeError, ValueError) as error:
            yield Coupling(name, width, (), f"its coupling cannot be traced ({error})")
            continue
        coupling = _read(name, width, items, graph, names)
        seen.update(touch.module for touch in coupling.touches if touch.side == "out")
        yield coupling


def _read(root: str, width: int, items: Sequence[Any], graph: Any, names: dict[nn.Module, str]) -> Coupling:
    touches = []
    faults = []
    for item in items:
        target = item.dep.target
        if isinstance(target.module, nn.Parameter):
            faults.append(f"it meets the bare parameter {graph._param_to_name[target.module]}")
        elif target.type == torch_pruning.ops.OPTYPE.OUTPUT:
            faults.append("it is the model's output")
        elif target.module in names:
            span = _span(item.idxs, item.root_idxs, width)
            if span is None:
                faults.append(f"its units are not laid out one after the other in {names[target.module]}")
            else:
                touches.append(Touch(names[target.module], _side(item.dep.handler, graph), *span))
    return Coupling(root, width, tuple(touches), faults[0] if faults else "")


def _side(handler: Any, graph: Any) -> Literal["in", "out", "both"]:
    if graph.is_out_channel_pruning_fn(handler):
        return "both" if graph.is_in_channel_pruning_fn(handler) else "out"
    return "in"


def _span(elements: Sequence[int], roots: Sequence[int], width: int) -> tuple[int, int] | None:
    """Return offset and block such that unit u owns ``block`` elements from ``offset + u·block`` on."""
    block, rest = divmod(len(elements), width)
    if rest or not block:
        return None
    owner = dict(zip(elements, roots, strict=True))
    offset = min(elements)
    laid_out = all(owner.get(offset + i) == i // block for i in range(width * block))
    return (offset, block) if laid_out and len(owner) == len(elements) else None
