"""``[energy]``: which meter, and over what scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from tpsprune.recipe.bounds import STRICT, AtLeastZero, Natural, Positive, Share, Text

__all__ = ["Energy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """How energy is metered; joules only, no CO₂."""

    meter: Literal["codecarbon", "fake", "replay", "none"] = "codecarbon"
    tracking: Literal["machine", "process"] = "machine"
    """Scope of the modelled parts; counters (RAPL, NVML) always see the whole device."""
    pue: Annotated[float, Ge(1.0)] = 1.0
    fake_cpu_watts: Positive = 10.0
    fake_ram_watts: AtLeastZero = 5.0
    fake_window_seconds: Positive = 1.0
    """The fake meter's clock: every window lasts this long."""
    fake_gpu_watts: AtLeastZero = 0.0
    """0 is no GPU at all."""
    fake_noise_share: Share = 0.0
    """Relative deviation of a window's joules, drawn from ``fake_seed``."""
    fake_seed: Natural = 0
    fake_fault: Literal["", "zero", "none", "jump", "wrap"] = ""
    """What befalls one window, as it befalls real meters; the window is then invalid, with words."""
    fake_fault_window: Natural = 0
    """Which window that is: the number closed before it."""
    replay: Text | None = None
    """The energy.jsonl of a run, for meter 'replay': its windows once more instead of new ones."""
    __pydantic_config__: ClassVar[Any] = STRICT
