"""What a watch looks at: its probe with labels, and where in the model signals look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune import pruning
from tpsprune.data.batches import batches_of
from tpsprune.errors import DataError
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.trees import item_count, tensors_of

__all__ = ["probe_of", "sites_of"]


def probe_of(
    given: Any, labels: Tensor | Iterable[Tensor] | None, device: torch.device
) -> tuple[list[Any], list[Tensor]]:
    """Return the batches of a probe and their labels, a tensor a batch or none at all, on the device.

    One tensor of labels belongs to a probe that is one tensor, and is split as that is. Labels that a loader
    brings along are taken as they are: most signals look at none.

    Raises:
        DataError: there are no batches, or one without items; or the labels given are not one an item.
    """
    batches, found = batches_of(given, device, "Watch: probe", DataError)
    if not batches:
        raise DataError("Watch: probe is empty; some 256 training items would do")
    for number, batch in enumerate(batches, 1):
        # A batch without any tensor is the model's own affair.
        if any(tensor.ndim for tensor in tensors_of(batch)) and not item_count(batch):
            raise DataError(
                f"Watch: batch {number} of {len(batches)} of the probe has no items; some 256 training items"
                " in all would do"
            )
    if labels is None:
        return batches, found or []
    if isinstance(labels, Tensor):
        labels = _split(labels, given)
    parts = list(labels)
    _refuse_misfit(parts, batches)
    return batches, [part.to(device) for part in parts]


def sites_of(
    model: nn.Module, batch: Any, signals: Sequence[str], leave_alone: Sequence[str]
) -> pruning.GroupTensors:
    """Return where the signals look: nowhere where there are none, which spares the survey.

    Raises:
        DataError: the model does not take the batch.
    """
    if not signals:
        return pruning.GroupTensors({}, {}, {})
    try:
        with torch.no_grad(), evaluation_mode(model):
            call_model(model, batch)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"Watch: the model does not take the probe: {error}") from error
    return pruning.tensors_by_group(model, pruning.find_groups(model, batch, leave_alone))


def _split(labels: Tensor, probe: Any) -> list[Any]:
    """Return one tensor of labels in the batches into which the one tensor of the probe was split."""
    if not isinstance(probe, Tensor):
        raise DataError(
            "Watch: labels are one tensor, and the probe is batches; a list of one tensor a batch would do"
        )
    if not labels.ndim or len(labels) != len(probe):
        raise DataError(
            f"Watch: labels have shape {tuple(labels.shape)}, and the probe has {len(probe)} items;"
            " one label an item would do"
        )
    return batches_of(labels, labels.device, "Watch: labels", DataError)[0]


def _refuse_misfit(labels: Sequence[Any], batches: Sequence[Any]) -> None:
    if len(labels) != len(batches):
        raise DataError(
            f"Watch: labels are {len(labels)} tensors, and the probe is {len(batches)} batches; one tensor a"
            " batch would do, or one for all where the probe is one tensor"
        )
    misfits = []
    for number, (label_i, batch) in enumerate(zip(labels, batches, strict=True), 1):
        items = item_count(batch)
        if not isinstance(label_i, Tensor):
            misfits.append(f"those of batch {number} are {type(label_i).__name__}")
        elif not label_i.ndim or len(label_i) != items:
            misfits.append(f"those of batch {number} have shape {tuple(label_i.shape)} for {items} items")
    if misfits:
        raise DataError(f"Watch: labels: {'; '.join(misfits)}; a tensor of one label an item would do")
