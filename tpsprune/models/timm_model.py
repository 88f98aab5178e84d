"""A model of timm: by name, its classes, channels and image size from the data where the user did not say."""

from __future__ import annotations

from typing import Any

from torch import nn

from tpsprune.errors import ModelError
from tpsprune.models.libraries import building, data_words, importing, refuse_loading, unknown_name
from tpsprune.models.torchvision_shim import import_torchvision
from tpsprune.recipe.task import TimmModel
from tpsprune.records import TaskFacts

__all__ = ["timm_arguments", "timm_model"]

PLACE = "task.model.name"


def timm_model(model: TimmModel, facts: TaskFacts) -> nn.Module:
    """Build the model, weights drawn anew.

    Raises:
        ModelError: timm is not installed, has no such model, the data are no images, or it does not build.
    """
    timm = _timm()
    arguments = {**timm_arguments(model, facts), **model.model_args}
    with building(PLACE, model.name):
        built: nn.Module = timm.create_model(model.name, pretrained=False, **arguments)
    return built


def timm_arguments(model: TimmModel, facts: TaskFacts) -> dict[str, Any]:
    """Return what follows from the data: classes, channels, and the image size where the model fixes one.

    Raises:
        ModelError: as ``timm_model``.
    """
    timm = _timm()
    if not timm.is_model(model.name):
        raise unknown_name(PLACE, model.name, timm.list_models(), "timm")
    refuse_loading(model.model_args, "task.model.model_args")
    if facts.input_kind != "image":
        raise ModelError(f"task.model: timm's models take images, the data are {data_words(facts)}")
    channels, height, width = facts.input_shape
    arguments: dict[str, Any] = {"num_classes": facts.classes, "in_chans": channels}
    with building(PLACE, model.name):
        settings = timm.models.get_pretrained_cfg(model.name)
    if settings is not None and settings.fixed_input_size:
        arguments["img_size"] = height if height == width else (height, width)
    return {name: value for name, value in arguments.items() if name not in model.model_args}


def _timm() -> Any:
    with importing("timm"):
        import_torchvision()  # timm imports it, and may have to be helped with it
        import timm

        return timm
