"""What codecarbon found on this machine, and how good each of its figures is.

Codecarbon's figures do not say how they were obtained; its hardware objects do. They are told apart by
the name of their class, so that nothing of codecarbon is imported at the top of this file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from tpsprune.records import EnergyClass

__all__ = [
    "classes_of",
    "counted_packages",
    "counter_lost",
    "counter_range_joules",
    "details_of",
    "has_rated_watts",
    "nvml_handles",
    "ram_watts_of",
]

_JOULES_PER_KWH: Final = 3.6e6
_CPU_CLASSES: Final = {
    "intel_rapl": EnergyClass.MEASURED,
    "windows_emi": EnergyClass.MEASURED,
    "intel_power_gadget": EnergyClass.MEASURED,
    "cpu_load": EnergyClass.MODELLED,
    "constant": EnergyClass.CONSTANT,
}


def classes_of(hardware: Iterable[Any]) -> dict[str, EnergyClass]:
    """Return the class of each component present: ``cpu``, ``gpu``, ``ram``.

    A GPU is ``measured`` while every board's energy counter answers; boards without one are sampled
    once a second, which is a model of what lies between, and count as ``modelled``.
    """
    return dict(sorted((_part_of(item), _class_of(item)) for item in hardware))


def ram_watts_of(hardware: Iterable[Any]) -> float | None:
    """Return the watts of the RAM model, ``None`` where RAM is measured or absent."""
    for item in hardware:
        if type(item).__name__ == "RAM":
            return float(item.total_power().W)
    return None


def counter_range_joules(hardware: Iterable[Any]) -> float | None:
    """Return after how many joules the first RAPL counter turns over, ``None`` without RAPL."""
    ranges = [file.max_energy_reading.kWh * _JOULES_PER_KWH for file in _rapl_files(hardware)]
    return min(ranges, default=None)


def counted_packages(hardware: Iterable[Any]) -> int:
    """Return how many RAPL counters are summed, 1 without RAPL."""
    return max(1, len(_rapl_files(hardware)))


def counter_lost(hardware: Iterable[Any]) -> bool:
    """Whether a RAPL counter gave no usable difference over the last window."""
    return any(file.sample_skipped for file in _rapl_files(hardware))


def nvml_handles(hardware: Iterable[Any]) -> list[Any]:
    """Return the NVML handles of the boards metered; none where any board is not NVIDIA's."""
    boards = [board for item in hardware if type(item).__name__ == "GPU" for board in _boards(item)]
    if any(type(board).__name__ != "NvidiaGPUDevice" for board in boards):
        return []
    return [board.handle for board in boards]


def details_of(hardware: Iterable[Any]) -> dict[str, str]:
    """Return what a reader needs to judge the figures: modes, models, rated watts."""
    details: dict[str, str] = {}
    for item in hardware:
        part = _part_of(item)
        match type(item).__name__:
            case "CPU":
                details |= {"cpu_mode": item._mode, "cpu_model": str(item._model)}
                if item._mode in {"cpu_load", "constant"}:
                    details["cpu_rated_watts"] = f"{item._tdp:g}"
            case "GPU":
                names = [device._gpu_name for device in _boards(item)]
                details |= {"gpu_mode": "counter" if _counts(item) else "power samples"}
                details |= {"gpu_model": ", ".join(names)}
            case "RAM":
                details |= {"ram_mode": "constant", "ram_watts": f"{item.total_power().W:g}"}
            case other:
                details[f"{part}_mode"] = other
    return details


def has_rated_watts(model: str) -> bool:
    """Whether codecarbon's table of rated power holds this processor; else it assumes 4 W a logical CPU.

    Cost: some 20 ms beside what a meter has loaded already.
    """
    from codecarbon.core import cpu, hardware_cache

    return hardware_cache.get_cached_tdp(cpu)._get_cpu_power_from_registry(model) is not None


def _part_of(item: Any) -> str:
    match type(item).__name__:
        case "RAM":
            return "ram"
        case "GPU":
            return "gpu"
        case "CPU":
            return "cpu"
        case _:
            return str(item.chip_part).lower()


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


def _rapl_files(hardware: Iterable[Any]) -> list[Any]:
    return [
        file
        for item in hardware
        if getattr(item, "_mode", "") == "intel_rapl"
        for file in item._intel_interface._rapl_files
    ]
