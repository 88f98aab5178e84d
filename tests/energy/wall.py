"""Wall meters and windows made up for tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tpsprune.energy.wall_joules import utc
from tpsprune.energy.wall_meter import WallMeter
from tpsprune.records import EnergyClass, Window

NOON = 1_738_324_800
"""2025-01-31T12:00:00Z."""


def meter_of(seconds: npt.ArrayLike, watts: npt.ArrayLike) -> WallMeter:
    return WallMeter(
        name="plug.csv", sha256="", seconds=np.asarray(seconds, float), watts=np.asarray(watts, float)
    )


def window(start: float, seconds: float, watts: float = 10.0) -> Window:
    """Return a window that starts so many seconds after noon, with this much power as software has it."""
    return Window(
        phase="train",
        index=0,
        attempt=0,
        seconds=seconds,
        cpu_seconds=seconds,
        joules={"cpu": watts * seconds},
        classes={"cpu": EnergyClass.MODELLED},
        started=utc(NOON + start),
    )
