"""Whether a model takes the data and answers with one score per class: tried on a few items."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tpsprune.errors import ModelError
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of

__all__ = ["check_fits"]


def check_fits(model: nn.Module, inputs: Tensor, labels: Tensor, classes: int) -> None:
    """Run ``model`` on a few prepared inputs in evaluation mode, a copy of it in training mode, and judge.

    The model is left as it was: neither mode nor batch statistics nor the generators' state change.

    Raises:
        ModelError: nothing of the model trains, the model raised (the first line of what it said is given),
            its answer is not of shape (batch, classes) or not finite, or a label is not a class.
    """
    _check_parameters(model)
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise ModelError(
            f"task.data: labels go from {lowest} to {highest}; from 0 to {classes - 1} would do "
            f"({classes} classes)"
        )
    with evaluation_mode(model), torch.no_grad():
        logits = _answer(model, inputs, "")
    wanted = (inputs.shape[0], classes)
    if tuple(logits.shape) != wanted:
        raise ModelError(
            f"task.model: {type(model).__name__} answers with shape {tuple(logits.shape)}; "
            f"{wanted}, one score per item and class, would do"
        )
    if not bool(logits.isfinite().all()):
        raise ModelError(
            f"task.model: {type(model).__name__} answers with values that are not finite, untrained, on "
            "inputs that are: look at its initial weights and at what it divides by"
        )
    with torch.random.fork_rng(), torch.no_grad():
        _answer(_copy(model).train(), inputs, " in training mode")


def _check_parameters(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    lazy = [name for name, parameter in parameters.items() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ModelError(
            f"task.model: '{lazy[0]}' of {type(model).__name__} is lazy and has no shape yet; give its layer "
            "its sizes, or call the model once in its factory"
        )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ModelError(
            f"task.model: nothing of {type(model).__name__} trains: none of its {len(parameters)} parameters "
            "has requires_grad"
        )


def _answer(model: nn.Module, inputs: Tensor, mode: str) -> Tensor:
    try:
        return logits_of(call_model(model, inputs))
    except Exception as error:
        raise ModelError(
            f"task.model: {type(model).__name__} does not run{mode} on inputs of shape "
            f"{tuple(inputs.shape)}: {_first_line(error)}"
        ) from error


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"task.model: {type(model).__name__} cannot be copied, as cutting needs: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
