"""Data from a callable of the user's own.

The callable returns a mapping: ``train`` and ``test``, optionally ``validation``, each a pair
(inputs, labels); optionally ``classes``, ``input_kind`` (``image``, ``tokens`` or ``vector``),
``vocabulary`` and ``cyclic``. Inputs are images (n, c, h, w) of uint8, or of floats as the model is to see
them; token ids (n, length); or vectors (n, features) of floats; or several arrays: a mapping is passed to the
model by keyword, a tuple by position; of these floats are stored as float32, whole numbers as int64, truth
values as they are. What labels must be follows from ``task.loss``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tpsprune.data.dataset import (
    Dataset,
    Preparation,
    Split,
    channel_statistics,
    require_every_class,
    split_off,
    stratified_order,
)
from tpsprune.errors import DataError, did_you_mean
from tpsprune.numerics.objective import IGNORED, are_classes
from tpsprune.numerics.trees import Tree
from tpsprune.recipe.task import CustomData
from tpsprune.recipe.user_code import call
from tpsprune.records import InputPart, TaskFacts

InputKind = Literal["image", "tokens", "vector"]
AnyKind = Literal["image", "tokens", "vector", "parts"]
PLACE: Final = "task.data.factory"
SPLITS: Final = ("train", "validation", "test")
KEYS: Final = (*SPLITS, "classes", "input_kind", "vocabulary", "cyclic")
AXES: Final[Mapping[InputKind, int]] = {"image": 4, "tokens": 2, "vector": 2}
INPUTS_WANTED: Final[Mapping[InputKind, str]] = {
    "image": "images (n, channels, height, width) of uint8 or floats",
    "tokens": "token ids (n, length) of integers",
    "vector": "vectors (n, features) of floats",
}
LABELS_WANTED: Final[Mapping[str, str]] = {
    "cross-entropy": "integers of shape (n,)",
    "next-token": "token ids (n, length) of integers, each the token after the one in its place,",
    "bce": "zeros and ones of shape (n, labels)",
    "mse": "numbers of shape (n,) or (n, targets)",
}
MOST_IDS: Final = 2**22


def custom_dataset(data: CustomData, loss: str = "cross-entropy") -> Dataset:
    """Call the user's factory and return its data, checked; validation is split off train if missing.

    uint8 images are standardised by the training split's mean and deviation; floats are kept as they are.

    Raises:
        DataError: the mapping, or what is in it, is not as this module describes.
        RecipeError: the factory does not import, or raised.
    """
    returned = _check_mapping(call(data.factory, data.data_args, PLACE))
    kind = _input_kind(returned)
    splits = {name: _split(name, returned[name], kind, loss) for name in SPLITS if name in returned}
    _require_alike(splits)
    facts = _facts(returned, kind, splits, loss)
    if "validation" not in splits:
        splits["train"], splits["validation"] = _draw_validation(splits["train"], kind, data)
    images = kind == "image" and splits["train"].inputs.dtype == torch.uint8
    prepare = Preparation(*channel_statistics(splits["train"].inputs)) if images else Preparation()
    return Dataset(name=data.factory, facts=facts, **splits, prepare=prepare)


def _fault(message: str) -> DataError:
    return DataError(f"{PLACE}: {message}")


def _check_mapping(returned: Any) -> Mapping[str, Any]:
    if not isinstance(returned, Mapping):
        wanted = "a mapping with train=(inputs, labels) and test=(inputs, labels)"
        raise _fault(f"returned {type(returned).__name__}; expected {wanted}")
    for key in returned:
        if key not in KEYS:
            raise _fault(f"returned '{key}'{did_you_mean(str(key), KEYS)}; known are {', '.join(KEYS)}")
    for key in ("train", "test"):
        if key not in returned:
            raise _fault(f"returned no '{key}'; expected {key}=(inputs, labels)")
    return returned


def _input_kind(returned: Mapping[str, Any]) -> AnyKind:
    kinds: tuple[InputKind, ...] = get_args(InputKind)
    named = returned.get("input_kind")
    inputs, _ = _pair("train", returned["train"])
    if _is_parts(inputs):
        for key in ("input_kind", "vocabulary", "cyclic"):
            if returned.get(key) is not None:
                raise _fault(f"{key} is for inputs of one tensor; these are several")
        return "parts"
    if named is not None:
        if named not in kinds:
            raise _fault(f"input_kind is {named!r}; {', '.join(kinds)} are known")
        return next(kind for kind in kinds if kind == named)
    inputs = _as_tensor("train inputs", inputs)
    if inputs.ndim == 4:
        return "image"
    if inputs.ndim == 2 and inputs.dtype != torch.uint8:
        return "vector" if inputs.is_floating_point() else "tokens"
    raise _fault(
        f"train inputs are {_describe(inputs)}, from which their kind cannot be inferred; "
        f"set input_kind to one of {', '.join(kinds)}"
    )


def _pair(name: str, pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise _fault(f"{name} is {type(pair).__name__}; expected a pair (inputs, labels)")
    return pair[0], pair[1]


def _split(name: str, pair: Any, kind: AnyKind, loss: str) -> Split:
    inputs, labels = _pair(name, pair)
    labels = _as_tensor(f"{name} labels", labels)
    if kind == "parts":
        labels = _check_labels(name, labels, loss)
        return Split(_check_parts(name, inputs, len(labels)), labels)
    inputs = _as_tensor(f"{name} inputs", inputs)
    is_float = inputs.is_floating_point()
    fits = _is_integer(inputs) if kind == "tokens" else is_float
    if inputs.ndim != AXES[kind] or not (fits or (kind == "image" and inputs.dtype == torch.uint8)):
        raise _fault(f"{name} inputs are {_describe(inputs)}; expected {INPUTS_WANTED[kind]}")
    labels = _check_labels(name, labels, loss)
    if len(labels) != len(inputs) or inputs.numel() == 0:
        raise _fault(
            f"{name} has {len(inputs)} inputs and {len(labels)} labels; expected equally many, and at "
            "least one"
        )
    stored = inputs.to(torch.int64 if kind == "tokens" else torch.float32 if is_float else torch.uint8)
    _require_finite(f"{name} inputs", stored)
    return Split(stored, labels)


def _require_alike(splits: Mapping[str, Split]) -> None:
    """Refuse a split whose labels or inputs differ in shape, type or name of a part from those trained on."""
    first = splits["train"]
    for name, split in splits.items():
        if not _are_alike(split.labels, first.labels):
            raise _fault(
                f"{name} labels are {_describe(split.labels)}, train labels {_describe(first.labels)}; "
                "expected labels of one shape and type"
            )
        here, there = _by_place(split.inputs), _by_place(first.inputs)
        for place in (*there, *here):
            if place not in here or place not in there:
                which, where = (name, "train") if place in here else ("train", name)
                hint = did_you_mean(str(place), [str(each) for each in (there if place in here else here)])
                raise _fault(f"{which} inputs have a part {place!r} that {where} inputs lack{hint}")
            if not _are_alike(here[place], there[place]):
                label = "" if isinstance(split.inputs, Tensor) else f" {place!r}"
                raise _fault(
                    f"{name} inputs{label} are {_describe(here[place])}, train inputs "
                    f"{_describe(there[place])}; expected items of one shape and type"
                )


def _facts(returned: Mapping[str, Any], kind: AnyKind, splits: Mapping[str, Split], loss: str) -> TaskFacts:
    vocabulary = None
    if kind == "tokens":
        vocabulary = _count(returned, "vocabulary", "inputs", {n: s.inputs for n, s in splits.items()})
    classes = _classes(returned, {n: s.labels for n, s in splits.items()}, loss, vocabulary)
    if kind == "parts":
        parts = _describe_parts([split.inputs for split in splits.values()])
        return TaskFacts(input_kind="parts", input_shape=(), classes=classes, parts=parts, loss=loss)
    return TaskFacts(
        input_kind=kind,
        input_shape=tuple(splits["train"].inputs.shape[1:]),
        classes=classes,
        vocabulary=vocabulary,
        cyclic=bool(returned.get("cyclic", False)),
        loss=loss,
    )


def _draw_validation(train: Split, kind: AnyKind, data: CustomData) -> tuple[Split, Split]:
    place = "task.data.validation_share"
    generator = torch.Generator().manual_seed(data.split_seed)
    if kind == "tokens" or not are_classes(train.labels):
        # Token tasks often have as many classes as tokens, too few items of each to draw by class.
        order = torch.randperm(len(train), generator=generator)
        return split_off(train, order, data.validation_share, place)
    rest, drawn = split_off(train, stratified_order(train.labels, generator), data.validation_share, place)
    for role, part in (("validation", drawn), ("training", rest)):
        require_every_class(part, role, train, place)
    return rest, drawn


def _is_parts(inputs: Any) -> bool:
    """Return whether inputs are several arrays: a mapping, or a tuple of nothing but arrays."""
    if isinstance(inputs, tuple):
        return bool(inputs) and all(isinstance(each, Tensor | np.ndarray) for each in inputs)
    return isinstance(inputs, Mapping)


def _by_place(inputs: Any) -> dict[Any, Any]:
    """Return arrays by their name or place; one array alone is at place 0."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return dict(enumerate(inputs if isinstance(inputs, tuple) else (inputs,)))


def _check_parts(name: str, inputs: Any, items: int) -> Tree:
    """Return the parts of a split as they are stored, a dictionary or a tuple."""
    if not _is_parts(inputs) or not inputs:
        raise _fault(
            f"{name} inputs are {type(inputs).__name__}, train inputs several arrays; expected a mapping or "
            "tuple of arrays for both"
        )
    stored = {
        place: _check_part(f"{name} inputs {place!r}", each, items)
        for place, each in _by_place(inputs).items()
    }
    if isinstance(inputs, tuple):
        return tuple(stored.values())
    for place in stored:
        if not (isinstance(place, str) and place.isidentifier()):
            wanted = "the name of an argument of the model's forward"
            raise _fault(f"{name} inputs have a part {place!r}; expected {wanted}")
    return stored


def _check_part(name: str, values: Any, items: int) -> Tensor:
    part = _as_tensor(name, values)
    if part.ndim < 1 or part.is_complex():
        raise _fault(f"{name} are {_describe(part)}; expected items along a first axis")
    if len(part) != items or part.numel() == 0:
        raise _fault(
            f"{name} hold {len(part)} items and there are {items} labels; expected equally many, and "
            "at least one"
        )
    if part.ndim == 4 and part.dtype == torch.uint8:
        raise _fault(
            f"{name} are {_describe(part)}: images among several inputs are taken as the model is to see "
            "them; use floats"
        )
    stored = part.to(torch.float32) if part.is_floating_point() else part
    _require_finite(name, stored)
    return part.to(torch.int64) if _is_integer(part) else stored


def _describe_parts(splits: Sequence[Tree]) -> tuple[InputPart, ...]:
    """Return what the parts are, whole numbers with their bounds over all splits."""
    held = [_by_place(inputs) for inputs in splits]
    parts = []
    for place, part in held[0].items():
        is_float = part.is_floating_point()
        ends = [(0, 1)] if is_float else [each[place].long().aminmax() for each in held]
        parts.append(
            InputPart(
                name=place if isinstance(place, str) else "",
                shape=tuple(part.shape[1:]),
                dtype="float32" if is_float else "bool" if part.dtype == torch.bool else "int64",
                lowest=min(int(lowest) for lowest, _ in ends),
                highest=max(int(highest) for _, highest in ends),
            )
        )
    return tuple(parts)


def _check_labels(name: str, labels: Tensor, loss: str) -> Tensor:
    """Return the labels of a split as they are stored: integers as int64, numbers as float32."""
    if not _fit_loss(labels, loss):
        wanted = LABELS_WANTED.get(loss, "numbers, items along the first axis,")
        under = "" if loss == "cross-entropy" else f" with loss '{loss}'"
        raise _fault(f"{name} labels are {_describe(labels)}; expected {wanted}{under}")
    if loss == "bce" and not bool(((labels == 0) | (labels == 1)).all()):
        raise _fault(
            f"{name} labels go from {float(labels.min()):g} to {float(labels.max()):g}; expected zeros and "
            "ones with loss 'bce'"
        )
    if loss == "next-token" and labels.numel() and not bool((labels != IGNORED).any()):
        raise _fault(f"{name} labels are all {IGNORED}, of which none counts; expected token ids")
    if loss in ("bce", "mse") or labels.is_floating_point():
        labels = labels.to(torch.float32)
    _require_finite(f"{name} labels", labels)
    return labels.to(torch.int64) if _is_integer(labels) else labels


def _fit_loss(labels: Tensor, loss: str) -> bool:
    match loss:
        case "cross-entropy":
            return labels.ndim == 1 and _is_integer(labels)
        case "next-token":
            return labels.ndim == 2 and _is_integer(labels)
        case "bce":
            return labels.ndim == 2 and not labels.is_complex()
        case "mse":
            return labels.ndim in (1, 2) and not labels.is_complex() and labels.dtype != torch.bool
        case _:
            return labels.ndim >= 1 and not labels.is_complex()


def _classes(
    returned: Mapping[str, Any], labels: Mapping[str, Tensor], loss: str, vocabulary: int | None
) -> int:
    """Return how many numbers a model outputs: classes, tokens to distinguish, labels or targets."""
    train = labels["train"]
    if loss == "next-token":
        counted = {name: each[each != IGNORED] for name, each in labels.items()}
        return _count(returned, "classes", "labels", counted, least=vocabulary or 0)
    if loss == "cross-entropy" or (loss not in LABELS_WANTED and are_classes(train)):
        classes = _count(returned, "classes", "labels", labels)
        if classes < 2:
            raise _fault("holds only one class; expected two classes or more")
        return classes
    columns = train.shape[1] if train.ndim == 2 else 1
    named = returned.get("classes")
    if loss in LABELS_WANTED and named not in (None, columns):
        raise _fault(f"classes is {named!r}, and train labels are {_describe(train)}; leave it out")
    return columns if named is None else _whole_number("classes", named)


def _count(
    returned: Mapping[str, Any], key: str, what: str, values: Mapping[str, Tensor], least: int = 0
) -> int:
    """Return the number of ids: that under ``key``, else one more than the largest trained on.

    ``least`` is what it comes to at least where it is not returned.
    """
    count = returned.get(key)
    if count is None:
        count = max(int(values["train"].max()) + 1, least)
    if _whole_number(key, count) > MOST_IDS:
        raise _fault(f"{key} is {count}; expected at most {MOST_IDS}: are the {what} ids?")
    for name, ids in values.items():
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= count:
            raise _fault(
                f"{name} {what} go from {lowest} to {highest}; expected 0 to {count - 1} ({key} = {count})"
            )
    return int(count)


def _whole_number(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _fault(f"{key} is {value!r}; expected a whole number above zero")
    return value


def _as_tensor(name: str, values: Any) -> Tensor:
    """Return an array, a list of numbers or a tensor as a tensor on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise _fault(f"{name} are {type(values).__name__}, not an array of numbers ({error})") from error


def _is_integer(values: Tensor) -> bool:
    """Return whether values are whole numbers, truth values not among them."""
    return not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape[1:] == other.shape[1:] and one.dtype == other.dtype


def _describe(values: Tensor) -> str:
    """Return type and shape as text.

    >>> _describe(torch.zeros(2, 3))
    'float32 of shape (2, 3)'
    """
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"


def _require_finite(name: str, values: Tensor) -> None:
    """Refuse floats that are not finite as they are stored."""
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise _fault(f"{name} hold nan or inf as float32; expected finite numbers")
