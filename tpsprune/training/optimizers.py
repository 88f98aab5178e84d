"""Optimisers from a recipe, and their state by parameter name: what a checkpoint and a cut can carry."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tpsprune.recipe.train import Train
from tpsprune.training.grokfast import Grokfast

__all__ = ["load_state_by_name", "make_optimizer", "state_by_name"]


def make_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Build the recipe's optimiser over the parameters that train.

    Weight decay acts on tensors of two axes and more; biases and normalisation gains are left free, as
    is usual (their shrinking regularises nothing). With ``grokfast_gain`` above zero, Grokfast's filter
    goes before it.
    """
    optimizer = _plain(model, settings)
    if settings.grokfast_gain > 0.0:
        Grokfast(optimizer, settings.grokfast_gain, settings.grokfast_memory)
    return optimizer


def _plain(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    return torch.optim.SGD(
        groups,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=True,
    )


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the optimiser's state tensors (moments, step counts) under their parameters' names."""
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_state_by_name(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Give the optimiser the state tensors of the named parameters; the others begin afresh.

    Beginning afresh is zero momentum, which has to be said where others have some: fused SGD takes
    momentum for all parameters or for none.
    """
    for name, parameter in model.named_parameters():
        if name in state:
            optimizer.state[parameter] = {
                key: _laid_out_as(parameter, value) for key, value in state[name].items()
            }
        elif state and isinstance(optimizer, torch.optim.SGD) and parameter.requires_grad:
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}


def _laid_out_as(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Return a copy of ``value`` on the parameter's device, in its memory format if it has its shape.

    Fused kernels walk memory, not indices: moments in another order than a channels-last weight are
    taken for those of other elements.
    """
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.detach().clone().to(parameter.device)
