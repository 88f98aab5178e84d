"""No meter: time is taken, energy is not, and nobody is told that it was nought."""

from __future__ import annotations

from time import perf_counter, process_time
from typing import final

from tpsprune.energy.meter import AbstractMeter, Count
from tpsprune.energy.work import finish_queued_work
from tpsprune.records import EnergyMethod

__all__ = ["NoMeter"]


@final
class NoMeter(AbstractMeter):
    """Takes seconds and processor seconds; joules are not known, which is not zero."""

    def __init__(self, *, attempt: int = 0) -> None:
        super().__init__(attempt)
        self._at = (0.0, 0.0)

    def method(self) -> EnergyMethod:
        """Say that nothing is metered."""
        return EnergyMethod(meter="none", scope="none", excluded=("all energy",))

    def _begin(self) -> None:
        finish_queued_work()
        self._at = (perf_counter(), process_time())

    def _end(self) -> Count:
        finish_queued_work()
        seconds, cpu_seconds = perf_counter() - self._at[0], process_time() - self._at[1]
        return Count(seconds=seconds, cpu_seconds=cpu_seconds)
