"""The roll of a model's layers: what each costs, and what a cut would do to it and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import nn

from tpsprune.numerics.forward import MacCount
from tpsprune.pruning.costs import own_macs
from tpsprune.pruning.groups import Group, Survey
from tpsprune.pruning.opened import open_attention
from tpsprune.records import CheckedLayer

__all__ = ["layers_of"]


def layers_of(model: nn.Module, found: Survey, count: MacCount) -> tuple[CheckedLayer, ...]:
    """Return every layer in model order: whatever holds parameters of its own, or multiplies by itself.

    Args:
        model: not changed; its attention is listed as the survey saw it, open.
        found: the survey of it.
        count: its multiply-accumulates.
    """
    opened, _ = open_attention(model)
    own = own_macs(count)
    roles = _roles(found)
    reasons = {each.name: each.reason for each in found.left_alone}
    answer = []
    for name, module in opened.named_modules():
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        macs = own.get(name, 0)
        if not parameters and macs <= 0:
            continue
        cut, follows, reads = (tuple(roles[role][name]) for role in ("cut", "follows", "reads"))
        answer.append(
            CheckedLayer(
                name=name or "(the model itself)",
                kind=type(module).__name__,
                parameters=parameters,
                macs=macs,
                macs_share=macs / count.total if count.total else 0.0,
                fate="cut" if cut else "follows" if follows else "stays",
                groups=cut or follows,
                reads=reads,
                reason="" if cut or follows else _reason(name, found, reasons),
            )
        )
    return tuple(answer)


def _roles(found: Survey) -> dict[str, defaultdict[str, list[str]]]:
    roles: dict[str, defaultdict[str, list[str]]] = {
        role: defaultdict(list) for role in ("cut", "follows", "reads")
    }
    for group in found.groups:
        for role, names in (
            ("cut", group.producers),
            ("follows", (*group.members, *group.cores, *_bare(group))),
            ("reads", [consumer.module for consumer in group.consumers]),
        ):
            for name in dict.fromkeys(names):
                roles[role][name].append(group.name)
    return roles


def _bare(group: Group) -> list[str]:
    """Return modules of whose own parameters a unit takes some along, though they are no layer of it."""
    known = {*group.producers, *group.members, *(consumer.module for consumer in group.consumers)}
    holders = (slice_.tensor.rpartition(".")[0] for slice_ in group.slices)
    return [name for name in dict.fromkeys(holders) if name not in known and name not in group.cores]


def _reason(name: str, found: Survey, reasons: Mapping[str, str]) -> str:
    """Return why a layer stays: its own reason, that of what it is coupled with, or of what it lies in."""
    if name in reasons:
        return reasons[name]
    root = found.coupled.get(name, "")
    if root in reasons:
        return f"as {root}: {reasons[root]}"
    around = name
    while around:
        around = around.rpartition(".")[0]
        if around in reasons:
            return reasons[around]
    return "nothing in it is a unit that could go"
