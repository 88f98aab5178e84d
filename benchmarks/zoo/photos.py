"""Crops of real photographs: those of the package, and of the folder ``$TPSPRUNE_PHOTOS``."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from tpsprune.data import photographs as ours


def photographs() -> list[Tensor]:
    """Return every colour photograph at hand as (3, h, w) uint8, sorted by file name."""
    named = os.environ.get("TPSPRUNE_PHOTOS")
    return ours.photographs([Path(named)] if named else [])
