"""Data from a callable of the user's own.

The callable returns a mapping: ``train`` and ``test``, and if it likes ``validation``, each a pair
(inputs, labels); and if it likes ``classes``, ``input_kind`` (``image``, ``tokens`` or ``vector``),
``vocabulary`` and ``cyclic``. Inputs are images (n, c, h, w) of uint8, or of floats as the model is to see
them; token ids (n, length); or vectors (n, features) of floats; or several arrays, as a mapping or a tuple
(``custom_parts``). What labels are follows from ``task.loss`` (``custom_labels``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tpsprune.data.custom_arrays import PLACE, as_tensor, count_given, is_integer, require_finite, words
from tpsprune.data.custom_labels import checked_labels, classes_of
from tpsprune.data.custom_parts import is_parts, parts_checked, parts_described, require_alike_parts
from tpsprune.data.preparation import Preparation, channel_statistics
from tpsprune.data.splits import Dataset, Split, parted, require_every_class, stratified_order
from tpsprune.errors import DataError, did_you_mean
from tpsprune.numerics.objective import are_classes
from tpsprune.recipe.dotted import call
from tpsprune.recipe.task import CustomData
from tpsprune.records import TaskFacts

__all__ = ["custom_dataset"]

InputKind = Literal["image", "tokens", "vector"]
AnyKind = Literal["image", "tokens", "vector", "parts"]
SPLITS = ("train", "validation", "test")
KEYS = (*SPLITS, "classes", "input_kind", "vocabulary", "cyclic")
AXES: dict[InputKind, int] = {"image": 4, "tokens": 2, "vector": 2}
WANTED: dict[InputKind, str] = {
    "image": "images (n, channels, height, width) of uint8 or floats",
    "tokens": "token ids (n, length) of integers",
    "vector": "vectors (n, features) of floats",
}


def custom_dataset(data: CustomData, loss: str = "cross-entropy") -> Dataset:
    """Call the user's factory and return what it gives, checked; validation is drawn off train if missing.

    uint8 images are standardised by the training split's mean and deviation; floats stay as they are.

    Raises:
        DataError: the mapping, or what is in it, is not as the module says.
        RecipeError: the factory does not import, or raised.
    """
    given = _mapping(call(data.factory, data.data_args, PLACE))
    kind = _input_kind(given)
    splits = {name: _split(name, given[name], kind, loss) for name in SPLITS if name in given}
    _require_alike(splits, kind)
    facts = _facts(given, kind, splits, loss)
    if "validation" not in splits:
        splits["train"], splits["validation"] = _validation_drawn(splits["train"], kind, data)
    images = kind == "image" and splits["train"].inputs.dtype == torch.uint8
    return Dataset(
        name=data.factory,
        facts=facts,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        prepare=Preparation(*channel_statistics(splits["train"].inputs)) if images else Preparation(),
    )


def _mapping(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise DataError(
            f"{PLACE}: returned {type(given).__name__}; a mapping with train=(inputs, labels) and "
            "test=(inputs, labels) would do"
        )
    for key in given:
        if key not in KEYS:
            raise DataError(
                f"{PLACE}: returned '{key}'{did_you_mean(str(key), KEYS)}; known are {', '.join(KEYS)}"
            )
    for key in ("train", "test"):
        if key not in given:
            raise DataError(f"{PLACE}: returned no '{key}'; {key}=(inputs, labels) would do")
    return given


def _input_kind(given: Mapping[str, Any]) -> AnyKind:
    known = get_args(InputKind)
    named = given.get("input_kind")
    several = is_parts(_pair("train", given["train"])[0])
    if several:
        for key in ("input_kind", "vocabulary", "cyclic"):
            if given.get(key) is not None:
                raise DataError(f"{PLACE}: {key} is said of inputs of one tensor; these are several")
        return "parts"
    if named is not None:
        if named not in known:
            raise DataError(f"{PLACE}: input_kind is {named!r}; {', '.join(known)} are known")
        return named  # type: ignore[no-any-return]
    inputs = as_tensor("train inputs", _pair("train", given["train"])[0])
    if inputs.ndim == 4:
        return "image"
    if inputs.ndim == 2 and inputs.dtype != torch.uint8:
        return "vector" if inputs.is_floating_point() else "tokens"
    raise DataError(
        f"{PLACE}: train inputs are {words(inputs)}, from which their kind cannot be told; "
        f"input_kind = {', '.join(known)} would do"
    )


def _pair(name: str, pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{PLACE}: {name} is {type(pair).__name__}; a pair (inputs, labels) would do")
    return pair[0], pair[1]


def _split(name: str, pair: Any, kind: AnyKind, loss: str) -> Split:
    inputs, labels = _pair(name, pair)
    labels = as_tensor(f"{name} labels", labels)
    if kind == "parts":
        labels = checked_labels(name, labels, loss)
        return Split(parts_checked(name, inputs, len(labels)), labels)
    inputs = as_tensor(f"{name} inputs", inputs)
    if inputs.ndim != AXES[kind] or not _has_dtype(inputs, kind):
        raise DataError(f"{PLACE}: {name} inputs are {words(inputs)}; {WANTED[kind]} would do")
    labels = checked_labels(name, labels, loss)
    if labels.shape[0] != inputs.shape[0] or inputs.numel() == 0:
        raise DataError(
            f"{PLACE}: {name} has {inputs.shape[0]} inputs and {labels.shape[0]} labels; as many of both, "
            "and at least one, would do"
        )
    stored = inputs.to(_stored_dtype(inputs, kind))
    require_finite(f"{name} inputs", stored)
    return Split(stored, labels)


def _has_dtype(inputs: Tensor, kind: InputKind) -> bool:
    if kind == "tokens":
        return is_integer(inputs)
    return inputs.is_floating_point() or (kind == "image" and inputs.dtype == torch.uint8)


def _stored_dtype(inputs: Tensor, kind: InputKind) -> torch.dtype:
    if kind == "tokens":
        return torch.int64
    return torch.float32 if inputs.is_floating_point() else torch.uint8


def _require_alike(splits: dict[str, Split], kind: AnyKind) -> None:
    first = splits["train"]
    for name, split in splits.items():
        if split.labels.shape[1:] != first.labels.shape[1:] or split.labels.dtype != first.labels.dtype:
            raise DataError(
                f"{PLACE}: {name} labels are {words(split.labels)}, train labels {words(first.labels)}; "
                "labels of one shape and type would do"
            )
        if kind == "parts":
            require_alike_parts(name, split.inputs, first.inputs)
        else:
            _require_alike_arrays(name, split.inputs, first.inputs)


def _require_alike_arrays(name: str, found: Tensor, first: Tensor) -> None:
    if found.shape[1:] != first.shape[1:] or found.dtype != first.dtype:
        raise DataError(
            f"{PLACE}: {name} inputs are {words(found)}, train inputs {words(first)}; items of "
            "one shape and type would do"
        )


def _facts(given: Mapping[str, Any], kind: AnyKind, splits: dict[str, Split], loss: str) -> TaskFacts:
    vocabulary = None
    if kind == "tokens":
        vocabulary = count_given(given, "vocabulary", "inputs", {n: s.inputs for n, s in splits.items()})
    classes = classes_of(given, {n: s.labels for n, s in splits.items()}, loss, vocabulary)
    if kind == "parts":
        parts = parts_described([split.inputs for split in splits.values()])
        return TaskFacts(input_kind="parts", input_shape=(), classes=classes, parts=parts, loss=loss)
    return TaskFacts(
        input_kind=kind,
        input_shape=tuple(splits["train"].inputs.shape[1:]),
        classes=classes,
        vocabulary=vocabulary,
        cyclic=bool(given.get("cyclic", False)),
        loss=loss,
    )


def _validation_drawn(train: Split, kind: AnyKind, data: CustomData) -> tuple[Split, Split]:
    place = "task.data.validation_share"
    generator = torch.Generator().manual_seed(data.split_seed)
    if kind == "tokens" or not are_classes(train.labels):
        # Token tasks often have as many answers as tokens, too few items of each to draw by class.
        order = torch.randperm(len(train), generator=generator)
        return parted(train, order, data.validation_share, place)
    rest, drawn = parted(train, stratified_order(train.labels, generator), data.validation_share, place)
    for role, part in (("validation", drawn), ("training", rest)):
        require_every_class(part, role, train, place)
    return rest, drawn
