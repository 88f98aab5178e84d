"""Whether a model takes the data and outputs what the loss wants: tried on a few items."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tpsprune.errors import ModelError, first_line
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.numerics.objective import CROSS_ENTROPY, IGNORED, Objective
from tpsprune.numerics.trees import Tree, tensors_of
from tpsprune.records import SQUARED

WORDS: Final[Mapping[str, str]] = {
    "cross-entropy": "one score per item and class",
    "next-token": "one score per item, place and token",
    "bce": "one score per item and label",
    "mse": "one number per item and target",
    "reconstruction": "one number for each of an input",
}
"""What a model outputs under each loss that is ours."""


def check_fits(
    model: nn.Module,
    inputs: Tree,
    labels: Tensor,
    classes: int,
    objective: Objective = CROSS_ENTROPY,
) -> None:
    """Run ``model`` on a few prepared inputs in evaluation mode, a copy of it in training mode, and judge.

    The model is left as it was: neither mode nor batch statistics nor the generators' state change.

    Raises:
        ModelError: nothing of the model trains, the model raised (with the first line of its message),
            its output is not of the shape that the loss wants or not finite, or a label is not a class.
        RecipeError: a loss of the user's own raised, or what it returned will not do.
    """
    _check_parameters(model)
    if objective.name in WORDS:
        _check_labels(labels, classes, objective)
    read = logits_of if objective.function is None else (lambda output: output)
    with evaluation_mode(model), torch.no_grad():
        output = _predict(model, inputs, "", read)
        if objective.name in WORDS:
            _check_scores(model, output, labels, classes, objective)
        # Also checks that a custom loss accepts the output.
        objective.sums(output, labels)
    if not all(bool(part.isfinite().all()) for part in tensors_of(output)):
        raise ModelError(
            f"task.model: {type(model).__name__} outputs values that are not finite, untrained, on "
            "inputs that are: check its initial weights and what it divides by"
        )
    with torch.random.fork_rng():
        copied = _copy(model).train()
        if objective.function is None:
            with torch.no_grad():
                _predict(copied, inputs, " in training mode", read)
        elif not objective.loss(_predict(copied, inputs, " in training mode", read), labels).requires_grad:
            raise ModelError(
                f"task.loss: '{objective.name}' returns a loss without a gradient; compute it from the "
                "model's output with torch's functions"
            )


def _check_labels(labels: Tensor, classes: int, objective: Objective) -> None:
    if objective.name in {*SQUARED, "bce"}:
        return
    counted = labels[labels != IGNORED] if objective.name == "next-token" else labels
    lowest, highest = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
    if lowest < 0 or highest >= classes:
        raise ModelError(
            f"task.data: labels go from {lowest} to {highest}; expected 0 to {classes - 1} "
            f"({classes} classes)"
        )


def _check_scores(
    model: nn.Module, scores: Tensor, labels: Tensor, classes: int, objective: Objective
) -> None:
    wanted = (*labels.shape, classes) if objective.name == "next-token" else (len(labels), classes)
    found = tuple(scores.shape)
    if found == wanted or (objective.name == "mse" and found == tuple(labels.shape)):
        return
    raise ModelError(
        f"task.model: {type(model).__name__} outputs shape {found}; "
        f"expected {wanted}, {WORDS[objective.name]}"
    )


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


def _predict(model: nn.Module, inputs: Tree, mode: str, read: Callable[[Any], Any]) -> Any:
    found = ", ".join(str(tuple(part.shape)) for part in tensors_of(inputs))
    shapes = f"shape {found}" if isinstance(inputs, Tensor) else f"shapes {found}"
    try:
        return read(call_model(model, inputs))
    except Exception as error:
        message = f"{type(model).__name__} does not run{mode} on inputs of {shapes}: {first_line(error)}"
        raise ModelError(f"task.model: {message}") from error


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"task.model: {type(model).__name__} cannot be copied, as pruning needs: {first_line(error)}"
        ) from error
