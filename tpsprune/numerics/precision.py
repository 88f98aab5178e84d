"""The widest floating-point numbers that a device has."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["widened"]


def widened(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, or in float32 where its device has nothing wider (Apple's MPS)."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
