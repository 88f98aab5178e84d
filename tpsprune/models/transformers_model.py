"""A model class of transformers, from a configuration: its sizes from the data where the user did not say."""

from __future__ import annotations

import inspect
from typing import Any, Final

from torch import nn

from tpsprune.errors import ModelError, did_you_mean
from tpsprune.models.libraries import building, importing, refuse_loading, unknown_name
from tpsprune.models.torchvision_shim import help_torchvision
from tpsprune.recipe.task import TransformersModel
from tpsprune.records import TaskFacts

__all__ = ["transformers_arguments", "transformers_model"]

PLACE: Final = "task.model.architecture"
SPECIAL: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


def transformers_model(model: TransformersModel, facts: TaskFacts) -> nn.Module:
    """Build the model from its configuration, weights drawn anew.

    Raises:
        ModelError: transformers is not installed, has no such class, the configuration has no such key, or
            it does not build.
    """
    architecture = _architecture(model.architecture)
    arguments = {**transformers_arguments(model, facts), **model.config}
    with building(PLACE, model.architecture):
        built: nn.Module = architecture(architecture.config_class(**arguments))
    return built


def transformers_arguments(model: TransformersModel, facts: TaskFacts) -> dict[str, Any]:
    """Return what follows from the data, of the keys that the configuration has.

    Of images their side and channels; of tokens the vocabulary, and no special token that lies beyond it
    (GPT-2's end of text is 50,256: data of 256 tokens know none); the classes where the class has labels. A
    cache of keys and values serves generation alone, and a trace cannot follow it: it is off.

    Raises:
        ModelError: as ``transformers_model``.
    """
    config_class = _architecture(model.architecture).config_class
    refuse_loading(model.config, "task.model.config")
    with building(PLACE, model.architecture):
        usual: dict[str, Any] = config_class().to_dict()
    names = {**dict.fromkeys(usual), **config_class.attribute_map}
    names.update(dict.fromkeys(inspect.signature(config_class).parameters))
    for key in model.config:
        if key not in names:
            raise ModelError(
                f"task.model.config.{key}: {config_class.__name__} has no such key{did_you_mean(key, names)}"
            )
    arguments: dict[str, Any] = {}
    if facts.input_kind == "tokens" and "vocab_size" in names:
        arguments["vocab_size"] = facts.vocabulary
        vocabulary = model.config.get("vocab_size", facts.vocabulary)
        arguments.update({key: None for key in SPECIAL if _is_beyond(usual.get(key), vocabulary)})
    if facts.input_kind == "image":
        channels, height, width = facts.input_shape
        of_images = {"num_channels": channels, "image_size": height if height == width else (height, width)}
        arguments.update({key: value for key, value in of_images.items() if key in names})
    if model.architecture.endswith("Classification") and "id2label" not in model.config:
        arguments["num_labels"] = facts.classes
    if "use_cache" in names:
        arguments["use_cache"] = False
    return {name: value for name, value in arguments.items() if name not in model.config}


def _is_beyond(token: Any, vocabulary: int | None) -> bool:
    return isinstance(token, int) and vocabulary is not None and token >= vocabulary


def _architecture(name: str) -> Any:
    with importing("transformers"):
        import transformers
    known = [each for each in dir(transformers) if "For" in each or each.endswith(("Model", "LMHead"))]
    if name not in dir(transformers):
        raise unknown_name(PLACE, name, known, "transformers")
    with importing("transformers"):
        # Its parts import torchvision where that is installed, which may have to be helped.
        help_torchvision()
        found = getattr(transformers, name)
    if not (
        isinstance(found, type) and issubclass(found, nn.Module) and getattr(found, "config_class", None)
    ):
        raise ModelError(
            f"{PLACE}: transformers' '{name}' is no model with a configuration of its own; a class as "
            "GPT2LMHeadModel or ViTForImageClassification would do"
        )
    return found
