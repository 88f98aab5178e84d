"""Batches as a caller of the Python API hands them over: tensors, lists, loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any, Final

import torch
from torch import Tensor

from tpsprune.errors import TpspruneError

__all__ = ["BATCH_ITEMS", "batches_of", "moved"]

BATCH_ITEMS: Final = 256


def batches_of(
    given: Any, device: torch.device, name: str, error: type[TpspruneError]
) -> tuple[list[Any], list[Tensor] | None]:
    """Return batches on the device, and the labels of those that a loader yielded with them.

    A single tensor is all the items at once and is split; a *list*, as a ``DataLoader`` yields it, is inputs
    and, last, labels. ``name`` and ``error`` are what a fault is told with.
    """
    if isinstance(given, Tensor):
        given = torch.tensor_split(given, max(1, ceil(len(given) / BATCH_ITEMS)))
    elif isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise error(f"{name} is {type(given).__name__}: a tensor, or a list or loader of batches is needed")
    batches, labels = [], []
    for batch in given:
        if isinstance(batch, list):
            if len(batch) < 2:
                raise error(
                    "a batch that is a list is inputs and, last, labels: this one has no labels; "
                    "(part for (part,) in loader) would do"
                )
            *inputs, last = batch
            labels.append(moved(last, device))
            batch = inputs[0] if len(inputs) == 1 else tuple(inputs)  # noqa: PLW2901 -- labels are taken off
        batches.append(moved(batch, device))
    return batches, labels if labels and len(labels) == len(batches) else None


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with each of its tensors on the device."""
    if isinstance(batch, Tensor):
        # A tensor of inference mode cannot be what a gradient is taken through.
        return batch.clone().to(device) if batch.is_inference() else batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(moved(part, device) for part in batch)
    return batch
