"""``[watch]``: which signals are read, how often, and on how many probe items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from tpsprune.recipe.bounds import STRICT, Count, OpenShare

__all__ = ["Signal", "Watch"]

Signal = Literal[
    "d_eff",
    "h1",
    "spectral_edge",
    "norm",
    "mask_distance",
    "condensation",
    "collapse",
    "logit_rank",
    "commutator_defect",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is read while training. A reading is also the moment of validation, journal and checkpoint."""

    signals: tuple[Signal, ...] = ("d_eff", "h1", "spectral_edge", "norm")
    every_epochs: Count | None = None
    """Epochs between two readings; give this or ``every_steps``, without either every epoch."""
    every_steps: Count | None = None
    probe_items: Annotated[int, Interval(ge=8, le=2**20)] = 256
    """Items of the fixed probe batch, drawn once from the training split."""
    h1_points: Annotated[int, Interval(ge=4, le=256)] = 128
    h1_every: Count = 1
    """Readings between two H1 readings: topology is the dearest signal."""
    edge_window: Annotated[int, Interval(ge=4, le=64)] = 10
    """Updates in the spectral edge's rolling window."""
    rank_share: OpenShare = 0.01
    """Singular values of the logits above this share of the largest count for ``logit_rank``."""
    __pydantic_config__: ClassVar[Any] = STRICT
