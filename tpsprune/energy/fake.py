"""A meter for tests and trials: constant watts times a clock that ticks once a window."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, final

from tpsprune.energy.meter import AbstractMeter, Count
from tpsprune.records import EnergyClass, EnergyMethod

__all__ = ["FakeMeter"]

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


@final
class FakeMeter(AbstractMeter):
    """Every window lasts ``window_seconds`` and takes ``watts × window_seconds × pue``, whatever happens.

    The same calls give the same windows, to the last byte, so a whole run can be compared with another.
    It sees nothing of the machine; its class is ``simulated`` throughout.
    """

    def __init__(
        self,
        *,
        cpu_watts: float = 10.0,
        ram_watts: float = 5.0,
        window_seconds: float = 1.0,
        pue: float = 1.0,
        attempt: int = 0,
    ) -> None:
        super().__init__(attempt)
        self._watts = {"cpu": cpu_watts, "ram": ram_watts}
        self._window_seconds = window_seconds
        self._pue = pue
        self._closed = 0

    def method(self) -> EnergyMethod:
        """Say that everything is simulated, and with what watts."""
        details = {f"{component}_watts": f"{watts:g}" for component, watts in self._watts.items()}
        return EnergyMethod(
            meter="fake",
            scope="simulated",
            classes=dict.fromkeys(self._watts, EnergyClass.SIMULATED),
            details={**details, "window_seconds": f"{self._window_seconds:g}", "pue": f"{self._pue:g}"},
            excluded=("everything real",),
        )

    def _begin(self) -> None:
        return

    def _end(self) -> Count:
        self._closed += 1
        scale = self._window_seconds * self._pue
        return Count(
            seconds=self._window_seconds,
            cpu_seconds=self._window_seconds,
            joules={component: watts * scale for component, watts in self._watts.items()},
            classes=dict.fromkeys(self._watts, EnergyClass.SIMULATED),
        )

    def _now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self._closed * self._window_seconds)
