"""Where units lie along an axis, as indices; see ``groups`` for the four numbers that say it.

Shape letters: n units, f features of a unit, p positions of a feature, q everything else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpsprune.pruning.groups import Consumer, Slice

__all__ = ["element_index", "features_first"]


def element_index(layout: Slice | Consumer, width: int, device: torch.device | None = None) -> Tensor:
    """Return the elements of each of ``width`` units along the axis: (units, repeat · block)."""
    units = torch.arange(width, device=device)[:, None, None] * layout.block
    repeats = torch.arange(layout.repeat, device=device)[:, None] * layout.stride
    return (layout.offset + units + repeats + torch.arange(layout.block, device=device)).flatten(1)


def features_first(tensor: Tensor, axis: int, consumer: Consumer, width: int) -> Tensor:
    """Return a copy of what belongs to the units along ``axis``: (units · features, positions, rest …)."""
    index = element_index(consumer, width, tensor.device).flatten()
    taken = tensor.movedim(axis, 0)[index]
    return taken.reshape(width * consumer.features, consumer.positions, *taken.shape[1:])
