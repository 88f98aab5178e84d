"""The trial of groups: cut half of them and see whether that is the same as not listening to it.

A graph is drawn from names of operations; only behaviour proves that a unit can go. What mixes units
without weights (attention heads, a mean over channels), what the trace did not see and what does not run at
another width all fail here. The subject is cut and made deaf in place and put back, never copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model
from tpsprune.pruning.groups import Group, GroupCut
from tpsprune.pruning.head_width import hold_scale
from tpsprune.pruning.layers import tensor_named
from tpsprune.pruning.surgery import cut_in_place, fresh_copy, silence, silenced_tensors

__all__ = [
    "close",
    "flat_tensors",
    "half_of",
    "item_tensors",
    "joint_fault",
    "put_back",
    "scalar",
    "shaken",
    "trial_faults",
]

TOLERANCE = 1e-3


def shaken(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with weights drawn at random, the same on every call.

    Weights that happen to be zero (a residual branch at its start) or dead would hide a wrong cut.
    Half precision becomes single precision.
    """
    subject = fresh_copy(model).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*subject.named_parameters(), *subject.named_buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()
        drawn = torch.randn(tensor.shape, generator=generator)
        if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point() or not tensor.ndim:
            continue
        if tensor.ndim > 1:
            drawn *= (len(tensor) / max(1, tensor.numel())) ** 0.5
        else:
            drawn = 0.2 * drawn + (1.0 if name.endswith("weight") else 0.0)
        tensor.data.copy_(drawn)
    return subject


def trial_faults(subject: nn.Module, groups: Sequence[Group], batch: Any) -> list[str]:
    """Return for each group why half of it cannot be cut out of a shaken model, or an empty string.

    All are tried at once; where that fails, each half of them by itself, down to the single ones. Groups
    that hold up together do so each by itself, as none of them is one the output does not depend on.

    Cost: three passes over ``batch`` where all is well, else some 2·log₂(groups) for each that fails.
    """
    if not groups:
        return []
    with torch.no_grad():
        whole = list(flat_tensors(call_model(subject, batch)))
    loud = _loud(subject, groups, batch)
    faults = [""] * len(groups)
    for rank, group in enumerate(groups):
        if not loud[rank]:
            faults[rank] = _fault(subject, (group,), batch, whole)
    _halve(subject, groups, [rank for rank in range(len(groups)) if loud[rank]], batch, whole, faults)
    return faults


def joint_fault(subject: nn.Module, groups: Sequence[Group], batch: Any) -> str:
    """Return why half of each of ``groups`` cannot be cut from a shaken model at once, or an empty string."""
    with torch.no_grad():
        whole = list(flat_tensors(call_model(subject, batch)))
    return _fault(subject, groups, batch, whole)


def flat_tensors(output: Any) -> Iterator[Tensor]:
    """Yield every floating-point tensor in a model's answer, however it is nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from flat_tensors(part)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from flat_tensors(part)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from flat_tensors(getattr(output, field.name))


def item_tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors that have an axis of items: no loss, no single number."""
    return (tensor for tensor in flat_tensors(output) if tensor.ndim)


def _halve(
    subject: nn.Module,
    groups: Sequence[Group],
    ranks: list[int],
    batch: Any,
    whole: list[Tensor],
    faults: list[str],
) -> None:
    if not ranks:
        return
    fault = _fault(subject, [groups[rank] for rank in ranks], batch, whole)
    if not fault:
        return
    if len(ranks) == 1:
        faults[ranks[0]] = fault
        return
    middle = len(ranks) // 2
    _halve(subject, groups, ranks[:middle], batch, whole, faults)
    _halve(subject, groups, ranks[middle:], batch, whole, faults)


def _fault(subject: nn.Module, groups: Sequence[Group], batch: Any, whole: list[Tensor]) -> str:
    cuts = [half_of(group) for group in groups]
    try:
        with torch.no_grad():
            with put_back(subject, groups):
                for group, cut in zip(groups, cuts, strict=True):
                    silence(subject, group, cut.removed)
                masked = list(flat_tensors(call_model(subject, batch)))
            with put_back(subject, ()):
                cut_in_place(subject, cuts)
                for group, cut in zip(groups, cuts, strict=True):
                    hold_scale(subject, group, len(cut.kept))
                ticket = list(flat_tensors(call_model(subject, batch)))
    # Whatever the model's own code raises at another width is the answer sought.
    except Exception as error:  # noqa: BLE001
        return f"the model does not run without some of its units ({_first_line(error)})"
    consumed = any(group.consumers for group in groups)
    if all(torch.equal(a, b) for a, b in zip(whole, masked, strict=True)):
        return f"the output does not depend on its {'consumers' if consumed else 'queries and keys'}"
    if [tensor.shape for tensor in masked] != [tensor.shape for tensor in ticket]:
        return "it is the model's output"
    if not close(masked, ticket):
        if not consumed:
            return "narrower heads give other scores, and no scale of d^(−1/2) explains it"
        return "more than its consumers depend on it (attention heads, or a norm or mean over units)"
    return ""


def half_of(group: Group) -> GroupCut:
    """Return the cut of a group that is tried: half its units, drawn the same on every call."""
    order = torch.randperm(group.width, generator=torch.Generator().manual_seed(0)).tolist()
    return GroupCut.of(group, order[: max(1, group.width // 2)])


@contextmanager
def put_back(subject: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Let a model be cut, or made deaf to ``groups``, in place, and put it back as it was."""
    kept = []
    for module in subject.modules():
        tables = {name: dict(module.__dict__[name]) for name in ("_parameters", "_buffers", "_modules")}
        kept.append((module, module.__dict__ | tables))
    try:
        for name in dict.fromkeys(name for group in groups for name in silenced_tensors(group)):
            if (old := tensor_named(subject, name)) is not None:
                owner, _, tensor = name.rpartition(".")
                clone = nn.Parameter(old.detach().clone(), old.requires_grad)
                setattr(subject.get_submodule(owner), tensor, clone)
        yield
    finally:
        for module, state in kept:
            module.__dict__.clear()
            module.__dict__.update(state)


def _loud(subject: nn.Module, groups: Sequence[Group], batch: Any) -> list[bool]:
    """Return for each group whether the output depends on what ``silence`` writes to, by autograd."""
    weights = {
        name: tensor
        for group in groups
        for name in silenced_tensors(group)
        if (tensor := tensor_named(subject, name)) is not None
    }
    flags = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            total = scalar(call_model(subject, batch))
            if not total.requires_grad:
                return [False] * len(groups)
            gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    except RuntimeError:  # Code that works in place may run and still have no gradient: each is tried then.
        return [False] * len(groups)
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(flags[name])
    loud = {
        name: gradient is not None and bool(gradient.any())
        for name, gradient in zip(weights, gradients, strict=True)
    }
    return [any(loud.get(name, False) for name in silenced_tensors(group)) for group in groups]


def scalar(output: Any) -> Tensor:
    """Return a number that depends on every element of a model's answer."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        (part * torch.randn(part.shape, generator=generator).to(part)).sum() for part in flat_tensors(output)
    ]
    return torch.stack([part.cpu().double() for part in parts]).sum() if parts else torch.zeros(())


def close(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Return whether answers are equal but for rounding, as measured by the spread of those expected."""
    return all(
        bool((a - b).abs().max() <= TOLERANCE * (a - a.mean()).abs().max().clamp_min(1e-12))
        for a, b in zip(expected, found, strict=True)
        if a.numel()
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
