"""A plan carried out on another model of the same architecture: the structured lottery ticket."""

from __future__ import annotations

import torch
from torch import nn

from tpsprune.errors import PruneError
from tpsprune.pruning.layers import mixer
from tpsprune.pruning.open_attention import open_attention
from tpsprune.pruning.plan import Plan, first_difference, signature_of
from tpsprune.pruning.surgery import cut_in_place

__all__ = ["add_biases", "replay"]


def replay(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` cut to the units of ``plan``, every weight that stays equal bit for bit.

    Nothing is folded: this is for initial or rewound weights, and for an empty shell that a ticket's
    state dict is loaded into. Layers that the plan gives a bias get one of zeros, so that the state
    dicts fit. The plan holds the layout of every cut tensor: no trace is needed. Attention modules that
    the plan opens are opened first, then biases are added, then units go and the numbers that modules
    remember about them (heads) follow.

    Raises:
        PruneError: the plan is of another model; the message names the first tensor that differs, or the
            attention that cannot be opened here.
    """
    if difference := first_difference(plan.model, signature_of(model)):
        raise PruneError(f"the plan is for another model: {difference}")
    ticket, _ = open_attention(model, plan.opened)
    add_biases(ticket, plan.new_biases)
    cut_in_place(ticket, plan.groups)
    return ticket


def add_biases(model: nn.Module, modules: tuple[str, ...]) -> None:
    """Give layers without a bias one of zeros, in place; frozen where their weight is."""
    for name in modules:
        weight = mixer(model, name).weight
        zeros_o = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        bias = nn.Parameter(zeros_o, requires_grad=weight.requires_grad)
        model.get_submodule(name).register_parameter("bias", bias)
