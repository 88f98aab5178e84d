"""What a ticket must prove before it is handed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import MacCount, call_model, count_macs, evaluation_mode
from tpsprune.numerics.trees import take_items
from tpsprune.pruning.cutting import elements_kept
from tpsprune.pruning.groups import Group, GroupCut
from tpsprune.pruning.observations import sample_items
from tpsprune.pruning.repair import output_error
from tpsprune.pruning.trial import flat_tensors
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs, Params

__all__ = ["verify"]

SLACK = 1e-8
PROOF_ITEMS: Final = 32
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}


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

    Proved are: every tensor finite and of the planned shape; outputs on items of every batch of the probe,
    some 32 in all, equal to those of the same model at the old shape with the units silenced (norms over
    units norm over those that stay there too); gradients finite; a target of ``macs`` or ``params`` met as
    counted on the ticket; flags, modes, number types and devices as they were. A latency is not measured
    again.

    Args:
        ticket: what is to be handed out.
        silenced: the folded model at the dense shape, deaf to the units that go (``cutting.silence``).
        dense: the model before anything was done to it; its attention may not yet be open.
        probe: prepared batches.
        groups: what was cut.
        widths: to how many units, by group.
        dense_count: multiply-accumulates of the dense model.
        settings: the target.

    Raises:
        PruneError: one of these does not hold; the message says which and where.
    """
    _check_kept(ticket, dense)
    _check_shapes(ticket, silenced, groups, widths)
    dtype = next(
        (tensor.dtype for tensor in ticket.parameters() if tensor.is_floating_point()), torch.float32
    )
    difference = output_error(ticket, silenced, list(sample_items(probe, PROOF_ITEMS, PROOF_ITEMS))) ** 0.5
    if not difference <= TOLERANCES.get(dtype, 5e-2):
        raise PruneError(
            f"the cut was rolled back: the ticket's output differs by {difference:.2g} of its spread "
            "from that of the model with the same units silenced"
        )
    _check_backward(ticket, dense, take_items(probe[0], torch.arange(2)))
    # Counted on the items the dense model was counted on: what comes once a batch is shared out alike.
    share = count_macs(ticket, take_items(probe[0], torch.arange(2))).total / dense_count.total
    if isinstance(settings.target, Macs):
        _check_share(share, settings.target.macs, "multiply-accumulates", settings)
    if isinstance(settings.target, Params):
        held = _parameters(ticket) / _parameters(dense)
        _check_share(held, settings.target.params, "parameters", settings)
    return share


def _check_share(found: float, asked: float, unit: str, settings: Prune) -> None:
    if found > asked + SLACK:
        raise PruneError(
            f"the cut was rolled back: the ticket keeps {found:.4f} of the {unit}, "
            f"prune.target is {settings.target}"
        )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_shapes(
    ticket: nn.Module, silenced: nn.Module, groups: Sequence[Group], widths: Sequence[int]
) -> None:
    """Compare every tensor of the ticket with what is left of it when each group has its planned width."""
    shapes = {name: tuple(tensor.shape) for name, tensor in silenced.state_dict().items()}
    cuts = [GroupCut.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
    left = elements_kept(shapes, cuts)
    found = {name: tuple(tensor.shape) for name, tensor in ticket.state_dict().items()}
    for name, shape in shapes.items():
        lost = left.get(name, {})
        planned = tuple(len(lost[axis]) if axis in lost else length for axis, length in enumerate(shape))
        if found.get(name) != planned:
            shown = list(found[name]) if name in found else "missing"
            raise PruneError(
                f"the cut was rolled back: {name} is {shown} in the ticket, {list(planned)} was planned"
            )


def _check_kept(ticket: nn.Module, dense: nn.Module) -> None:
    before = dict(dense.named_parameters())
    for name, parameter in ticket.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise PruneError(
                f"the cut was rolled back: {name} is not finite after the fold; more probe items "
                "(prune.probe_items) or prune.fold = false would do"
            )
        old = before.get(name)
        if old is not None and (parameter.requires_grad, parameter.dtype, parameter.device) != (
            old.requires_grad,
            old.dtype,
            old.device,
        ):
            raise PruneError(f"the cut was rolled back: {name} lost its flags, number type or device")
    modes = {name: module.training for name, module in dense.named_modules()}
    # What an attention consists of once it is open has no counterpart.
    if any(modes.get(name, module.training) != module.training for name, module in ticket.named_modules()):
        raise PruneError("the cut was rolled back: a module is in another mode than it was")


def _check_backward(ticket: nn.Module, dense: nn.Module, batch: Any) -> None:
    try:
        gradients = _gradients(ticket, batch)
    except RuntimeError as error:
        try:
            _gradients(dense, batch)
        except RuntimeError:  # Code that works in place may run and still have no gradient, cut or not.
            return
        raise PruneError(f"the cut was rolled back: the ticket has no gradient ({error})") from error
    if not all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None):
        raise PruneError("the cut was rolled back: a gradient of the ticket is not finite")


def _gradients(model: nn.Module, batch: Any) -> Sequence[Tensor | None]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        return ()
    with torch.enable_grad(), evaluation_mode(model):
        total = sum(tensor.sum() for tensor in flat_tensors(call_model(model, batch)) if tensor.requires_grad)
        if not isinstance(total, Tensor):
            return ()
        return torch.autograd.grad(total, parameters, allow_unused=True)
