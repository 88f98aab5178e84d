"""What of a model can be cut, and what cannot and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.pruning.graph import Coupling, couplings
from tpsprune.pruning.groups import Consumer, Group, Slice, Survey
from tpsprune.pruning.layers import MIXERS, fault_of, tensor_axes
from tpsprune.pruning.trial import shaken, trial_fault
from tpsprune.records import LeftAlone

__all__ = ["survey"]


def survey(model: nn.Module, example_batch: Any, leave_alone: Sequence[str] = ()) -> Survey:
    """Find the groups of units that can be cut from ``model``, each proved by a trial cut.

    A group is left alone with a reason when it is the model's output, when what reads it cannot be cut
    (recurrent layers, grouped convolutions, bare parameters, parametrised or tied weights), when its
    units are not laid out in order, and when the trial shows that more than its consumers depend on it
    (attention heads, layer and group norms). Frozen layers are cut like others and stay frozen.

    Args:
        model: not changed; called in evaluation mode.
        example_batch: one prepared batch; two items are enough.
        leave_alone: ``fnmatch`` patterns of module names whose output units stay; a pattern that
            matches a container holds for everything in it. What these layers read may still be cut.

    Raises:
        PruneError: a pattern matches no module.

    Cost: one trace, and two copies and three forward passes for each group.
    """
    spared = _matches(model, leave_alone)
    order = {name: rank for rank, (name, _) in enumerate(model.named_modules())}
    tied = _tied(model)
    subject = shaken(model)
    batch = _single_precision(example_batch)
    groups: list[Group] = []
    left_alone: list[LeftAlone] = []
    claimed: dict[tuple[str, int, int], str] = {}
    touched: set[str] = set()
    for coupling in couplings(model, example_batch):
        group, reason = _group(model, coupling, order, tied, spared)
        touched.update(touch.module for touch in coupling.touches)
        claims = [(s.tensor, s.axis, s.offset) for s in group.slices]
        shared = next((claimed[claim] for claim in claims if claim in claimed), None)
        reason = reason or (f"its units are also those of {shared}" if shared else "")
        reason = reason or trial_fault(subject, group, batch)
        if reason:
            left_alone.append(LeftAlone(name=group.name, reason=reason))
        else:
            groups.append(group)
            claimed.update(dict.fromkeys(claims, group.name))
    left_alone += _never_met(model, touched)
    groups.sort(key=lambda group: order[group.name])
    left_alone.sort(key=lambda each: order[each.name])
    return Survey(tuple(groups), tuple(left_alone))


def _group(
    model: nn.Module,
    coupling: Coupling,
    order: Mapping[str, int],
    tied: Mapping[str, str],
    spared: Mapping[str, str],
) -> tuple[Group, str]:
    """Return the group of a coupling and, where it must stay whole, the reason."""
    touches = sorted(coupling.touches, key=lambda touch: order[touch.module])
    modules = {touch.module: model.get_submodule(touch.module) for touch in touches}
    producers = tuple(
        touch.module
        for touch in touches
        if touch.side == "out" or isinstance(modules[touch.module], nn.Embedding)
    )
    consumers = tuple(
        Consumer(touch.module, touch.offset, touch.block) for touch in touches if touch.side == "in"
    )
    slices = tuple(
        Slice(f"{touch.module}.{tensor}", axis, touch.offset, touch.block)
        for touch in touches
        for tensor, axis in tensor_axes(modules[touch.module], touch.side).items()
    )
    members = tuple(
        touch.module for touch in touches if touch.side == "both" and touch.module not in producers
    )
    group = Group(
        producers[0] if producers else coupling.root, coupling.width, producers, members, consumers, slices
    )
    return group, _reason(group, coupling, modules, tied, spared)


def _reason(
    group: Group,
    coupling: Coupling,
    modules: Mapping[str, nn.Module],
    tied: Mapping[str, str],
    spared: Mapping[str, str],
) -> str:
    if asked := next((spared[name] for name in group.producers if name in spared), ""):
        return f"left alone as asked by {asked!r}"
    if coupling.fault:
        return coupling.fault
    if not group.consumers:
        return "it is the model's output"
    for name, module in modules.items():
        if fault := fault_of(module):
            return f"it meets {name}: {fault}" if name != group.name else fault
        if name in tied:
            return f"the weight of {name} is also that of {tied[name]}"
    if group.width == 1:
        return "it has one unit only"
    return ""


def _matches(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    """Return the modules that patterns name, themselves or by what they lie in, with the pattern."""
    names = [name for name, _ in model.named_modules() if name]
    matched: dict[str, str] = {}
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise PruneError(
                f"prune.leave_alone: {pattern!r} matches no module of the model{did_you_mean(pattern, names)}"
            )
        inside = tuple(f"{hit}." for hit in hits)
        matched.update({name: pattern for name in names if name in hits or name.startswith(inside)})
    return matched


def _tied(model: nn.Module) -> dict[str, str]:
    """Return modules that hold a parameter together with another module, and that other one."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(name)
    return {
        name: next(other for other in names if other != name)
        for names in owners.values()
        if len(set(names)) > 1
        for name in names
    }


def _never_met(model: nn.Module, touched: Iterable[str]) -> Iterator[LeftAlone]:
    met = set(touched)
    whole = (nn.RNNBase, nn.MultiheadAttention, nn.Embedding, *MIXERS)
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not isinstance(module, whole) or name in met or (inside and name.startswith(inside)):
            continue
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            inside = (*inside, f"{name}.")
            yield LeftAlone(name=name, reason=fault_of(module))
        elif isinstance(module, nn.Embedding):
            yield LeftAlone(name=name, reason="the width of an embedding is cut only along with other layers")
        elif isinstance(module, _ConvNd) and module.groups > 1:
            yield LeftAlone(name=name, reason=fault_of(module) or "no layer before it can be cut")
        else:
            yield LeftAlone(name=name, reason="the trace from the output did not reach it")


def _single_precision(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.float() if batch.dtype in (torch.float16, torch.bfloat16) else batch
    if isinstance(batch, Mapping):
        return {name: _single_precision(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_single_precision(part) for part in batch)
    return batch
