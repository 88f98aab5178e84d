"""``[prune.target]``: what the ticket may cost, in one of five ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import Discriminator, Tag

from tpsprune.errors import PruneError
from tpsprune.recipe.bounds import STRICT, Count, OpenShare

__all__ = ["TARGETS", "Latency", "Macs", "Params", "Target", "Tolerance", "Widths"]


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates of the ticket as a share of the dense model's."""

    macs: OpenShare
    __pydantic_config__: ClassVar[Any] = STRICT

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        _check_share("macs", self.macs)

    def __str__(self) -> str:
        return f"macs={self.macs:g}"


@dataclass(frozen=True, slots=True)
class Params:
    """Parameters of the ticket as a share of the dense model's."""

    params: OpenShare
    __pydantic_config__: ClassVar[Any] = STRICT

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        _check_share("params", self.params)

    def __str__(self) -> str:
        return f"params={self.params:g}"


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one forward pass of the ticket as a share of the dense model's, measured here."""

    latency: OpenShare
    batch_items: Count = 1
    __pydantic_config__: ClassVar[Any] = STRICT

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        _check_share("latency", self.latency)

    def __str__(self) -> str:
        return f"latency={self.latency:g}"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Variance of what the dense model feeds a group's consumers that may be lost, as a share."""

    tolerance: OpenShare
    __pydantic_config__: ClassVar[Any] = STRICT

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        _check_share("tolerance", self.tolerance)

    def __str__(self) -> str:
        return f"tolerance={self.tolerance:g}"


@dataclass(frozen=True, slots=True)
class Widths:
    """Units that stay, by group; a group that is not named keeps all of its own."""

    widths: Mapping[str, Count]
    __pydantic_config__: ClassVar[Any] = STRICT

    def __post_init__(self) -> None:
        """Refuse widths of no group."""
        if not self.widths:
            raise PruneError("target widths = {}: at least one group is needed")

    def __str__(self) -> str:
        return f"widths of {len(self.widths)} group{'' if len(self.widths) == 1 else 's'}"


TARGETS = ("macs", "params", "latency", "tolerance", "widths")


def _kind(value: Any) -> str | None:
    if isinstance(value, Mapping):
        named = [key for key in value if key in TARGETS]
        return named[0] if len(named) == 1 else None
    return next((kind for kind in TARGETS if hasattr(value, kind)), None)


def _check_share(name: str, share: float) -> None:
    if not (isinstance(share, int | float) and 0 < share < 1):
        raise PruneError(f"target {name} = {share!r}: a share above 0 and below 1 is needed")


Target: TypeAlias = Annotated[
    Annotated[Macs, Tag("macs")]
    | Annotated[Params, Tag("params")]
    | Annotated[Latency, Tag("latency")]
    | Annotated[Tolerance, Tag("tolerance")]
    | Annotated[Widths, Tag("widths")],
    Discriminator(
        _kind,
        custom_error_type="target_kind",
        custom_error_message="name exactly one of macs, params, latency, tolerance, widths",
    ),
]
