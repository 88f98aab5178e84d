"""``[tps]``: the triadic regulariser, our instantiation (no formula has been published)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tpsprune.recipe.bounds import STRICT, AtLeastZero, Count, Share, Text

__all__ = ["Tps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tps:
    """Which oscillators, how strongly coupled, and how the force is applied."""

    variant: Literal["auto", "none", "weights", "neurons", "moments", "fourier", "labels", "bn-l1"] = "auto"
    """``auto``: ``labels`` where nothing but a model's hidden units joins two tokens (an MLP on pairs), as
    the studies ``speed-up`` and ``reach`` found it the fastest there; none elsewhere, where they did not.
    ``bn-l1`` is no TPS but a baseline: λ · Σ |γ| over batch-norm scales, as published Early-Bird has it."""
    coupling: AtLeastZero = 1.0
    """λ: comparable with a weight decay when decoupled, a factor on the loss term otherwise; ``bn-l1`` has
    it weigh the plain sum of scales, published with 1e-4."""
    apply: Literal["auto", "decoupled", "loss"] = "auto"
    """``auto``: decoupled for ``weights`` and ``neurons``, in the loss for all others."""
    scaling: Literal["none", "sqrt-n"] = "none"
    """``sqrt-n`` multiplies λ by N^(−1/2), N the oscillators of a group: the published prediction."""
    warmup_share: Share = 0.05
    """Part of the budget over which λ rises linearly from zero."""
    refresh_steps: Count = 50
    """Steps between two fittings of the ``neurons`` variant's plane."""
    layers: tuple[Text, ...] = ()
    """Layers whose units ``moments`` couples, ``"path"`` or ``"gate * up"``; without any, the first."""
    degree: Literal[2, 3] = 2
    """How many inputs a triad of ``moments`` takes beside the label."""
    __pydantic_config__: ClassVar[Any] = STRICT
