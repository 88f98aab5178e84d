"""Labels of a user's own data: what they must be follows from the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from tpsprune.data.custom_arrays import PLACE, count_given, is_integer, require_finite, words
from tpsprune.errors import DataError
from tpsprune.numerics.objective import IGNORED, are_classes

__all__ = ["checked_labels", "classes_of"]

WANTED: Final[Mapping[str, str]] = {
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
        wanted = WANTED.get(loss, "numbers, items along the first axis,")
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
    if loss == "cross-entropy" or (loss not in WANTED and are_classes(train)):
        classes = count_given(given, "classes", "labels", labels)
        if classes < 2:
            raise DataError(f"{PLACE}: holds only one class; two classes or more would do")
        return classes
    found = train.shape[1] if train.ndim == 2 else 1
    said = given.get("classes")
    if loss in WANTED and said not in (None, found):
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
