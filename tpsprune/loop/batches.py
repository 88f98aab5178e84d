"""What a user hands over as batches: a tensor, a loader's lists with labels, batches of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from operator import index
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import TpspruneError, first_line
from tpsprune.numerics.forward import call_model, evaluation_mode, fixed_seed, flat_tensors
from tpsprune.numerics.trees import WholeBatch, map_leaves, take_items

BATCH_ITEMS: Final = 256
TRIED_ITEMS: Final = 2


def batches_of(
    data: Any, device: torch.device, name: str, error: type[TpspruneError], model: nn.Module | None = None
) -> tuple[list[Any], list[Tensor] | None]:
    """Return batches on the device, and the labels of those that a loader yielded with them.

    A single tensor is all the items at once and is split. A *list*, as a ``DataLoader`` yields it, is inputs
    and, last, labels, or inputs alone: what ``model`` can be called with decides, see ``ends_with_labels``.
    Without a model the last is labels. ``name`` and ``error`` are the subject and kind of a fault.

    Raises:
        TpspruneError: of kind ``error``: they are no batches, or the last of a list may be either.
    """
    if isinstance(data, Tensor):
        data = torch.tensor_split(data, max(1, ceil(len(data) / BATCH_ITEMS)))
    elif isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise error(f"{name} is {type(data).__name__}: a tensor, or a list or loader of batches is needed")
    batches, labels = [], []
    labelled: bool | None = None
    for batch in data:
        if isinstance(batch, list):
            parts = [move(part, device) for part in batch]
            if labelled is None:
                labelled = model is None or ends_with_labels(model, parts, name, error)
            if labelled:
                labels.append(parts.pop())
            batches.append(parts[0] if len(parts) == 1 else tuple(parts))
        else:
            batches.append(move(batch, device))
    return batches, labels if labels and len(labels) == len(batches) else None


def ends_with_labels(model: nn.Module, parts: Sequence[Any], name: str, error: type[TpspruneError]) -> bool:
    """Return whether the last part of a batch is labels: whether the model cannot be called with it.

    Two items are tried, with the last part and without it. Where the model takes both and its output is the
    same, the last part is labels too.

    Raises:
        TpspruneError: of kind ``error``: the model takes both, and its outputs differ.
    """
    with_last = _outputs_of(model, parts)
    without = _outputs_of(model, parts[:-1]) if len(parts) > 1 else None
    if with_last is None or without is None:
        return with_last is None
    same = len(with_last) == len(without) and all(map(torch.equal, with_last, without))
    if not same:
        raise error(
            f"a batch of {name} is a list of {len(parts)}, and the model takes all of them as well as all but"
            " the last: if the last is an input, yield tuples; if it is labels, yield the inputs alone"
        )
    return True


def _outputs_of(model: nn.Module, parts: Sequence[Any]) -> list[Tensor] | None:
    """Return the model's outputs on two items, none where it cannot be called so."""
    try:
        with torch.no_grad(), fixed_seed(), evaluation_mode(model):
            return list(flat_tensors(call_model(model, take_items(tuple(parts), torch.arange(TRIED_ITEMS)))))
    # Whatever the model's own code raises says that these are not its inputs.
    except Exception:  # noqa: BLE001
        return None


def whole_batches(
    data: Any, items: Callable[[Any], int], device: torch.device, name: str, error: type[TpspruneError]
) -> list[WholeBatch]:
    """Return batches on the device that are never split; ``items`` counts what each holds.

    Tensors in dictionaries, tuples and lists are moved, and whatever else has a method ``to``. ``name`` and
    ``error`` are the subject and kind of a fault.
    """
    if isinstance(data, Tensor | Mapping) or not isinstance(data, Iterable):
        raise error(f"{name} is {type(data).__name__}: with items=, a list or loader of batches is needed")
    batches = []
    for rank, batch in enumerate(data):
        try:
            count = index(items(batch))
        except Exception as fault:  # the caller's own code runs here, and may raise anything
            raise error(
                f"items= fails on batch {rank} of {name}: {first_line(fault)}; expected a function of "
                "a batch that returns how many items it holds, a whole number"
            ) from fault
        if count < 1:
            raise error(f"items= counts {count} items in batch {rank} of {name}: at least 1 is needed")
        batches.append(WholeBatch(map_leaves(batch, lambda leaf: _move_leaf(leaf, device)), count))
    return batches


def _move_leaf(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, Tensor) or not callable(getattr(leaf, "to", None)):
        return move(leaf, device)
    moved = leaf.to(device)
    return leaf if moved is None else moved


def move(batch: Any, device: torch.device) -> Any:
    """Return a batch with each of its tensors on the device."""
    if isinstance(batch, Tensor):
        # A tensor of inference mode cannot be what a gradient is taken through.
        return batch.clone().to(device) if batch.is_inference() else batch.to(device)
    if isinstance(batch, Mapping):
        return {name: move(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(move(part, device) for part in batch)
    return batch
