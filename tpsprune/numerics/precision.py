"""The widest floating-point numbers that a device has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["full_precision", "widened"]


def widened(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, or in float32 where its device has nothing wider (Apple's MPS)."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products on a GPU in float32, not in TF32, until the block is left."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
