"""Models that libraries have by name: timm's, torchvision's classifiers, and the classes of transformers.

Nothing is downloaded or read while one is built: its weights are initialised. A library is imported only
when a recipe names a model of it.

The torchvision that PyPI serves is built against CUDA. Beside a CPU build of torch its binary does not load
(libcudart and two more libraries are missing), torchvision swallows that, and a line further on registers a
fake for the operators ``nms`` and ``qnms`` that the binary would have declared: ``RuntimeError: operator
torchvision::nms does not exist``. The models need none of those operators. Where the direct import fails, and
only there, the two are declared, without being defined, and it is imported again; calling one still fails.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from tpsprune.errors import ModelError, did_you_mean, first_line
from tpsprune.recipe.task import TimmModel, TorchvisionModel, TransformersModel
from tpsprune.records import TaskFacts

LibraryModel: TypeAlias = TimmModel | TorchvisionModel | TransformersModel
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
TORCHVISION_CHANNELS: Final = 3
SPECIAL_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


def library_model(model: LibraryModel, facts: TaskFacts) -> nn.Module:
    """Build the model with the user's settings and those that follow from the data, with initial weights.

    Raises:
        ModelError: the library is not installed, has no such model or setting, the data do not fit, or it
            does not build.
    """
    arguments = {**library_arguments(model, facts), **_place_and_settings(model)[2]}
    with _building(model):
        match model:
            case TimmModel():
                built = _timm().create_model(model.name, pretrained=False, **arguments)
            case TorchvisionModel():
                built = _torchvision().models.get_model(model.name, weights=None, **arguments)
            case TransformersModel():
                architecture = _architecture(model.architecture)
                built = architecture(architecture.config_class(**arguments))
    assert isinstance(built, nn.Module), "libraries of models make modules"
    return built


def library_arguments(model: LibraryModel, facts: TaskFacts) -> dict[str, Any]:
    """Return the arguments that follow from the data, without those that the user set.

    Raises:
        ModelError: as ``library_model``.
    """
    match model:
        case TimmModel():
            arguments = _timm_arguments(model, facts)
        case TorchvisionModel():
            arguments = _torchvision_arguments(model, facts)
        case TransformersModel():
            arguments = _transformers_arguments(model, facts)
    *_, settings = _place_and_settings(model)
    return {name: value for name, value in arguments.items() if name not in settings}


def _timm_arguments(model: TimmModel, facts: TaskFacts) -> dict[str, Any]:
    """Return classes, channels, and the image size where the model fixes one."""
    timm = _timm()
    if not timm.is_model(model.name):
        raise _unknown(model, timm.list_models())
    _refuse_loading(model.model_args, "task.model.model_args")
    if facts.input_kind != "image":
        raise ModelError(f"task.model: timm's models take images, the data are {_describe(facts)}")
    channels, height, width = facts.input_shape
    arguments: dict[str, Any] = {"num_classes": facts.classes, "in_chans": channels}
    with _building(model):
        settings = timm.models.get_pretrained_cfg(model.name)
    if settings is not None and settings.fixed_input_size:
        arguments["img_size"] = height if height == width else (height, width)
    return arguments


def _torchvision_arguments(model: TorchvisionModel, facts: TaskFacts) -> dict[str, Any]:
    """Return the classes, and the image size of the transformers among the classifiers."""
    models = _torchvision().models
    names = models.list_models(module=models)
    if model.name not in names:
        raise _unknown(model, names)
    _refuse_loading(model.model_args, "task.model.model_args")
    if facts.input_kind != "image" or facts.input_shape[0] != TORCHVISION_CHANNELS:
        raise ModelError(
            f"task.model: torchvision's classifiers take images of {TORCHVISION_CHANNELS} channels, the data "
            f"are {_describe(facts)}; kind 'timm' takes images of any channels"
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
    return arguments


def _transformers_arguments(model: TransformersModel, facts: TaskFacts) -> dict[str, Any]:
    """Return what follows from the data, of the keys that the configuration has.

    Of images their side and channels; of tokens the vocabulary, and no special token that lies beyond it
    (GPT-2's end of text is 50,256: data of 256 tokens know none); the classes where the class has labels. A
    cache of keys and values serves generation alone, and a trace cannot follow it: it is off.
    """
    config_class = _architecture(model.architecture).config_class
    _refuse_loading(model.config, "task.model.config")
    with _building(model):
        usual: dict[str, Any] = config_class().to_dict()
    names = {*usual, *config_class.attribute_map, *inspect.signature(config_class).parameters}
    for key in model.config:
        if key not in names:
            raise ModelError(
                f"task.model.config.{key}: {config_class.__name__} has no such key"
                f"{did_you_mean(key, sorted(names))}"
            )
    arguments: dict[str, Any] = {}
    if facts.input_kind == "tokens" and "vocab_size" in names:
        arguments["vocab_size"] = facts.vocabulary
        vocabulary = model.config.get("vocab_size", facts.vocabulary)
        special = {key: usual[key] for key in SPECIAL_TOKENS if isinstance(usual.get(key), int)}
        if vocabulary is not None:
            arguments |= {key: None for key, token in special.items() if token >= vocabulary}
    if facts.input_kind == "image":
        channels, height, width = facts.input_shape
        of_images = {"num_channels": channels, "image_size": height if height == width else (height, width)}
        arguments |= {key: value for key, value in of_images.items() if key in names}
    if model.architecture.endswith("Classification") and "id2label" not in model.config:
        arguments["num_labels"] = facts.classes
    if "use_cache" in names:
        arguments["use_cache"] = False
    return arguments


def _place_and_settings(model: LibraryModel) -> tuple[str, str, Mapping[str, Any]]:
    """Return where the user named the model, by which name, and its settings."""
    if isinstance(model, TransformersModel):
        return "task.model.architecture", model.architecture, model.config
    return "task.model.name", model.name, model.model_args


def _describe(facts: TaskFacts) -> str:
    """Return what the data are, with the shape of one item.

    >>> _describe(TaskFacts(input_kind="image", input_shape=(1, 8, 8), classes=10))
    'images of shape (1, 8, 8)'
    """
    plurals = {"image": "images", "vector": "vectors"}
    return f"{plurals.get(facts.input_kind, facts.input_kind)} of shape {facts.input_shape}"


def _unknown(model: LibraryModel, choices: Iterable[str]) -> ModelError:
    """Return the fault of a name that a library does not have, with the nearest that it has."""
    names, (place, name, _) = sorted(choices), _place_and_settings(model)
    hint = did_you_mean(name, names) or f" (it has {len(names)}, as {', '.join(names[:3])})"
    return ModelError(f"{place}: {model.kind} has no '{name}'{hint}")


def _refuse_loading(setting: Any, place: str) -> None:
    """Refuse settings, however deep, that make a library fetch or read something while it builds a model.

    Weights and code are named by certain keys; hubs, folders and files by strings of a form that no other
    setting has. Labels are the user's text.

    Raises:
        ModelError: one is there, and not merely switched off.
    """
    if isinstance(setting, Mapping):
        for key, value in setting.items():
            if key in LOADING and value:
                raise ModelError(f"{place}.{key}: {NOTHING_FETCHED}")
            if key not in LABELS:
                _refuse_loading(value, f"{place}.{key}")
    elif isinstance(setting, list):
        for value in setting:
            _refuse_loading(value, place)
    elif isinstance(setting, str) and PLACE_SIGNS.intersection(setting):
        raise ModelError(f"{place}: '{setting}' names a hub, a folder or a file, and {NOTHING_FETCHED}")


@contextmanager
def _building(model: LibraryModel) -> Iterator[None]:
    """Turn any exception of a library while it builds a model into one fault with its place."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        place, name, _ = _place_and_settings(model)
        message = f"{place}: '{name}' does not build with these settings: {first_line(error)}"
        raise ModelError(message) from error


@contextmanager
def _importing(library: str) -> Iterator[None]:
    """Turn a failed import of ``library`` into what to install."""
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


def _timm() -> Any:
    with _importing("timm"):
        import_torchvision()  # timm imports it, and may have to be helped with it
        import timm

        return timm


def _torchvision() -> Any:
    with _importing("torchvision"):
        return import_torchvision()


def _architecture(name: str) -> Any:
    with _importing("transformers"):
        import transformers
    if name not in dir(transformers):
        names = [each for each in dir(transformers) if "For" in each or each.endswith(("Model", "LMHead"))]
        raise _unknown(TransformersModel(architecture=name), names)
    with _importing("transformers"):
        # Its parts import torchvision where that is installed, which may have to be helped.
        help_torchvision()
        found = getattr(transformers, name)
    if not (
        isinstance(found, type) and issubclass(found, nn.Module) and getattr(found, "config_class", None)
    ):
        raise ModelError(
            f"task.model.architecture: transformers' '{name}' is no model with a configuration of its own; "
            "expected a class such as GPT2LMHeadModel or ViTForImageClassification"
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
    # Declarations here end with this object: it is kept.
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
