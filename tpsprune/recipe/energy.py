"""``[energy]``: which meter, and over what scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from tpsprune.recipe.bounds import STRICT, AtLeastZero, Positive

__all__ = ["Energy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """How energy is metered; joules only, no CO₂."""

    meter: Literal["codecarbon", "fake", "none"] = "codecarbon"
    tracking: Literal["machine", "process"] = "machine"
    """Scope of the modelled parts; counters (RAPL, NVML) always see the whole device."""
    pue: Annotated[float, Ge(1.0)] = 1.0
    fake_cpu_watts: Positive = 10.0
    fake_ram_watts: AtLeastZero = 5.0
    fake_window_seconds: Positive = 1.0
    """The fake meter's clock: every window lasts this long."""
    __pydantic_config__: ClassVar[Any] = STRICT
