"""Verification of a ticket before it is returned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from tpsprune.errors import PruneError, first_line
from tpsprune.numerics.forward import evaluation_mode
from tpsprune.numerics.macs import MacCount, count_macs
from tpsprune.numerics.routing import dealt, routed
from tpsprune.numerics.trees import take_items
from tpsprune.pruning.costs import bytes_of
from tpsprune.pruning.groups import Group, PrunedGroup
from tpsprune.pruning.observations import sample_items
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.surgery import elements_kept, shapes_of
from tpsprune.pruning.trial import gradients_of
from tpsprune.recipe.prune import Bytes, Macs, Params, Prune

SLACK = 1e-8
PROOF_ITEMS: Final = 32
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_TOLERANCE: Final = 5e-2


def verify(
    ticket: nn.Module,
    masked: nn.Module,
    dense: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Group],
    widths: Sequence[int],
    dense_count: MacCount,
    settings: Prune,
) -> float:
    """Return the ticket's share of multiply-accumulates, or refuse it.

    Proved are: every tensor finite and of the planned shape; outputs on items of every batch, some 32 in
    all, equal to those of the masked model (norms over units norm over those kept there too); gradients
    finite; a target of ``macs``, ``params`` or ``bytes`` met as counted on the ticket; flags, modes, number
    types and devices as they were. What a target measures is not measured again.

    Args:
        ticket: what is to be returned.
        masked: the compensated model at the dense shape, the pruned units masked (``surgery.mask_units``).
        dense: the model before anything was done to it; its attention may not yet be open.
        batches: of calibration data, prepared.
        groups: what was pruned.
        widths: to how many units, by group.
        dense_count: multiply-accumulates of the dense model.
        settings: the target.

    Raises:
        PruneError: one of these does not hold; the message names which and where.
    """
    _check_flags(ticket, dense)
    _check_shapes(ticket, masked, groups, widths)
    items = list(sample_items(batches, PROOF_ITEMS, PROOF_ITEMS))
    # Experts see the same tokens in both: of two that a router likes equally rounding picks one.
    with refusing_what_does_not_run(), routed(dealt):
        difference = output_error(ticket, masked, items) ** 0.5
    if not difference <= _tolerance(ticket):
        raise _refusal(
            f"the ticket's output differs by {difference:.2g} of its spread "
            "from that of the model with the same units masked"
        )
    two_items = take_items(batches[0], torch.arange(2))
    _check_gradients(ticket, dense, two_items)
    return check_target_met(ticket, dense, two_items, dense_count, settings)


def check_target_met(
    ticket: nn.Module, dense: nn.Module, two_items: Any, dense_count: MacCount, settings: Prune
) -> float:
    """Return the ticket's share of multiply-accumulates, as counted on two items as the dense model's were.

    What is computed once a batch is then divided alike.

    Raises:
        PruneError: a target of ``macs``, ``params`` or ``bytes`` is not met.
    """
    share = count_macs(ticket, two_items).total / dense_count.total
    if isinstance(settings.target, Macs):
        _check_share(share, settings.target.macs, "multiply-accumulates", settings)
    if isinstance(settings.target, Params):
        before, after = (sum(each.numel() for each in model.parameters()) for model in (dense, ticket))
        _check_share(after / before, settings.target.params, "parameters", settings)
    if isinstance(settings.target, Bytes):
        before, after = (bytes_of(model.state_dict()) for model in (dense, ticket))
        _check_share(after / before, settings.target.bytes, "bytes", settings)
    return share


def verify_split(split: nn.Module, whole: nn.Module, batches: Sequence[Any]) -> None:
    """Refuse a ticket of split layers whose outputs differ from what it gave before they were split.

    Raises:
        PruneError: it differs, or it does not run: other code reads a weight of such a layer, say.
    """
    items = list(sample_items(batches, PROOF_ITEMS, PROOF_ITEMS))
    with refusing_what_does_not_run(), routed(dealt):
        difference = output_error(split, whole, items) ** 0.5
    if not difference <= _tolerance(whole):
        raise _refusal(f"with layers of low rank split the output differs by {difference:.2g} of its spread")


def _tolerance(model: nn.Module) -> float:
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    return TOLERANCES.get(dtype, HALF_TOLERANCE)


@contextmanager
def refusing_what_does_not_run() -> Iterator[None]:
    """Turn whatever a ticket's own code raises into the refusal of the ticket."""
    try:
        yield
    except PruneError:
        raise
    # The ticket's own code runs here, and may raise anything.
    except Exception as error:
        raise _refusal(
            f"the ticket does not run ({first_line(error)}); where some widths alone do not, another "
            "prune.round_to may, or prune.ignored_layers"
        ) from error


def _refusal(reason: str) -> PruneError:
    return PruneError(f"pruning was rolled back: {reason}")


def _check_share(found: float, target: float, unit: str, settings: Prune) -> None:
    if found > target + SLACK:
        raise _refusal(f"the ticket keeps {found:.4f} of the {unit}, prune.target is {settings.target}")


def _check_shapes(
    ticket: nn.Module, masked: nn.Module, groups: Sequence[Group], widths: Sequence[int]
) -> None:
    """Compare every tensor of the ticket with what is left of it when each group has its planned width."""
    shapes, found = shapes_of(masked), shapes_of(ticket)
    planned = [PrunedGroup.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
    kept = elements_kept(shapes, planned)
    for name, shape in shapes.items():
        axes = kept.get(name, {})
        wanted = tuple(len(axes[axis]) if axis in axes else length for axis, length in enumerate(shape))
        if found.get(name) != wanted:
            shown = list(found[name]) if name in found else "missing"
            raise _refusal(f"{name} is {shown} in the ticket, {list(wanted)} was planned")


def _check_flags(ticket: nn.Module, dense: nn.Module) -> None:
    before = dict(dense.named_parameters())
    for name, parameter in ticket.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise _refusal(
                f"{name} is not finite after compensation; "
                "set prune.compensate = false or raise prune.calibration_items"
            )
        old = before.get(name, parameter)
        if any(
            getattr(parameter, each) != getattr(old, each) for each in ("requires_grad", "dtype", "device")
        ):
            raise _refusal(f"{name} lost its flags, number type or device")
    modes = {name: module.training for name, module in dense.named_modules()}
    # The layers of an opened attention have no counterpart.
    if any(modes.get(name, module.training) != module.training for name, module in ticket.named_modules()):
        raise _refusal("a module is in another mode than it was")


def _check_gradients(ticket: nn.Module, dense: nn.Module, batch: Any) -> None:
    try:
        finite = _finite_gradients(ticket, batch)
    except RuntimeError as error:
        try:
            _finite_gradients(dense, batch)
        except RuntimeError:  # Code that works in place may run and still have no gradient, pruned or not.
            return
        raise _refusal(f"the ticket has no gradient ({error})") from error
    if not finite:
        raise _refusal("a gradient of the ticket is not finite")


def _finite_gradients(model: nn.Module, batch: Any) -> bool:
    """Return whether every gradient that a model has is finite."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluation_mode(model):
        finite = gradients_of(model, parameters, batch, lambda each: bool(each.isfinite().all()))
    return False not in finite
