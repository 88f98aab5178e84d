"""The trial of a group: cut half of it and see whether that is the same as not listening to it.

A graph is drawn from names of operations; only behaviour proves that a unit can go. What mixes units
without weights (attention heads, layer norm, a mean over channels), what the trace did not see and what
does not run at another width all fail here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model
from tpsprune.pruning.cutting import cut_copy, fresh_copy, silence
from tpsprune.pruning.groups import Group, GroupCut

__all__ = ["flat_tensors", "shaken", "trial_fault"]

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


def trial_fault(subject: nn.Module, group: Group, batch: Any) -> str:
    """Return why half of ``group`` cannot be cut out of a shaken model, or an empty string.

    Cost: two copies and three forward passes over ``batch``.
    """
    order = torch.randperm(group.width, generator=torch.Generator().manual_seed(0)).tolist()
    cut = GroupCut.of(group, order[: max(1, group.width // 2)])
    deaf = copy.deepcopy(subject)
    silence(deaf, group, cut.removed)
    with torch.no_grad():
        whole = list(flat_tensors(call_model(subject, batch)))
        masked = list(flat_tensors(call_model(deaf, batch)))
        try:
            ticket = list(flat_tensors(call_model(cut_copy(subject, (cut,)), batch)))
        # Whatever the model's own code raises at another width is the answer sought.
        except Exception as error:  # noqa: BLE001
            return f"the model does not run without some of its units ({_first_line(error)})"
    if all(torch.equal(a, b) for a, b in zip(whole, masked, strict=True)):
        return "the output does not depend on its consumers"
    if not _close(masked, ticket):
        return "more than its consumers depend on it (attention heads, or a norm or mean over units)"
    return ""


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


def _close(expected: list[Tensor], found: list[Tensor]) -> bool:
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return False
    return all(
        bool((a - b).abs().max() <= TOLERANCE * (a - a.mean()).abs().max().clamp_min(1e-12))
        for a, b in zip(expected, found, strict=True)
        if a.numel()
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
