"""Arrays as a user's callable gives them: read as tensors, told in words, ids held to their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tpsprune.errors import DataError

__all__ = ["PLACE", "as_tensor", "count_given", "is_integer", "require_finite", "words"]

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
