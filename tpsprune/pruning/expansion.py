"""A ticket at the shape of its dense model, so that both are two points of one space of weights."""

from __future__ import annotations

import torch
from torch import nn

from tpsprune.errors import PruneError
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.plan import Plan, first_difference, signature_of
from tpsprune.pruning.replay import check_ticket
from tpsprune.pruning.surgery import add_biases, elements_kept


def expand(dense: nn.Module, ticket: nn.Module, plan: Plan) -> tuple[nn.Module, nn.Module]:
    """Return the dense model and the ticket in one shape: that of the dense model, opened as the plan says.

    Pruned units have zeros for weights in the second, and running moments as in the first. It computes what
    the ticket does, except where a norm runs over pruned units or a module makes its scale of its width: to
    be compared with the ticket's outputs by the caller. Neither model is changed.

    Raises:
        PruneError: the plan is of another model or another ticket, or splits layers or opens experts, which
            have no place in the dense shape.
    """
    if difference := first_difference(plan.model, signature_of(dense)):
        raise PruneError(f"the plan is for another model: {difference}")
    if plan.factored:
        raise PruneError(f"{plan.factored[0].layer!r} is split in two, and the dense model's is one layer")
    check_ticket(ticket, plan)
    whole, _ = open_layers(dense, plan.opened)
    add_biases(whole, plan.new_biases)
    filled, _ = open_layers(dense, plan.opened)
    add_biases(filled, plan.new_biases)
    values, kept = ticket.state_dict(), elements_kept(plan.shapes, plan.groups)
    learned = {name for name, _ in filled.named_parameters(remove_duplicate=False)}
    with torch.no_grad():
        for name, tensor in filled.state_dict().items():
            if name not in values:
                raise PruneError(f"{name} is part of an opened layer, which the ticket has closed again")
            axes = kept.get(name, {})
            if not axes and values[name].shape != tensor.shape:
                continue  # It shares the memory of one that was sliced under another name.
            if axes and name in learned:
                tensor.zero_()
            every = [axes.get(axis, torch.arange(size)) for axis, size in enumerate(tensor.shape)]
            tensor[torch.meshgrid(*every, indexing="ij") if axes else ...] = values[name]
    return whole, filled
