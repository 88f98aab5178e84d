"""Energy by codecarbon, in the one way of using it that holds: offline, task by task, checked.

Why task mode: ``start``/``stop`` measures from a timer thread, and under a busy main thread half-second
spans came out between 0.68 and 1.45 of the truth; tasks under the same load within 1.5 %.

Source: Courty et al., CodeCarbon 3.3 (https://github.com/mlco2/codecarbon), read as installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import isfinite
from time import perf_counter
from typing import Any, Final, final

from tpsprune.energy.counters import NvmlBoards
from tpsprune.energy.hardware import (
    classes_of,
    counted_packages,
    counter_lost,
    counter_range_joules,
    details_of,
    nvml_handles,
    ram_watts_of,
)
from tpsprune.energy.machine import family_cpu_seconds, machine_times
from tpsprune.energy.meter import AbstractMeter, Count
from tpsprune.energy.surroundings import refuse_outside_settings
from tpsprune.energy.windows import Bracket, fault_of
from tpsprune.energy.work import finish_queued_work
from tpsprune.errors import MeterError
from tpsprune.records import EnergyMethod

__all__ = ["CodecarbonMeter"]

_JOULES_PER_KWH: Final = 3.6e6
_EXCLUDED: Final = (
    "disk",
    "network",
    "power supply losses",
    "cooling",
    "embodied",
    "start-up",
    "windows open at a kill",
)
_TRIES_TO_STOP: Final = 5
_STOPS_WITHIN_SECONDS: Final = 5.0
_REMEDY: Final = "energy.meter = 'none' runs without a meter"


@final
class CodecarbonMeter(AbstractMeter):
    """Joules of CPU, GPU and RAM: counters where the machine has them, codecarbon's models where not.

    ``tracking`` bounds the modelled parts alone; counters always see the whole device. Joules are
    energy differences, never watts times seconds: the watts in a task's record are a mean over the
    tracker's life. Energy is multiplied by ``pue``. A window whose books do not balance is returned
    with ``valid`` false and the fault in words.

    It does not see disk, network, power supply or cooling. An NVML counter moves every 0.1 s, so a
    GPU window is right to about 0.1 s over its length.

    Cost: one to three seconds at construction (spent here, outside any window), about 1 ms a window. A
    sampler of codecarbon's may go on until ``shut``.
    """

    def __init__(
        self,
        *,
        tracking: str = "machine",
        pue: float = 1.0,
        attempt: int = 0,
    ) -> None:
        super().__init__(attempt)
        refuse_outside_settings()
        self._tracking = tracking
        self._pue = pue
        self._tracker = _tracker(tracking, pue)
        self._tasks = 0
        self._outer_at = self._inner_at = self._cpu_at = 0.0
        self._boards = NvmlBoards()
        self._counter_at: float | None = None
        self._machine_at = machine_times()
        self._begin()
        self._end()
        self._boards = NvmlBoards(nvml_handles(self._tracker._hardware))
        self._method = self._describe()

    def method(self) -> EnergyMethod:
        """Say what was found on this machine."""
        return self._method

    def _begin(self) -> None:
        finish_queued_work()
        self._tasks += 1
        name = f"window-{self._tasks}"
        self._outer_at = perf_counter()
        try:
            self._tracker.start_task(name)
            started = self._tracker._active_task == name
        except Exception as error:
            raise MeterError(f"codecarbon cannot start a window ({error!r}): {_REMEDY}") from error
        if not started:
            raise MeterError(f"codecarbon did not start a window: {_REMEDY}")
        self._counter_at = self._boards.joules()
        self._inner_at, self._cpu_at = perf_counter(), family_cpu_seconds()
        self._machine_at = machine_times()

    def _end(self) -> Count:
        finish_queued_work()
        machine = machine_times().since(self._machine_at)
        seconds, cpu_seconds = perf_counter() - self._inner_at, family_cpu_seconds() - self._cpu_at
        counter_at = self._boards.joules()
        try:
            task = self._tracker.stop_task()
        except Exception as error:
            raise MeterError(f"codecarbon cannot close a window ({error!r}): {_REMEDY}") from error
        outer_seconds = perf_counter() - self._outer_at
        if task is None:
            raise MeterError(f"codecarbon lost a window of {seconds:.3g} s: {_REMEDY}")
        hardware = self._tracker._hardware
        classes = classes_of(hardware)
        joules = _joules(task, classes)
        ram_watts = ram_watts_of(hardware)
        counted = self._counted_joules(counter_at)
        fault = fault_of(
            bracket=Bracket(inner_seconds=seconds, outer_seconds=outer_seconds),
            task_seconds=task.duration,
            joules=joules,
            classes=classes,
            ram_watts=None if ram_watts is None else ram_watts * self._pue,
            counter_range_joules=counter_range_joules(hardware),
            counter_lost=counter_lost(hardware),
            counted_packages=counted_packages(hardware),
            gpu_counter_joules=counted,
            gpu_slack_joules=self._pue
            * self._boards.slack_joules(outer_seconds - seconds, (counted or 0.0) / max(seconds, 1e-9)),
        )
        return Count(
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            joules=joules,
            classes=classes if joules else {},
            fault=fault,
            machine_cpu_seconds=machine.busy_seconds,
            steal_seconds=machine.steal_seconds,
            gpu_celsius=self._boards.celsius(),
            throttled=self._boards.throttled(),
        )

    def _counted_joules(self, counter_at: float | None) -> float | None:
        if counter_at is None or self._counter_at is None:
            return None
        return (counter_at - self._counter_at) * self._pue

    def _shut(self) -> None:
        sampler = self._tracker._scheduler_monitor_power
        self._tracker.stop()
        # Codecarbon swallows what goes wrong in there; what it leaves behind tells.
        if self._tracker._start_time is not None or not _is_still(sampler):
            raise MeterError("codecarbon did not stop: its sampler may go on until this process ends")

    def _describe(self) -> EnergyMethod:
        hardware = self._tracker._hardware
        classes = classes_of(hardware)
        missing = tuple(part for part in ("cpu", "gpu", "ram") if part not in classes)
        return EnergyMethod(
            meter="codecarbon",
            scope=self._tracking,
            classes=classes,
            details={
                "codecarbon": str(self._tracker._conf["codecarbon_version"]),
                **details_of(hardware),
                "logical_cpus": str(os.cpu_count()),
                "pue": f"{self._pue:g}",
            },
            excluded=missing + _EXCLUDED,
        )


def _joules(task: Any, parts: Iterable[str]) -> dict[str, float]:
    # All parts or none: with one missing the rest would pass for the whole.
    energies_kwh = {part: getattr(task, f"{part}_energy", None) for part in parts}
    joules = {
        part: float(energy) * _JOULES_PER_KWH
        for part, energy in energies_kwh.items()
        if energy is not None and isfinite(energy)
    }
    return joules if len(joules) == len(energies_kwh) else {}


def _is_still(sampler: Any) -> bool:
    # A timer that fires while it is cancelled starts the next one, which nobody cancels.
    for _ in range(_TRIES_TO_STOP):
        timer = sampler._timer
        sampler.stop()
        timer.cancel()
        timer.join(_STOPS_WITHIN_SECONDS)
        if sampler._timer is timer:
            return not timer.is_alive()
    return False


def _tracker(tracking: str, pue: float) -> Any:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.external.logger import set_logger_level

    # Two lines are printed before the constructor takes up its own log level.
    set_logger_level("error")
    # Everything is given, also what is at its default: what is not given can be set from outside. The
    # country is one that codecarbon knows; it enters emissions alone, which nobody reads.
    return OfflineEmissionsTracker(
        country_iso_code="USA",
        region=None,
        cloud_provider=None,
        cloud_region=None,
        country_2letter_iso_code=None,
        force_carbon_intensity_g_co2e_kwh=None,
        project_name="tpsprune",
        experiment_id="tpsprune",
        experiment_name="tpsprune",
        tracking_mode=tracking,
        measure_power_secs=15,
        pue=pue,
        wue=0.0,
        gpu_ids=None,
        force_cpu_power=None,
        force_ram_power=None,
        force_mode_cpu_load=False,
        rapl_include_dram=False,
        rapl_prefer_psys=False,
        allow_multiple_runs=True,
        output_methods=[],
        output_handlers=[],
        output_dir=".",
        output_file="emissions.csv",
        on_csv_write="append",
        logging_logger=None,
        logger_preamble="",
        log_level="error",
        metadata=None,
        emissions_endpoint=None,
        prometheus_url="",
        electricitymaps_api_token=None,
        api_call_interval=-1,
        api_endpoint="",
        api_key="",
    )
