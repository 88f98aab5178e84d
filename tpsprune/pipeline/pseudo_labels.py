"""Pseudo-labels: a trained model's own predictions in place of true labels.

The callable is for ``task.data.factory`` of a recipe. Accuracy on such data is top-1 agreement with the
initial model: 1 for itself by construction, and no accuracy on any benchmark.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune import models
from tpsprune.data.photographs import crops, photographs
from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.recipe.task import Match, TimmModel
from tpsprune.records import TaskFacts

BATCH_ITEMS: Final = 32


def photograph_crops(
    *,
    name: str,
    weights: str,
    weights_match: Match = "name",
    classes: int = 1000,
    side: int = 224,
    train: int = 160,
    validation: int = 64,
    test: int = 192,
) -> dict[str, Any]:
    """Return crops of photographs, (x − 127) / 128, labelled by the predictions of timm's model ``name``.

    Training and validation are of the left halves of the photographs, the test of the right halves: no pixel
    is in both, though the photographs are.

    Args:
        name: the model of timm.
        weights: its trained weights, as ``task.model.weights``.
        weights_match: as ``task.model.weights_match``.
        classes: how many it distinguishes.
        side: of a crop, in pixels.
        train: crops of the training split; ``validation`` and ``test`` likewise.
        validation: see there.
        test: see there.

    Raises:
        ModelError, ArtifactError: there is no such model, or the weights do not fit it.

    Cost: a forward pass of every crop.
    """
    facts = TaskFacts(input_kind="image", input_shape=(3, side, side), classes=classes)
    model = models.build(TimmModel(name=name, weights=weights, weights_match=weights_match), facts)
    photos = photographs()
    splits = {
        "train": crops(photos, train, seed=0, half=0, side=side),
        "validation": crops(photos, validation, seed=2, half=0, side=side),
        "test": crops(photos, test, seed=1, half=1, side=side),
    }
    labelled = {split: (images, _predict(model, images)) for split, images in splits.items()}
    return {**labelled, "classes": classes, "input_kind": "image"}


def _predict(model: nn.Module, images_nchw: Tensor) -> Tensor:
    with torch.no_grad(), evaluation_mode(model):
        parts = [
            logits_of(call_model(model, images_nchw[start : start + BATCH_ITEMS])).argmax(1)
            for start in range(0, len(images_nchw), BATCH_ITEMS)
        ]
    return torch.cat(parts)
