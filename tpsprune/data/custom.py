"""Data from a callable of the user's own.

The callable returns a mapping: ``train`` and ``test``, and if it likes ``validation``, each a pair
(inputs, labels); and if it likes ``classes``, ``input_kind`` (``image``, ``tokens`` or ``vector``),
``vocabulary`` and ``cyclic``. Inputs are images (n, c, h, w) of uint8, or of floats as the model is to see
them; token ids (n, length); or vectors (n, features) of floats; or several arrays: a mapping goes into the
model by keyword, a tuple by position; of these floats are stored as float32, whole numbers as int64, truth
values as they are. What labels must be follows from ``task.loss``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tpsprune.data.dataset import (
    Dataset,
    Preparation,
    Split,
    channel_statistics,
    parted,
    require_every_class,
    stratified_order,
)
from tpsprune.errors import DataError, did_you_mean
from tpsprune.numerics.objective import IGNORED, are_classes
from tpsprune.numerics.trees import Tree
from tpsprune.recipe.task import CustomData
from tpsprune.recipe.user_code import call
from tpsprune.records import InputPart, TaskFacts

__all__ = [
    "PLACE",
    "as_tensor",
    "checked_labels",
    "classes_of",
    "count_given",
    "custom_dataset",
    "is_integer",
    "is_parts",
    "parts_checked",
    "parts_described",
    "require_alike_parts",
    "require_finite",
    "words",
]


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


def is_parts(inputs: Any) -> bool:
    """Return whether inputs are several arrays: a mapping, or a tuple of nothing but arrays."""
    if isinstance(inputs, tuple):
        return bool(inputs) and all(isinstance(each, Tensor | np.ndarray) for each in inputs)
    return isinstance(inputs, Mapping)


def parts_checked(name: str, inputs: Any, items: int) -> Tree:
    """Return the parts of a split as they are stored, a dictionary or a tuple.

    Raises:
        DataError: a part is no array of numbers, has another number of items, or a name that is no keyword.
    """
    if not is_parts(inputs) or not inputs:
        raise DataError(
            f"{PLACE}: {name} inputs are {type(inputs).__name__}, train inputs several arrays; a mapping or "
            "tuple of arrays would do for both"
        )
    stored = {place: _part(f"{name} inputs {place!r}", each, items) for place, each in _named(inputs)}
    if isinstance(inputs, tuple):
        return tuple(stored.values())
    for place in stored:
        if not (isinstance(place, str) and place.isidentifier()):
            raise DataError(
                f"{PLACE}: {name} inputs have a part {place!r}; the name of an argument of the model's "
                "forward would do"
            )
    return stored


def require_alike_parts(name: str, found: Tree, first: Tree) -> None:
    """Refuse parts of a split that are not those trained on.

    Raises:
        DataError: naming the first that differs.
    """
    mine, theirs = dict(_named(found)), dict(_named(first))
    for place in (*theirs, *mine):
        if place not in mine or place not in theirs:
            which, where = (name, "train") if place in mine else ("train", name)
            hint = did_you_mean(str(place), [str(each) for each in (theirs if place in mine else mine)])
            raise DataError(f"{PLACE}: {which} inputs have a part {place!r} that {where} inputs lack{hint}")
        if mine[place].shape[1:] != theirs[place].shape[1:] or mine[place].dtype != theirs[place].dtype:
            raise DataError(
                f"{PLACE}: {name} inputs {place!r} are {words(mine[place])}, train inputs "
                f"{words(theirs[place])}; items of one shape and type would do"
            )


def parts_described(splits: Sequence[Tree]) -> tuple[InputPart, ...]:
    """Return what the parts are, whole numbers with their bounds over all splits."""
    held = [dict(_named(inputs)) for inputs in splits]
    return tuple(
        InputPart(
            name=place if isinstance(place, str) else "",
            shape=tuple(part.shape[1:]),
            dtype=_dtype(part),
            lowest=0 if part.is_floating_point() else min(int(each[place].long().min()) for each in held),
            highest=1 if part.is_floating_point() else max(int(each[place].long().max()) for each in held),
        )
        for place, part in held[0].items()
    )


def _named(inputs: Any) -> Iterator[tuple[Any, Any]]:
    yield from inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)


def _part(name: str, values: Any, items: int) -> Tensor:
    part = as_tensor(name, values)
    if part.ndim < 1 or part.is_complex():
        raise DataError(f"{PLACE}: {name} are {words(part)}; items along a first axis would do")
    if len(part) != items or part.numel() == 0:
        raise DataError(
            f"{PLACE}: {name} hold {len(part)} items and there are {items} labels; as many of both, and at "
            "least one, would do"
        )
    if part.ndim == 4 and part.dtype == torch.uint8:
        raise DataError(
            f"{PLACE}: {name} are {words(part)}: images among several inputs are taken as the "
            "model is to see them; floats would do"
        )
    if is_integer(part):
        return part.to(torch.int64)
    stored = part.to(torch.float32) if part.is_floating_point() else part
    require_finite(name, stored)
    return stored


def _dtype(part: Tensor) -> Literal["float32", "int64", "bool"]:
    if part.is_floating_point():
        return "float32"
    return "bool" if part.dtype == torch.bool else "int64"


LABELS_WANTED: Final[Mapping[str, str]] = {
    "cross-entropy": "integers of shape (n,)",
    "next-token": "token ids (n, length) of integers, each the token after the one in its place,",
    "bce": "zeros and ones of shape (n, labels)",
    "mse": "numbers of shape (n,) or (n, targets)",
}


def checked_labels(name: str, labels: Tensor, loss: str) -> Tensor:
    """Return the labels of a split as they are stored: integers as int64, numbers as float32.

    Raises:
        DataError: they are not what the loss wants.
    """
    if not _fit(labels, loss):
        wanted = LABELS_WANTED.get(loss, "numbers, items along the first axis,")
        under = "" if loss == "cross-entropy" else f" with loss '{loss}'"
        raise DataError(f"{PLACE}: {name} labels are {words(labels)}; {wanted} would do{under}")
    if loss == "bce" and not bool(((labels == 0) | (labels == 1)).all()):
        raise DataError(
            f"{PLACE}: {name} labels go from {float(labels.min()):g} to {float(labels.max()):g}; zeros and "
            "ones would do with loss 'bce'"
        )
    if loss == "next-token" and labels.numel() and not bool((labels != IGNORED).any()):
        raise DataError(f"{PLACE}: {name} labels are all {IGNORED}, of which none counts; token ids would do")
    stored = _stored(labels, loss)
    require_finite(f"{name} labels", stored)
    return stored


def classes_of(
    given: Mapping[str, Any], labels: Mapping[str, Tensor], loss: str, vocabulary: int | None
) -> int:
    """Return how many numbers an answer has: classes, tokens to tell apart, labels or targets.

    Raises:
        DataError: what is given under ``classes`` does not fit the labels, or there is nothing to tell apart.
    """
    train = labels["train"]
    if loss == "next-token":
        counted = {name: each[each != IGNORED] for name, each in labels.items()}
        return count_given(given, "classes", "labels", counted, least=vocabulary or 0)
    if loss == "cross-entropy" or (loss not in LABELS_WANTED and are_classes(train)):
        classes = count_given(given, "classes", "labels", labels)
        if classes < 2:
            raise DataError(f"{PLACE}: holds only one class; two classes or more would do")
        return classes
    found = train.shape[1] if train.ndim == 2 else 1
    said = given.get("classes")
    if loss in LABELS_WANTED and said not in (None, found):
        raise DataError(f"{PLACE}: classes is {said!r}, and train labels are {words(train)}; leave it out")
    if said is not None and (not isinstance(said, int) or isinstance(said, bool) or said < 1):
        raise DataError(f"{PLACE}: classes is {said!r}; a whole number above zero would do")
    return said or found


def _fit(labels: Tensor, loss: str) -> bool:
    match loss:
        case "cross-entropy":
            return labels.ndim == 1 and is_integer(labels)
        case "next-token":
            return labels.ndim == 2 and is_integer(labels)
        case "bce":
            return labels.ndim == 2 and not labels.is_complex()
        case "mse":
            return labels.ndim in (1, 2) and not labels.is_complex() and labels.dtype != torch.bool
        case _:
            return labels.ndim >= 1 and not labels.is_complex()


def _stored(labels: Tensor, loss: str) -> Tensor:
    if loss in ("bce", "mse") or labels.is_floating_point():
        return labels.to(torch.float32)
    return labels.to(torch.int64) if is_integer(labels) else labels


PLACE: Final = "task.data.factory"
MOST_IDS: Final = 2**22


def as_tensor(name: str, values: Any) -> Tensor:
    """Return an array, a list of numbers or a tensor as a tensor on the CPU.

    Raises:
        DataError: it holds no numbers, or rows of different lengths.
    """
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{PLACE}: {name} are {type(values).__name__}, not an array of numbers ({error})"
        ) from error


def is_integer(values: Tensor) -> bool:
    """Return whether values are whole numbers, truth values not among them."""
    return not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool


def words(values: Tensor) -> str:
    """Return type and shape in words.

    >>> words(torch.zeros(2, 3))
    'float32 of shape (2, 3)'
    """
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"


def require_finite(name: str, values: Tensor) -> None:
    """Refuse floats that are not finite as they are stored.

    Raises:
        DataError: naming them.
    """
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise DataError(f"{PLACE}: {name} hold nan or inf as float32; finite numbers would do")


def count_given(
    given: Mapping[str, Any], key: str, what: str, values: Mapping[str, Tensor], least: int = 0
) -> int:
    """Return the number of ids: as given under ``key``, else one more than the largest trained on.

    ``least`` is what it comes to at least where it is not given.

    Raises:
        DataError: it is no number, too large, or ids are beyond it.
    """
    count = given.get(key)
    if count is None:
        count = max(int(values["train"].max()) + 1, least)
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
