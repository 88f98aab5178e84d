"""``[task.model]`` to a module that fits the data."""

from __future__ import annotations

from math import prod
from typing import Any, Final, assert_never

from torch import nn

from tpsprune.errors import ModelError
from tpsprune.models.architectures import Cnn, Mlp, ResNet, TokenMlp, Transformer
from tpsprune.models.libraries import library_arguments, library_model
from tpsprune.models.weights import stored_weights
from tpsprune.recipe.task import (
    CnnModel,
    CustomModel,
    MlpModel,
    Model,
    ResNetModel,
    TimmModel,
    TorchvisionModel,
    TransformerModel,
    TransformersModel,
)
from tpsprune.recipe.user_code import call
from tpsprune.records import TaskFacts

SMALLEST_SIDE: Final = 8
FACTORY: Final = "task.model.factory"


def build(model: Model, facts: TaskFacts, *, fill: bool = True) -> nn.Module:
    """Return the model that a recipe names, in training mode on the CPU.

    Its weights come from torch's global generator, which the caller seeds: equal seeds, equal weights; then
    from the file that ``task.model.weights`` names, unless ``fill`` is false: who fills the model from
    elsewhere does not need that file.

    Raises:
        ModelError: this kind of model does not take such inputs, or the library that has it is not installed
            or has no such model; the message names what is expected.
        ArtifactError: the weights are not there, damaged, or do not fit.
        RecipeError: a custom factory does not import, or raised.
    """
    built = _make(model, facts)
    stored = stored_weights(model) if fill else None
    if stored is not None:
        stored.fill(built)
    return built


def from_data(model: Model, facts: TaskFacts) -> dict[str, Any]:
    """Return the arguments of a library's model that follow from the data.

    Raises:
        ModelError: as ``build``.
    """
    if isinstance(model, TimmModel | TorchvisionModel | TransformersModel):
        return library_arguments(model, facts)
    return {}


def _make(model: Model, facts: TaskFacts) -> nn.Module:
    match model:
        case CnnModel():
            return Cnn(_image_shape(model.kind, facts), model.widths, model.pool_every, facts.classes)
        case ResNetModel():
            channels, _, _ = _image_shape(model.kind, facts)
            return ResNet(channels, model.depth, model.width, facts.classes)
        case MlpModel():
            return _mlp(model, facts)
        case TransformerModel():
            return _transformer(model, facts)
        case CustomModel():
            return _custom(model)
        case TimmModel() | TorchvisionModel() | TransformersModel():
            return library_model(model, facts)
        case _:
            assert_never(model)


def _mlp(model: MlpModel, facts: TaskFacts) -> Mlp | TokenMlp:
    if facts.parts:
        raise _misfit(model.kind, "takes one tensor", facts)
    if facts.input_kind == "tokens" and facts.vocabulary is not None:
        (length,) = facts.input_shape
        sizes = (facts.vocabulary, length, model.embedding, model.widths, facts.classes)
        return TokenMlp(*sizes, gated=model.gated)
    return Mlp(prod(facts.input_shape), model.widths, facts.classes, gated=model.gated)


def _transformer(model: TransformerModel, facts: TaskFacts) -> Transformer:
    if facts.input_kind != "tokens" or facts.vocabulary is None:
        raise _misfit(model.kind, "takes tokens", facts)
    if model.width % model.heads:
        raise ModelError(
            f"task.model: a width of {model.width} does not divide into {model.heads} heads; "
            "expected a multiple of heads"
        )
    (length,) = facts.input_shape
    sizes = (facts.vocabulary, model.width, model.heads, model.mlp_width, facts.classes)
    return Transformer(*sizes, length=length, layers=model.layers, form=model.attention)


def _image_shape(kind: str, facts: TaskFacts) -> tuple[int, int, int]:
    if facts.input_kind != "image":
        raise _misfit(kind, "takes images", facts)
    channels, height, width = facts.input_shape
    if min(height, width) < SMALLEST_SIDE:
        raise _misfit(kind, f"takes images of {SMALLEST_SIDE}×{SMALLEST_SIDE} pixels and more", facts)
    return channels, height, width


def _misfit(kind: str, wants: str, facts: TaskFacts) -> ModelError:
    if facts.parts:
        names = ", ".join(part.name or str(place) for place, part in enumerate(facts.parts))
        return ModelError(
            f"task.model: '{kind}' {wants}, the data are several parts ({names}); a model of your own, "
            "'custom', would fit"
        )
    plural = {"image": "images", "tokens": "tokens", "vector": "vectors"}[facts.input_kind]
    would = "'mlp' or 'transformer'" if facts.input_kind == "tokens" else "'mlp'"
    if facts.input_kind == "image" and min(facts.input_shape[1:]) >= SMALLEST_SIDE:
        would = "'cnn', 'resnet' or 'mlp'"
    return ModelError(
        f"task.model: '{kind}' {wants}, the data are {plural} of shape {facts.input_shape}; {would} would fit"
    )


def _custom(model: CustomModel) -> nn.Module:
    """Call the user's factory with ``model_args`` and return its module."""
    made = call(model.factory, model.model_args, FACTORY)
    returned = f"{FACTORY}: '{model.factory}' returned"
    if not isinstance(made, nn.Module):
        raise ModelError(f"{returned} {type(made).__name__}; expected a torch.nn.Module")
    if next(made.parameters(), None) is None:
        raise ModelError(
            f"{returned} a {type(made).__name__} without parameters; expected a module that trains"
        )
    return made
