"""``[energy]``: which meter, over what scope, and which grid factor, if any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Predicate

from tpsprune.recipe.bounds import STRICT, AtLeastZero, Positive

__all__ = ["Energy"]


def _is_iso3(word: str) -> bool:
    return len(word) == 3 and word.isalpha() and word.isupper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """How energy is metered. CO₂ is reported only with a grid factor that you chose."""

    meter: Literal["codecarbon", "fake", "none"] = "codecarbon"
    tracking: Literal["machine", "process"] = "machine"
    """Scope of the modelled parts; counters (RAPL, NVML) always see the whole device."""
    country: Annotated[str, Predicate(_is_iso3)] | None = None
    grid_gco2e_per_kwh: AtLeastZero | None = None
    pue: Annotated[float, Ge(1.0)] = 1.0
    fake_cpu_watts: Positive = 10.0
    fake_ram_watts: AtLeastZero = 5.0
    fake_window_seconds: Positive = 1.0
    """The fake meter's clock: every window lasts this long."""
    __pydantic_config__: ClassVar[Any] = STRICT
