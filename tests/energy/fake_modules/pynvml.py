"""A board whose energy counter is moved by hand, as NVML's Python binding would show it."""

from __future__ import annotations

from types import SimpleNamespace

MILLIJOULES = [1_000_000]
BROKEN: list[bool] = []
NVML_TEMPERATURE_GPU = 0


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
    pass


def nvmlInit() -> None:  # noqa: N802
    pass


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


def nvmlDeviceGetTotalEnergyConsumption(handle: int) -> int:  # noqa: N802
    if BROKEN:
        raise NVMLError("gone")
    return MILLIJOULES[0]
