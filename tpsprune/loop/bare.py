"""Model and optimiser themselves, out of what compiles them or spreads them over devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tpsprune.errors import LoopError, ModelError

__all__ = ["bare", "bare_optimizer", "device_of"]

_REPLICATED = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def bare(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile``, ``DistributedDataParallel`` or ``DataParallel`` wrap.

    The wrapped and the wrapper share their parameters, so what is read from the one holds for the other.

    >>> inner = nn.Linear(2, 2)
    >>> bare(nn.DataParallel(inner)) is inner
    True

    Raises:
        ModelError: its parameters are sharded over processes, so that none holds a whole weight.
    """
    while True:
        inner = model.module if isinstance(model, _REPLICATED) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "placements") or type(parameter).__name__ == "FlatParameter":
            raise ModelError(
                f"'{name}' is sharded over processes, and no process holds the whole weight; a model on one"
                " device, or under DistributedDataParallel, would do"
            )
    return model


def bare_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimiser that others (as Accelerate's) wrap.

    Raises:
        LoopError: there is none in it.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise LoopError(
            f"TPS: optimizer is {type(optimizer).__name__}; the torch.optim.Optimizer that trains the model"
            " would do"
        )
    return optimizer


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first tensor; the CPU of a model without any."""
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
