"""How large a model is, and what a cut did to it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GroupChange", "Latency", "LeftAlone", "Size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Deterministic figures of a model: parameters, multiply-accumulates per item, bytes on disk."""

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of one forward pass over ``batch`` items: median and quartiles over ``repeats`` passes."""

    batch: int
    median_seconds: float
    lower_quartile_seconds: float
    upper_quartile_seconds: float
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChange:
    """The width of one group of coupled units before and after a cut, and the rank that chose it.

    ``effective_rank`` is ``None`` where widths were not chosen by rank; ``residual_share`` is the part
    of the consumers' input variance that the kept units cannot reproduce on the probe data; ``kind`` is
    what a unit is: ``units``, ``heads``, ``head-width`` or ``blocks``.
    """

    group: str
    width_before: int
    width_after: int
    effective_rank: float | None = None
    residual_share: float | None = None
    kind: str = "units"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone:
    """A layer or group that is not cut, and why."""

    name: str
    reason: str
