"""No meter: time is taken, energy is not, and nobody is told that it was nought."""

from __future__ import annotations

import os
from time import perf_counter
from typing import final

from tpsprune.energy.machine import family_cpu_seconds, machine_times
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
        self._machine_at = machine_times()

    def method(self) -> EnergyMethod:
        """Say that nothing is metered."""
        return EnergyMethod(
            meter="none",
            scope="none",
            details={"logical_cpus": str(os.cpu_count())},
            excluded=("all energy",),
        )

    def _begin(self) -> None:
        finish_queued_work()
        self._at = (perf_counter(), family_cpu_seconds())
        self._machine_at = machine_times()

    def _end(self) -> Count:
        finish_queued_work()
        machine = machine_times().since(self._machine_at)
        seconds, cpu_seconds = perf_counter() - self._at[0], family_cpu_seconds() - self._at[1]
        return Count(
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            machine_cpu_seconds=machine.busy_seconds,
            steal_seconds=machine.steal_seconds,
        )
