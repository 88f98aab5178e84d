"""Data from a callable of the user's own.

The callable returns a mapping: ``train`` and ``test``, and if it likes ``validation``, each a pair
(inputs, labels) of arrays or tensors; and if it likes ``classes``, ``input_kind`` (``image``, ``tokens``
or ``vector``), ``vocabulary`` and ``cyclic``. Inputs are images (n, c, h, w) of uint8, or of floats as the
model is to see them; token ids (n, length); or vectors (n, features) of floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tpsprune.data.preparation import Preparation, channel_statistics
from tpsprune.data.splits import Dataset, Split, parted, require_every_class, stratified_order
from tpsprune.errors import DataError, did_you_mean
from tpsprune.recipe.dotted import call
from tpsprune.recipe.task import CustomData
from tpsprune.records import TaskFacts

__all__ = ["custom_dataset"]

PLACE = "task.data.factory"
InputKind = Literal["image", "tokens", "vector"]
SPLITS = ("train", "validation", "test")
MOST_IDS = 2**22
KEYS = (*SPLITS, "classes", "input_kind", "vocabulary", "cyclic")
AXES: dict[InputKind, int] = {"image": 4, "tokens": 2, "vector": 2}
WANTED: dict[InputKind, str] = {
    "image": "images (n, channels, height, width) of uint8 or floats",
    "tokens": "token ids (n, length) of integers",
    "vector": "vectors (n, features) of floats",
}


def custom_dataset(data: CustomData) -> Dataset:
    """Call the user's factory and return what it gives, checked; validation is drawn off train if missing.

    uint8 images are standardised by the training split's mean and deviation; floats stay as they are.

    Raises:
        DataError: the mapping, or what is in it, is not as the module says.
        RecipeError: the factory does not import, or raised.
    """
    given = _mapping(call(data.factory, data.data_args, PLACE))
    kind = _input_kind(given)
    splits = {name: _split(name, given[name], kind) for name in SPLITS if name in given}
    _require_alike(splits)
    facts = _facts(given, kind, splits)
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


def _input_kind(given: Mapping[str, Any]) -> InputKind:
    known = get_args(InputKind)
    named = given.get("input_kind")
    if named is not None:
        if named not in known:
            raise DataError(f"{PLACE}: input_kind is {named!r}; {', '.join(known)} are known")
        return named  # type: ignore[no-any-return]
    inputs, _ = _pair("train", given["train"])
    if inputs.ndim == 4:
        return "image"
    if inputs.ndim == 2 and inputs.dtype != torch.uint8:
        return "vector" if inputs.is_floating_point() else "tokens"
    raise DataError(
        f"{PLACE}: train inputs are {_words(inputs)}, from which their kind cannot be told; "
        f"input_kind = {', '.join(known)} would do"
    )


def _pair(name: str, pair: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{PLACE}: {name} is {type(pair).__name__}; a pair (inputs, labels) would do")
    return _tensor(f"{name} inputs", pair[0]), _tensor(f"{name} labels", pair[1])


def _tensor(name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{PLACE}: {name} are {type(values).__name__}, not an array of numbers ({error})"
        ) from error


def _split(name: str, pair: Any, kind: InputKind) -> Split:
    inputs, labels = _pair(name, pair)
    if inputs.ndim != AXES[kind] or not _has_dtype(inputs, kind):
        raise DataError(f"{PLACE}: {name} inputs are {_words(inputs)}; {WANTED[kind]} would do")
    if labels.ndim != 1 or not _is_integer(labels):
        raise DataError(f"{PLACE}: {name} labels are {_words(labels)}; integers of shape (n,) would do")
    if labels.shape[0] != inputs.shape[0] or inputs.numel() == 0:
        raise DataError(
            f"{PLACE}: {name} has {inputs.shape[0]} inputs and {labels.shape[0]} labels; as many of both, "
            "and at least one, would do"
        )
    stored = inputs.to(_stored_dtype(inputs, kind))
    if stored.is_floating_point() and not bool(stored.isfinite().all()):
        raise DataError(f"{PLACE}: {name} inputs hold nan or inf as float32; finite numbers would do")
    return Split(stored, labels.to(torch.int64))


def _has_dtype(inputs: Tensor, kind: InputKind) -> bool:
    if kind == "tokens":
        return _is_integer(inputs)
    return inputs.is_floating_point() or (kind == "image" and inputs.dtype == torch.uint8)


def _stored_dtype(inputs: Tensor, kind: InputKind) -> torch.dtype:
    if kind == "tokens":
        return torch.int64
    return torch.float32 if inputs.is_floating_point() else torch.uint8


def _require_alike(splits: dict[str, Split]) -> None:
    first = splits["train"].inputs
    for name, split in splits.items():
        if split.inputs.shape[1:] != first.shape[1:] or split.inputs.dtype != first.dtype:
            raise DataError(
                f"{PLACE}: {name} inputs are {_words(split.inputs)}, train inputs {_words(first)}; items of "
                "one shape and type would do"
            )


def _facts(given: Mapping[str, Any], kind: InputKind, splits: dict[str, Split]) -> TaskFacts:
    classes = _bound(given, "classes", "labels", {n: s.labels for n, s in splits.items()})
    if classes < 2:
        raise DataError(f"{PLACE}: holds only one class; two classes or more would do")
    vocabulary = None
    if kind == "tokens":
        vocabulary = _bound(given, "vocabulary", "inputs", {n: s.inputs for n, s in splits.items()})
    return TaskFacts(
        input_kind=kind,
        input_shape=tuple(splits["train"].inputs.shape[1:]),
        classes=classes,
        vocabulary=vocabulary,
        cyclic=bool(given.get("cyclic", False)),
    )


def _bound(given: Mapping[str, Any], key: str, what: str, values: dict[str, Tensor]) -> int:
    """Return the number of ids: as given, else one more than the largest trained on."""
    count = given.get(key)
    if count is None:
        count = int(values["train"].max()) + 1
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise DataError(f"{PLACE}: {key} is {count!r}; a whole number above zero would do")
    if count > MOST_IDS:
        raise DataError(f"{PLACE}: {key} is {count}; {MOST_IDS} at most would do: are the {what} ids?")
    for name, ids in values.items():
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= count:
            raise DataError(
                f"{PLACE}: {name} {what} go from {lowest} to {highest}; from 0 to {count - 1} would do "
                f"({key} = {count})"
            )
    return count


def _validation_drawn(train: Split, kind: InputKind, data: CustomData) -> tuple[Split, Split]:
    place = "task.data.validation_share"
    generator = torch.Generator().manual_seed(data.split_seed)
    if kind == "tokens":
        # Token tasks often have as many answers as tokens, too few items of each to draw by class.
        order = torch.randperm(len(train), generator=generator)
        return parted(train, order, data.validation_share, place)
    rest, drawn = parted(train, stratified_order(train.labels, generator), data.validation_share, place)
    for role, part in (("validation", drawn), ("training", rest)):
        require_every_class(part, role, train, place)
    return rest, drawn


def _is_integer(values: Tensor) -> bool:
    return not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool


def _words(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"
