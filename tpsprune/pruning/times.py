"""Where the seconds of an extraction went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Times", "timed"]


@dataclass(slots=True)
class Times:
    """Seconds of each part: finding groups, the look at the dense model, widths, the walk, the proof."""

    survey: float = 0.0
    look: float = 0.0
    widths: float = 0.0
    walk: float = 0.0
    verify: float = 0.0
    recalibrate: float = 0.0


@contextmanager
def timed(times: Times, part: str) -> Iterator[None]:
    """Add the seconds until the block is left, work on an accelerator included, to one part."""
    began = time.perf_counter()
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        setattr(times, part, getattr(times, part) + time.perf_counter() - began)
