"""What a ticket must prove before it is handed out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.macs import MacCount, count_macs
from tpsprune.pruning.groups import Group
from tpsprune.pruning.layers import units_out
from tpsprune.pruning.recalibrate import output_error
from tpsprune.pruning.trial import flat_tensors
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs

__all__ = ["verify"]

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}


def verify(
    ticket: nn.Module,
    silenced: nn.Module,
    dense: nn.Module,
    probe: Sequence[Any],
    groups: Sequence[Group],
    widths: Sequence[int],
    dense_count: MacCount,
    settings: Prune,
) -> float:
    """Return the ticket's share of multiply-accumulates, or refuse it.

    Proved are: every tensor finite; outputs on the whole probe equal to those of the same model at the
    old shape with the units silenced; a backward pass reaches every parameter it reaches there; every
    producer as wide as planned; the target met; flags, modes, number types and devices as they were.

    Raises:
        PruneError: one of these does not hold; the message says which and where.
    """
    _check_kept(ticket, dense)
    _check_widths(ticket, dense, groups, widths)
    dtype = next(
        (tensor.dtype for tensor in ticket.parameters() if tensor.is_floating_point()), torch.float32
    )
    difference = output_error(ticket, silenced, probe) ** 0.5
    if not difference <= TOLERANCES.get(dtype, 5e-2):
        raise PruneError(
            f"the cut was rolled back: the ticket's output differs by {difference:.2g} of its spread "
            "from that of the model with the same units silenced"
        )
    _check_backward(ticket, probe[0])
    share = count_macs(ticket, probe[0]).total / dense_count.total
    if isinstance(settings.target, Macs) and share > settings.target.macs + 1e-9:
        raise PruneError(
            f"the cut was rolled back: the ticket keeps {share:.4f} of the multiply-accumulates, "
            f"prune.target is {settings.target}"
        )
    return share


def _check_widths(
    ticket: nn.Module, dense: nn.Module, groups: Sequence[Group], widths: Sequence[int]
) -> None:
    gone: Counter[str] = Counter()
    for group, width in zip(groups, widths, strict=True):
        gone.update(dict.fromkeys(group.producers, group.width - width))
    for name, count in gone.items():
        planned = units_out(dense.get_submodule(name)) - count
        found = units_out(ticket.get_submodule(name))
        if found != planned:
            raise PruneError(
                f"the cut was rolled back: {name} puts out {found} units, {planned} were planned"
            )


def _check_kept(ticket: nn.Module, dense: nn.Module) -> None:
    before = dict(dense.named_parameters())
    for name, parameter in ticket.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise PruneError(
                f"the cut was rolled back: {name} is not finite after the fold; more probe items "
                "(watch.probe_items) or prune.fold = false would do"
            )
        old = before.get(name)
        if old is not None and (parameter.requires_grad, parameter.dtype, parameter.device) != (
            old.requires_grad,
            old.dtype,
            old.device,
        ):
            raise PruneError(f"the cut was rolled back: {name} lost its flags, number type or device")
    modes = {name: module.training for name, module in dense.named_modules()}
    if any(modes[name] != module.training for name, module in ticket.named_modules()):
        raise PruneError("the cut was rolled back: a module is in another mode than it was")


def _check_backward(ticket: nn.Module, batch: Any) -> None:
    parameters = [parameter for parameter in ticket.parameters() if parameter.requires_grad]
    if not parameters:
        return
    with torch.enable_grad(), evaluation_mode(ticket):
        total = sum(
            tensor.sum() for tensor in flat_tensors(call_model(ticket, batch)) if tensor.requires_grad
        )
        if not isinstance(total, Tensor):
            return
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    if not all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None):
        raise PruneError("the cut was rolled back: a gradient of the ticket is not finite")
