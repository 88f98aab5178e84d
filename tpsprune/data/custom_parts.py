"""Inputs of several arrays: a mapping goes into the model by keyword, a tuple by position.

Each array has the items along its first axis: floats are stored as float32, whole numbers as int64, truth
values as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tpsprune.data.custom_arrays import PLACE, as_tensor, is_integer, require_finite, words
from tpsprune.errors import DataError, did_you_mean
from tpsprune.numerics.trees import Tree
from tpsprune.records import InputPart

__all__ = ["is_parts", "parts_checked", "parts_described", "require_alike_parts"]


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
