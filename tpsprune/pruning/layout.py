"""Where units lie along an axis, as indices; see ``groups`` for the four numbers that say it."""

from __future__ import annotations

import torch
from torch import Tensor

from tpsprune.pruning.groups import Consumer, Slice

__all__ = ["element_index"]


def element_index(layout: Slice | Consumer, width: int, device: torch.device | None = None) -> Tensor:
    """Return the elements of each of ``width`` units along the axis: (units, repeat · block)."""
    units = torch.arange(width, device=device)[:, None, None] * layout.block
    repeats = torch.arange(layout.repeat, device=device)[:, None] * layout.stride
    return (layout.offset + units + repeats + torch.arange(layout.block, device=device)).flatten(1)
