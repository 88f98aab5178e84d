"""What a regulariser must know of a task, from the model and some of its training data."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import VariantError
from tpsprune.loop.bare import device_of
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.records import TaskFacts

__all__ = ["Known", "known_of", "labels_of_items"]

Known = tuple[TaskFacts, Tensor, Tensor]
"""The facts, inputs and labels."""
NEEDS_DATA: Final = {
    "moments": "a few hundred training items as the model takes them, to find its layers and read order on",
    "fourier": "the training pairs of tokens (n, 2) and their answers",
    "labels": "the training pairs of tokens (n, 2) and their answers",
}
FEW: Final = 2
_WHOLE = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def known_of(model: nn.Module, data: Any, variant: str) -> Known:
    """Return the facts of a task whose training inputs and labels are ``data``, and both on the device.

    Classes are the model's scores; whole numbers two by two are tokens, in cyclic order where the variant is
    ``fourier``, which says so by being asked for. Without data, for variants that read weights alone, facts
    that say nothing.

    Raises:
        VariantError: the variant needs data, or these do not fit each other or the model.
    """
    if data is None:
        joins = getattr(model, "has_unit_triplets", False) and getattr(model, "triplets_from_weights", False)
        wanted = "labels" if variant == "auto" and joins else variant
        if wanted in NEEDS_DATA:
            subject = f"TPS '{variant}'" + (" is 'labels' on this model, and" if variant == "auto" else "")
            raise VariantError(f"{subject} needs data=(inputs, labels): {NEEDS_DATA[wanted]}")
        return TaskFacts(input_kind="vector", input_shape=(), classes=2), torch.empty(0), torch.empty(0)
    inputs, labels = _checked(data, device_of(model))
    classes = _scores(model, inputs[:FEW])
    if int(labels.max()) >= classes or classes < 2:
        raise VariantError(
            f"TPS: labels go up to {int(labels.max())} and the model has {classes} scores: a classifier with"
            " one score a class would do"
        )
    if inputs.dtype not in _WHOLE or inputs.ndim != 2:
        kind = TaskFacts(input_kind="vector", input_shape=tuple(inputs.shape[1:]), classes=classes)
        return kind, inputs, labels
    facts = TaskFacts(
        input_kind="tokens",
        input_shape=tuple(inputs.shape[1:]),
        classes=classes,
        vocabulary=_vocabulary(model, inputs),
        cyclic=variant == "fourier",
    )
    return facts, inputs, labels


def labels_of_items(labels: Tensor, classes: int) -> Tensor:
    """Return the labels of a batch, which are one class an item.

    Looks at every label. On a GPU that waits for the device, as ``moments`` does anyway: it counts classes.

    Raises:
        VariantError: their shape or type is another, or one of them is no class, as the -100 that a loss
            passes over.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise VariantError(
            f"TPS 'moments' was given labels of shape {tuple(labels.shape)} and type"
            f" {str(labels.dtype).removeprefix('torch.')}; one whole number an item would do"
        )
    if len(labels):
        low, high = torch.stack(labels.to(torch.int64).aminmax()).tolist()
        if low < 0 or high >= classes:
            raise VariantError(
                f"TPS 'moments' was given a label of {low if low < 0 else high} and knows classes from 0 to"
                f" {classes - 1}; a batch without the items that are of none would do"
            )
    return labels


def _checked(data: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    pair = data if isinstance(data, tuple | list) and len(data) == 2 else ()
    if not pair or not all(isinstance(part, Tensor) for part in pair):
        raise VariantError(
            f"TPS: data is {type(data).__name__}; a tensor of inputs and one of labels,"
            " as in data=(x, y), would do"
        )
    inputs, labels = pair
    if labels.dtype not in _WHOLE or labels.ndim != 1 or len(labels) != len(inputs) or not len(labels):
        raise VariantError(
            f"TPS: data has inputs of shape {tuple(inputs.shape)} and labels of shape"
            f" {tuple(labels.shape)} and type {str(labels.dtype).removeprefix('torch.')}; one whole number an"
            " item would do"
        )
    if int(labels.min()) < 0:
        raise VariantError(f"TPS: data has a label of {int(labels.min())}; classes from 0 would do")
    return inputs.to(device), labels.to(device, torch.int64)


def _scores(model: nn.Module, few: Tensor) -> int:
    try:
        with torch.no_grad(), evaluation_mode(model):
            return int(logits_of(call_model(model, few)).shape[-1])
    except (TypeError, RuntimeError, IndexError) as error:
        raise VariantError(f"TPS: the model does not take the inputs of data: {error}") from error


def _vocabulary(model: nn.Module, tokens_i2: Tensor) -> int:
    """Return how many tokens there are: as many as the model has places for, where it tells."""
    if getattr(model, "has_unit_triplets", False) is True and tokens_i2.shape[1] == FEW:
        with torch.no_grad():
            return len(model.unit_triplets(tokens_i2)[0])  # type: ignore[operator]
    return int(tokens_i2.max()) + 1
