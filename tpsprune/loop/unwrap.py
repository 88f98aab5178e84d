"""A user's objects, unwrapped and checked: model and optimiser out of their wrappers, a saved state."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tpsprune.errors import LoopError, ModelError, PruneError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_QUANTISED = ("torch.ao.nn.", "torch.nn.quantized", "torch.nn.intrinsic.quantized")


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile``, ``DistributedDataParallel`` or ``DataParallel`` wrap.

    The wrapped and the wrapper share their parameters, so what is read from the one holds for the other.

    >>> inner = nn.Linear(2, 2)
    >>> unwrap_model(nn.DataParallel(inner)) is inner
    True

    Raises:
        ModelError: its parameters are sharded over processes, so that none holds a whole weight.
    """
    *_, model = _unwrapped(model)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "placements") or type(parameter).__name__ == "FlatParameter":
            raise ModelError(
                f"'{name}' is sharded over processes, and no process holds the whole weight; use a model on"
                " one device or under DistributedDataParallel"
            )
    return model


def replicas_of(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """Return the wrapper that holds a copy of the model in each of several processes, if one does."""
    return next(
        (each for each in _unwrapped(model) if isinstance(each, nn.parallel.DistributedDataParallel)), None
    )


def _unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and what it wraps, to the innermost."""
    inner: object = model
    while isinstance(inner, nn.Module):
        yield inner
        inner = inner.module if isinstance(inner, _WRAPPERS) else getattr(inner, "_orig_mod", None)


def plain_model(model: nn.Module) -> nn.Module:
    """Return the module that wrappers hold, as it runs without being compiled; refuse one with no such code.

    A module compiled in place (``model.compile()``) comes back as a copy: the compiler would see the model
    change at every step of pruning, and compile it anew each time.

    Raises:
        PruneError: a part of the model is scripted, quantised or compiled by itself; names it.
        ModelError: as ``unwrap_model``.
    """
    model = unwrap_model(model)
    for name, module in model.named_modules():
        part = f"its part '{name}'" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise PruneError(
                f"{part} is TorchScript ({type(module).__name__}), whose code cannot be changed or copied for"
                " pruning; prune the Python module that it was made from, and script the ticket"
            )
        if type(module).__module__.startswith(_QUANTISED):
            raise PruneError(
                f"{part} is quantised ({type(module).__name__}): its weights are packed whole numbers without"
                " gradients; prune the model before it is quantised, and quantise the ticket"
            )
        if isinstance(getattr(module, "_orig_mod", None), nn.Module):
            raise PruneError(
                f"{part} is compiled by itself; put the module that it wraps (its _orig_mod) in its place,"
                " prune, and compile the ticket"
            )
    compiled = any(getattr(each, "_compiled_call_impl", None) is not None for each in model.modules())
    return copy.deepcopy(model) if compiled else model


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimiser that others (as Accelerate's) wrap.

    Raises:
        LoopError: there is none in it.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise LoopError(
            f"TPS: optimizer is {type(optimizer).__name__}; expected the torch.optim.Optimizer that trains"
            " the model"
        )
    return optimizer


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first tensor; the CPU of a model without any."""
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def check_state(place: str, state: Mapping[str, Any], names: Iterable[str], schema: str = "") -> None:
    """Raise unless a saved state is of ``schema``, if there is one, and has all these names.

    Raises:
        LoopError: its schema is another, or it lacks something: names all that is missing.
    """
    if schema and state.get("schema") != schema:
        raise LoopError(f"{place}: the state is {state.get('schema')!r}, and {schema!r} is needed")
    if missing := [repr(name) for name in names if name not in state]:
        raise LoopError(f"{place}: the state lacks {', '.join(missing)}; use all that state_dict returned")


def check_settings(place: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise unless a state was made with the settings that are here.

    Raises:
        LoopError: names the first that differs, with both values.
    """
    for name in dict.fromkeys((*ours, *theirs)):
        if theirs.get(name) != ours.get(name):
            raise LoopError(
                f"{place}: {name} is {theirs.get(name)!r} in the state and {ours.get(name)!r} here"
            )
