"""Whether a model takes the data and answers with one score per class: tried on a few items."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpsprune.errors import ModelError
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of

__all__ = ["check_fits"]


def check_fits(model: nn.Module, inputs: Tensor, labels: Tensor, classes: int) -> None:
    """Run ``model`` on a few prepared inputs, without gradients and in evaluation mode, and judge the answer.

    The model is left as it was: neither mode nor batch statistics change.

    Raises:
        ModelError: the model raised (the first line of what it said is given), its answer is not of
            shape (batch, classes), or a label is not a class.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise ModelError(
            f"task.data: labels go from {lowest} to {highest}; from 0 to {classes - 1} would do "
            f"({classes} classes)"
        )
    with evaluation_mode(model), torch.no_grad():
        try:
            logits = logits_of(call_model(model, inputs))
        except Exception as error:
            raise ModelError(
                f"task.model: {type(model).__name__} does not run on inputs of shape "
                f"{tuple(inputs.shape)}: {_first_line(error)}"
            ) from error
    wanted = (inputs.shape[0], classes)
    if tuple(logits.shape) != wanted:
        raise ModelError(
            f"task.model: {type(model).__name__} answers with shape {tuple(logits.shape)}; "
            f"{wanted}, one score per item and class, would do"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
