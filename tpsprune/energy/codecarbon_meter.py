"""Energy by codecarbon, in the one way of using it that holds: offline, task by task, checked.

Why task mode: ``start``/``stop`` measures from a timer thread, and under a busy main thread half-second
spans came out between 0.68 and 1.45 of the truth; tasks under the same load within 1.5 %.

Codecarbon's figures do not name their source; its hardware objects do. Those are distinguished by
the name of their class, so that nothing of codecarbon is imported at the top of this file.

Source: Courty et al., CodeCarbon 3.3 (https://github.com/mlco2/codecarbon), read as installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, Final, final

from tpsprune.energy.counters import NvmlBoards
from tpsprune.energy.machine import Stopwatch, finish_queued_work
from tpsprune.energy.meter import AbstractMeter, Count
from tpsprune.energy.windows import Bracket, fault_of
from tpsprune.errors import MeterError
from tpsprune.records import JOULES_PER_KWH, EnergyClass, EnergyMethod

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
_CPU_CLASSES: Final = {
    "intel_rapl": EnergyClass.MEASURED,
    "windows_emi": EnergyClass.MEASURED,
    "intel_power_gadget": EnergyClass.MEASURED,
    "cpu_load": EnergyClass.MODELLED,
    "constant": EnergyClass.CONSTANT,
}
_SETTINGS: Final[dict[str, Any]] = {
    # Everything is passed, defaults included: whatever is left out can be set from outside. The country is
    # one in codecarbon's table; it enters emissions alone, which nothing reads.
    "country_iso_code": "USA",
    **dict.fromkeys(("region", "cloud_provider", "cloud_region", "country_2letter_iso_code")),
    **dict.fromkeys(("force_carbon_intensity_g_co2e_kwh", "force_cpu_power", "force_ram_power", "gpu_ids")),
    **dict.fromkeys(("project_name", "experiment_id", "experiment_name"), "tpsprune"),
    **dict.fromkeys(("force_mode_cpu_load", "rapl_include_dram", "rapl_prefer_psys"), False),
    **dict.fromkeys(("logging_logger", "metadata", "emissions_endpoint", "electricitymaps_api_token")),
    **dict.fromkeys(("logger_preamble", "prometheus_url", "api_endpoint", "api_key"), ""),
    "measure_power_secs": 15,
    "wue": 0.0,
    "allow_multiple_runs": True,
    "output_methods": [],
    "output_handlers": [],
    "output_dir": ".",
    "output_file": "emissions.csv",
    "on_csv_write": "append",
    "log_level": "error",
    "api_call_interval": -1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideSettings:
    """Variables and files, in order, that codecarbon would read by itself."""

    variables: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def find_outside_settings(
    environ: Iterable[str] | None = None, folders: Iterable[Path] | None = None
) -> OutsideSettings:
    """Find ``CODECARBON_*`` variables and ``.codecarbon.config`` files; by default of this process."""
    names = os.environ if environ is None else environ
    places = (Path.home(), Path.cwd()) if folders is None else folders
    paths = (folder / ".codecarbon.config" for folder in places)
    return OutsideSettings(
        variables=tuple(sorted(name for name in names if name.lower().startswith("codecarbon_"))),
        files=tuple(dict.fromkeys(path for path in paths if path.exists())),
    )


def has_rated_watts(model: str) -> bool:
    """Whether codecarbon's table of rated power holds this processor; else it assumes 4 W a logical CPU.

    Cost: some 20 ms after a meter has been built.
    """
    from codecarbon.core import cpu, hardware_cache

    return hardware_cache.get_cached_tdp(cpu)._get_cpu_power_from_registry(model) is not None


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

    Raises:
        MeterError: the environment or a file changes codecarbon's settings behind the recipe
            (``CODECARBON_PUE=3`` alone triples every figure, and no record would show it); or codecarbon
            cannot start.
    """

    def __init__(self, *, tracking: str = "machine", pue: float = 1.0, attempt: int = 0) -> None:
        super().__init__(attempt)
        _refuse(find_outside_settings())
        self._tracking = tracking
        self._pue = pue
        self._tracker = _tracker(tracking, pue)
        self._tasks = 0
        self._outer_at = 0.0
        self._boards = NvmlBoards()
        self._counter_at: float | None = None
        self._watch = Stopwatch.start()
        self._begin()
        self._end()
        self._boards = NvmlBoards(_nvml_handles(self._tracker._hardware))
        self._method = self._describe()

    def method(self) -> EnergyMethod:
        """Return the method found on this machine."""
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
        self._watch = Stopwatch.start()

    def _end(self) -> Count:
        finish_queued_work()
        elapsed = self._watch.elapsed()
        counter_at = self._boards.joules()
        try:
            task = self._tracker.stop_task()
        except Exception as error:
            raise MeterError(f"codecarbon cannot close a window ({error!r}): {_REMEDY}") from error
        bracket = Bracket(inner_seconds=elapsed["seconds"], outer_seconds=perf_counter() - self._outer_at)
        if task is None:
            raise MeterError(f"codecarbon lost a window of {bracket.inner_seconds:.3g} s: {_REMEDY}")
        hardware = self._tracker._hardware
        classes = _classes_of(hardware)
        joules = _joules(task, classes)
        ram_watts = next((item.total_power().W for item in hardware if _is(item, "RAM")), None)
        rapl = [
            file
            for item in hardware
            if getattr(item, "_mode", "") == "intel_rapl"
            for file in item._intel_interface._rapl_files
        ]
        counted = None
        if counter_at is not None and self._counter_at is not None:
            counted = (counter_at - self._counter_at) * self._pue
        mean_watts = (counted or 0.0) / max(bracket.inner_seconds, 1e-9)
        edge_seconds = bracket.outer_seconds - bracket.inner_seconds
        fault = fault_of(
            bracket=bracket,
            task_seconds=task.duration,
            joules=joules,
            classes=classes,
            ram_watts=None if ram_watts is None else float(ram_watts) * self._pue,
            counter_range_joules=min(
                (file.max_energy_reading.kWh * JOULES_PER_KWH for file in rapl), default=None
            ),
            counter_lost=any(file.sample_skipped for file in rapl),
            counted_packages=max(1, len(rapl)),
            gpu_counter_joules=counted,
            gpu_slack_joules=self._pue * self._boards.slack_joules(edge_seconds, mean_watts),
        )
        return Count(
            **elapsed,
            joules=joules,
            classes=classes if joules else {},
            fault=fault,
            gpu_celsius=self._boards.celsius(),
            throttled=self._boards.throttled(),
        )

    def _shut(self) -> None:
        sampler = self._tracker._scheduler_monitor_power
        self._tracker.stop()
        # Codecarbon swallows errors in there; the state that it leaves shows them.
        if self._tracker._start_time is not None or not _stops(sampler):
            raise MeterError("codecarbon did not stop: its sampler may go on until this process ends")

    def _describe(self) -> EnergyMethod:
        hardware = self._tracker._hardware
        classes = _classes_of(hardware)
        missing = tuple(part for part in ("cpu", "gpu", "ram") if part not in classes)
        return EnergyMethod(
            meter="codecarbon",
            scope=self._tracking,
            classes=classes,
            details={
                "codecarbon": str(self._tracker._conf["codecarbon_version"]),
                **_details_of(hardware),
                "logical_cpus": str(os.cpu_count()),
                "pue": f"{self._pue:g}",
            },
            excluded=missing + _EXCLUDED,
        )


def _refuse(found: OutsideSettings) -> None:
    if not (found.variables or found.files):
        return
    ways = [f"`unset {' '.join(found.variables)}`"] if found.variables else []
    ways += [f"move {path} away" for path in found.files]
    raise MeterError(
        "codecarbon would take settings from outside the recipe, which would change the figures unseen: "
        + " and ".join(ways)
        + ", or set energy.meter = 'none'"
    )


def _tracker(tracking: str, pue: float) -> Any:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.external.logger import set_logger_level

    # Two lines are printed before the constructor takes up its own log level.
    set_logger_level("error")
    return OfflineEmissionsTracker(**_SETTINGS, tracking_mode=tracking, pue=pue)


def _joules(task: Any, parts: Iterable[str]) -> dict[str, float]:
    # All parts or none: with one missing the rest would pass for the whole.
    energies_kwh = {part: getattr(task, f"{part}_energy", None) for part in parts}
    joules = {
        part: float(energy) * JOULES_PER_KWH
        for part, energy in energies_kwh.items()
        if energy is not None and isfinite(energy)
    }
    return joules if len(joules) == len(energies_kwh) else {}


def _stops(sampler: Any) -> bool:
    # A timer that fires while it is cancelled starts the next one, which is not cancelled.
    for _ in range(_TRIES_TO_STOP):
        timer = sampler._timer
        sampler.stop()
        timer.cancel()
        timer.join(_STOPS_WITHIN_SECONDS)
        if sampler._timer is timer:
            return not timer.is_alive()
    return False


def _classes_of(hardware: Iterable[Any]) -> dict[str, EnergyClass]:
    """Return the class of each component present: ``cpu``, ``gpu``, ``ram``.

    A GPU is ``measured`` while every board's energy counter can be read; boards without one are sampled
    once a second, which is a model of what lies between, and count as ``modelled``.
    """
    return dict(sorted((_part_of(item), _class_of(item)) for item in hardware))


def _nvml_handles(hardware: Iterable[Any]) -> list[Any]:
    """Return the NVML handles of the boards metered; none where any board is not NVIDIA's."""
    boards = [board for item in hardware if _is(item, "GPU") for board in _boards(item)]
    return [board.handle for board in boards] if all(_is(each, "NvidiaGPUDevice") for each in boards) else []


def _details_of(hardware: Iterable[Any]) -> dict[str, str]:
    """Return what a reader needs to judge the figures: modes, models, rated watts."""
    details: dict[str, str] = {}
    for item in hardware:
        match type(item).__name__:
            case "CPU":
                details |= {"cpu_mode": item._mode, "cpu_model": str(item._model)}
                if item._mode in {"cpu_load", "constant"}:
                    details["cpu_rated_watts"] = f"{item._tdp:g}"
            case "GPU":
                details["gpu_mode"] = "counter" if _counts(item) else "power samples"
                details["gpu_model"] = ", ".join(device._gpu_name for device in _boards(item))
            case "RAM":
                details |= {"ram_mode": "constant", "ram_watts": f"{item.total_power().W:g}"}
            case other:
                details[f"{_part_of(item)}_mode"] = other
    return details


def _is(item: Any, kind: str) -> bool:
    return type(item).__name__ == kind


def _part_of(item: Any) -> str:
    kind = type(item).__name__
    return kind.lower() if kind in {"RAM", "GPU", "CPU"} else str(item.chip_part).lower()


def _class_of(item: Any) -> EnergyClass:
    match type(item).__name__:
        case "RAM":
            return EnergyClass.CONSTANT
        case "GPU":
            return EnergyClass.MEASURED if _counts(item) else EnergyClass.MODELLED
        case "CPU":
            return _CPU_CLASSES.get(item._mode, EnergyClass.MODELLED)
        case _:
            return EnergyClass.MEASURED


def _counts(gpu: Any) -> bool:
    return all(device._has_counter and not device._use_power_fallback for device in _boards(gpu))


def _boards(gpu: Any) -> list[Any]:
    used = set(gpu._get_gpu_ids())
    return [device for device in gpu.devices.devices if device.gpu_index in used]
