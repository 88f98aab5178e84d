"""The devices of this machine, each found out from one place of the system that is handed in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["NvmlFound", "cpu_model", "find_nvml", "in_container", "is_virtualised", "pci_gpus"]

PCI: Final = Path("/sys/bus/pci/devices")
_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD"}
_CONTAINER_MARKS: Final = (".dockerenv", "run/.containerenv")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlFound:
    """What NVML says: the boards and the driver, or in ``fault`` why it says nothing."""

    names: tuple[str, ...] = ()
    driver: str | None = None
    limit_watts: float | None = None
    fault: str = ""
    is_installed: bool = True


def cpu_model(cpuinfo: str) -> str | None:
    r"""Return the processor's name from the text of ``/proc/cpuinfo``, ``None`` where it has none (ARM).

    >>> cpu_model("processor : 0\nmodel name\t: AMD EPYC 9654\n")
    'AMD EPYC 9654'
    """
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return found.group(1).strip() if found else None


def is_virtualised(cpuinfo: str) -> bool | None:
    """Whether the processor says it is a hypervisor's; ``None`` where it says nothing of the kind (ARM).

    A hypervisor that hides itself is not seen.

    >>> is_virtualised("flags : fpu vme hypervisor sse"), is_virtualised("flags : fpu vme sse")
    (True, False)
    """
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, flags=re.MULTILINE)
    return "hypervisor" in found.group(1).split() if found else None


def in_container(root: Path = Path("/")) -> bool | None:
    """Whether Docker or Podman left its mark; ``None`` without one, which proves nothing."""
    return True if any((root / mark).exists() for mark in _CONTAINER_MARKS) else None


def pci_gpus(root: Path = PCI) -> tuple[str, ...] | None:
    """Return the makers of the GPUs on the PCI bus, NVIDIA's and AMD's; ``None`` where it cannot be seen."""
    if not root.is_dir():
        return None
    found = [(_word(folder / "class"), _word(folder / "vendor")) for folder in sorted(root.iterdir())]
    return tuple(_VENDORS[vendor] for kind, vendor in found if kind.startswith("0x03") and vendor in _VENDORS)


def find_nvml() -> NvmlFound:
    """Ask NVML for its driver and boards; cost: some ms, up to a second where the driver is not awake."""
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
            limit_watts=_limit_watts(pynvml, handles),
        )
    except pynvml.NVMLError as error:
        return NvmlFound(fault=str(error))


def _limit_watts(pynvml: Any, handles: list[Any]) -> float | None:
    try:
        limits = [float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) for handle in handles]
    except pynvml.NVMLError:
        return None
    return sum(limits) / 1e3


def _text(found: str | bytes) -> str:
    return found if isinstance(found, str) else found.decode(errors="replace")


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
