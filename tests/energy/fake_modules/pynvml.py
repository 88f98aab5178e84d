"""A board whose energy counter is moved by hand, as NVML's Python binding would show it."""

from __future__ import annotations

from types import SimpleNamespace

MILLIJOULES = [1_000_000]
EACH_READING = [0]
"""What the counter moves by whenever somebody looks: a board whose readings fall apart."""
CELSIUS = [61]
REASONS = [0]
BROKEN: list[bool] = []
OLD_DRIVER: list[bool] = []
NVML_TEMPERATURE_GPU = 0


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
    pass


def nvmlInit() -> None:  # noqa: N802
    pass


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return "575.57"


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    return index


def nvmlDeviceGetName(handle: int) -> str:  # noqa: N802
    return "Pretended H1"


def nvmlDeviceGetUUID(handle: int) -> str:  # noqa: N802
    return "GPU-0"


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(total=1, free=1, used=0)


def nvmlDeviceGetEnforcedPowerLimit(handle: int) -> int:  # noqa: N802
    return 700_000


def nvmlDeviceGetPowerUsage(handle: int) -> int:  # noqa: N802
    return 100_000


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(gpu=50)


def nvmlDeviceGetTemperature(handle: int, sensor: int) -> int:  # noqa: N802
    return CELSIUS[0]


def nvmlDeviceGetCurrentClocksEventReasons(handle: int) -> int:  # noqa: N802
    if OLD_DRIVER:
        raise NVMLError_NotSupported("Function Not Found")
    return REASONS[0]


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: int) -> int:  # noqa: N802
    return REASONS[0]


def nvmlDeviceGetTotalEnergyConsumption(handle: int) -> int:  # noqa: N802
    if BROKEN:
        raise NVMLError("gone")
    MILLIJOULES[0] += EACH_READING[0]
    return MILLIJOULES[0]
