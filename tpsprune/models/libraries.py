"""Libraries that bring models: imported when a recipe names one, and one message where that fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from tpsprune.errors import ModelError, did_you_mean
from tpsprune.records import TaskFacts

__all__ = ["building", "data_words", "first_line", "importing", "refuse_loading", "unknown_name"]

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


def first_line(error: BaseException) -> str:
    """Return the kind of an exception and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
