"""The numbers of a model that belong to each unit of a group.

Shape letters: u units of a group, f elements of a unit along an axis, d all its elements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Elements", "unit_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Elements:
    """Which elements along one axis of a tensor of the model belong to each unit of a group."""

    tensor: str
    axis: int
    index_uf: Tensor


def unit_rows(model: nn.Module, parts: Iterable[Elements]) -> Tensor:
    """Return ``rows_ud``: all elements of each unit, tensor after tensor, in single precision."""
    held = model.state_dict()
    rows = []
    for part in parts:
        tensor = held[part.tensor].movedim(part.axis, 0)
        rows.append(tensor[part.index_uf.to(tensor.device)].flatten(1).to(torch.float32))
    return torch.cat(rows, 1)
