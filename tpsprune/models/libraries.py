"""Models that libraries have by name: timm's, torchvision's classifiers, and the classes of transformers."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from tpsprune.errors import ModelError, did_you_mean, first_line
from tpsprune.recipe.task import TimmModel, TorchvisionModel, TransformersModel
from tpsprune.records import TaskFacts

__all__ = [
    "building",
    "data_words",
    "first_line",
    "help_torchvision",
    "import_torchvision",
    "importing",
    "refuse_loading",
    "timm_arguments",
    "timm_model",
    "torchvision_arguments",
    "torchvision_model",
    "transformers_arguments",
    "transformers_model",
    "unknown_name",
]


LOADING: Final = frozenset(
    (
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"),
        *("weights", "weights_backbone", "pretrained_backbone", "use_pretrained_backbone"),
        *("auto_map", "attn_implementation", "experts_implementation"),
    )
)
"""Settings by which timm, torchvision and transformers load weights, or code from a hub."""
LABELS: Final = ("id2label", "label2id")
PLACE_SIGNS: Final = frozenset("/\\:")
NOTHING_FETCHED: Final = (
    'nothing is downloaded or read while a model is built; task.model.weights = "FILE" loads weights that '
    "you have"
)


@contextmanager
def importing(library: str) -> Iterator[None]:
    """Turn a failed import of ``library`` into what to install.

    Raises:
        ModelError: it, or something that it needs, is missing, or the versions do not go together.
    """
    install = f"pip install -c constraints.txt 'tpsprune[{library}]'"
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModelError(
            f"task.model.kind: '{library}' needs {error.name or library}, which is not installed: {install}"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"task.model.kind: {library} does not import ({first_line(error)}); versions that go together: "
            f"{install}"
        ) from error


@contextmanager
def building(place: str, name: str) -> Iterator[None]:
    """Turn whatever a library says while it builds ``name`` into one fault with its place.

    Raises:
        ModelError: with the first line of what was said.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{place}: '{name}' does not build with these settings: {first_line(error)}"
        ) from error


def unknown_name(place: str, name: str, known: Iterable[str], library: str) -> ModelError:
    """Return the fault of a name that a library does not have, with the nearest that it has."""
    names = sorted(known)
    hint = did_you_mean(name, names) or f" (it has {len(names)}, as {', '.join(names[:3])})"
    return ModelError(f"{place}: {library} has no '{name}'{hint}")


def refuse_loading(given: Any, place: str) -> None:
    """Refuse settings, however deep, that make a library fetch or read something while it builds a model.

    Weights and code are named by certain keys; hubs, folders and files by texts that no other setting looks
    like. Labels are texts of the user's own.

    Raises:
        ModelError: one is there, and not merely switched off.
    """
    if isinstance(given, Mapping):
        for key, value in given.items():
            if key in LOADING and value:
                raise ModelError(f"{place}.{key}: {NOTHING_FETCHED}")
            if key not in LABELS:
                refuse_loading(value, f"{place}.{key}")
    elif isinstance(given, list):
        for value in given:
            refuse_loading(value, place)
    elif isinstance(given, str) and PLACE_SIGNS.intersection(given):
        raise ModelError(f"{place}: '{given}' names a hub, a folder or a file, and {NOTHING_FETCHED}")


def data_words(facts: TaskFacts) -> str:
    """Return what the data are, with the shape of one item.

    >>> data_words(TaskFacts(input_kind="image", input_shape=(1, 8, 8), classes=10))
    'images of shape (1, 8, 8)'
    """
    words = {"image": "images", "vector": "vectors"}
    return f"{words.get(facts.input_kind, facts.input_kind)} of shape {facts.input_shape}"


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


ARCHITECTURE_PLACE: Final = "task.model.architecture"
SPECIAL: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


def transformers_model(model: TransformersModel, facts: TaskFacts) -> nn.Module:
    """Build the model from its configuration, weights drawn anew.

    Raises:
        ModelError: transformers is not installed, has no such class, the configuration has no such key, or
            it does not build.
    """
    architecture = _architecture(model.architecture)
    arguments = {**transformers_arguments(model, facts), **model.config}
    with building(ARCHITECTURE_PLACE, model.architecture):
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
    with building(ARCHITECTURE_PLACE, model.architecture):
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
        raise unknown_name(ARCHITECTURE_PLACE, name, known, "transformers")
    with importing("transformers"):
        # Its parts import torchvision where that is installed, which may have to be helped.
        help_torchvision()
        found = getattr(transformers, name)
    if not (
        isinstance(found, type) and issubclass(found, nn.Module) and getattr(found, "config_class", None)
    ):
        raise ModelError(
            f"{ARCHITECTURE_PLACE}: transformers' '{name}' is no model with a configuration of its own; a "
            "class as GPT2LMHeadModel or ViTForImageClassification would do"
        )
    return found


SCHEMAS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision, with its two missing operators declared first where it does not import otherwise.

    Raises:
        ImportError, RuntimeError, OSError: it is not there, or does not import even so.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return torchvision  # type: ignore[no-any-return]
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    # What is declared here goes as this object goes: it is kept.
    declare: Any = torch.library.Library
    library = declare("torchvision", "FRAGMENT")
    _declared.append(library)
    for schema in SCHEMAS:
        library.define(schema)
    return importlib.import_module("torchvision")


def help_torchvision() -> None:
    """Import torchvision before a library that would; where it is not installed, that does without it."""
    try:
        import_torchvision()
    except ModuleNotFoundError:
        return
