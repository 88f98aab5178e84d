"""A classifier of torchvision: by name, its classes from the data where the user did not say."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from tpsprune.errors import ModelError
from tpsprune.models.libraries import building, data_words, importing, refuse_loading, unknown_name
from tpsprune.models.torchvision_shim import import_torchvision
from tpsprune.recipe.task import TorchvisionModel
from tpsprune.records import TaskFacts

__all__ = ["torchvision_arguments", "torchvision_model"]

PLACE = "task.model.name"
CHANNELS: Final = 3


def torchvision_model(model: TorchvisionModel, facts: TaskFacts) -> nn.Module:
    """Build the model, weights drawn anew.

    Raises:
        ModelError: torchvision is not installed, has no such classifier, the data are no images of three
            channels, or it does not build.
    """
    arguments = {**torchvision_arguments(model, facts), **model.model_args}
    with building(PLACE, model.name):
        built: nn.Module = _torchvision().models.get_model(model.name, weights=None, **arguments)
    return built


def torchvision_arguments(model: TorchvisionModel, facts: TaskFacts) -> dict[str, Any]:
    """Return what follows from the data: classes, and the image size of the transformers among them.

    Raises:
        ModelError: as ``torchvision_model``.
    """
    models = _torchvision().models
    known = models.list_models(module=models)
    if model.name not in known:
        raise unknown_name(PLACE, model.name, known, "torchvision")
    refuse_loading(model.model_args, "task.model.model_args")
    if facts.input_kind != "image" or facts.input_shape[0] != CHANNELS:
        raise ModelError(
            f"task.model: torchvision's classifiers take images of {CHANNELS} channels, the data are "
            f"{data_words(facts)}; kind 'timm' takes images of any channels"
        )
    _, height, width = facts.input_shape
    arguments: dict[str, Any] = {"num_classes": facts.classes}
    if model.name.startswith("vit_"):
        if height != width and "image_size" not in model.model_args:
            raise ModelError(
                f"task.model: torchvision's '{model.name}' takes square images, the data are {height}×{width}"
            )
        arguments["image_size"] = height
    elif model.name.startswith("maxvit"):
        arguments["input_size"] = (height, width)
    return {name: value for name, value in arguments.items() if name not in model.model_args}


def _torchvision() -> Any:
    with importing("torchvision"):
        return import_torchvision()
