"""Energy counters of devices: NVIDIA's boards by NVML, processors by RAPL as Linux shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

POWERCAP: Final = Path("/sys/class/powercap")
_SLOWED: Final = 0x08 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, thermal slowdown by software and by hardware, power brake; a power cap is none."""
_COUNTER_TICK_SECONDS: Final = 0.1


@final
class NvmlBoards:
    """The boards behind NVML ``handles``; a figure that one of them lacks is ``None`` for all.

    Their energy counters, heat, and slowed clocks. Without handles nothing is imported, and all is ``None``.

    Cost: a call to the driver per board and figure.
    """

    def __init__(self, handles: Sequence[Any] = ()) -> None:
        self._handles = tuple(handles)
        limits = self._query("nvmlDeviceGetEnforcedPowerLimit")
        self.limit_watts = None if limits is None else sum(limits) / 1e3

    def joules(self) -> float | None:
        """Return the sum of the energy counters, which move every 0.1 s."""
        millijoules = self._query("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else sum(millijoules) / 1e3

    def slack_joules(self, edge_seconds: float, mean_watts: float) -> float:
        """Return by how much two readings of a window may differ: a tick at each edge, and ``edge_seconds``.

        At the boards' power limit; where that is not known, at ``mean_watts``.
        """
        watts = mean_watts if self.limit_watts is None else self.limit_watts
        return (2 * _COUNTER_TICK_SECONDS + edge_seconds) * watts

    def celsius(self) -> float | None:
        """Return the temperature of the hottest board."""
        degrees = self._query("nvmlDeviceGetTemperature", 0)  # sensor 0 is the processor itself
        return None if degrees is None else float(max(degrees))

    def throttled(self) -> bool | None:
        """Whether heat or a fault slows the clocks of any board now."""
        reasons = self._query("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # drivers older than 535
            reasons = self._query("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if reasons is None else any(each & _SLOWED for each in reasons)

    def _query(self, name: str, *arguments: int) -> list[int] | None:
        if not self._handles:
            return None
        import pynvml

        query: Callable[..., int] | None = getattr(pynvml, name, None)
        if query is None:
            return None
        try:
            return [query(handle, *arguments) for handle in self._handles]
        except pynvml.NVMLError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlFound:
    """What NVML reports: the boards and the driver, or in ``fault`` why it reports nothing."""

    names: tuple[str, ...] = ()
    driver: str | None = None
    limit_watts: float | None = None
    fault: str = ""
    is_installed: bool = True


def find_nvml() -> NvmlFound:
    """Query NVML for its driver and boards; cost: some ms, up to a second where the driver is not awake."""
    try:
        import pynvml
    except ImportError:
        return NvmlFound(fault="pynvml is not installed", is_installed=False)
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return NvmlFound(
            names=tuple(_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles),
            driver=_text(pynvml.nvmlSystemGetDriverVersion()),
            limit_watts=NvmlBoards(handles).limit_watts,
        )
    except pynvml.NVMLError as error:
        return NvmlFound(fault=str(error))


def _text(found: str | bytes) -> str:
    return found if isinstance(found, str) else found.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class RaplDomain:
    """One counter; ``fault`` is why it cannot be read, ``denied`` whether permission is missing."""

    name: str
    path: Path
    fault: str = ""
    denied: bool = False


def find_rapl(
    root: Path = POWERCAP, read: Callable[[Path], str] = lambda path: path.read_text(encoding="ascii")
) -> tuple[RaplDomain, ...]:
    """Return the RAPL domains below ``root`` in order of their folders; none where there is no such folder.

    Each counter is read once with ``read``, since a container may not let
    through. A domain without a counter file is none.
    """
    files = {
        path.resolve(): path
        for pattern in ("intel-rapl*:*/energy_uj", "intel-rapl*/intel-rapl*:*/energy_uj")
        for path in sorted(root.glob(pattern))
    }
    return tuple(_domain(path, read) for path in files.values())


def packages_of(domains: tuple[RaplDomain, ...]) -> tuple[RaplDomain, ...]:
    """Return the domains of whole processors: the others are parts of them, or of the whole platform."""
    return tuple(domain for domain in domains if domain.name.startswith("package"))


def _domain(path: Path, read: Callable[[Path], str]) -> RaplDomain:
    try:
        name = path.with_name("name").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        name = path.parent.name
    try:
        float(read(path))
    except OSError as error:
        fault, denied = error.strerror or str(error), isinstance(error, PermissionError)
    except ValueError:
        fault, denied = "holds no number", False
    else:
        fault, denied = "", False
    return RaplDomain(name=name, path=path, fault=fault, denied=denied)
