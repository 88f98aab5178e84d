"""This machine, as its system shows it: processor time, ours and everybody's, and devices."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

import psutil

PCI: Final = Path("/sys/bus/pci/devices")
_TASKS: Final = Path("/proc/self/task")
_NOT_BUSY: Final = frozenset({"idle", "iowait", "steal", "guest", "guest_nice"})
_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD"}
_CONTAINER_MARKS: Final = (".dockerenv", "run/.containerenv")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTimes:
    """Processor seconds since the machine started, over all its processors; ``None`` where not known.

    ``busy_seconds`` are everybody's, this process included; ``steal_seconds`` were wanted here while the
    hypervisor served other machines. Both move in clock ticks, 10 ms on Linux.
    """

    busy_seconds: float | None
    steal_seconds: float | None

    def since(self, earlier: MachineTimes) -> MachineTimes:
        """Return what went by between ``earlier`` and this reading."""
        return MachineTimes(
            busy_seconds=_difference(self.busy_seconds, earlier.busy_seconds),
            steal_seconds=_difference(self.steal_seconds, earlier.steal_seconds),
        )


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """One reading of three clocks: wall seconds, processor seconds of this family, the machine's times."""

    wall_seconds: float
    cpu_seconds: float
    machine: MachineTimes

    @classmethod
    def start(cls) -> Stopwatch:
        """Read all three; cost: some 100 µs."""
        return cls(perf_counter(), family_cpu_seconds(), machine_times())

    def elapsed(self) -> dict[str, Any]:
        """Return what went by since, under the names that a window has for it."""
        machine = machine_times().since(self.machine)
        return {
            "seconds": perf_counter() - self.wall_seconds,
            "cpu_seconds": family_cpu_seconds() - self.cpu_seconds,
            "machine_cpu_seconds": machine.busy_seconds,
            "steal_seconds": machine.steal_seconds,
        }


def finish_queued_work() -> None:
    """Wait until CUDA has done what was queued: work belongs to the window that queued it.

    Neither torch nor CUDA is loaded for this: loading torch takes seconds, and a CUDA context takes
    memory and watts that would then be charged to the run.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def find_metering_process() -> str:
    """Return which other process meters this machine, in words; nothing where it is this one.

    Launchers number the processes of a machine in ``LOCAL_RANK``, and its first one meters. Without that the
    first process of ``torch.distributed`` does, if that is initialised.
    """
    if (local := os.environ.get("LOCAL_RANK")) is not None:
        return "" if local.strip() == "0" else "the process of LOCAL_RANK 0 on this machine"
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return ""
    rank: int = distributed.get_rank()
    return "the process of rank 0 (no LOCAL_RANK says which is the first one of a machine)" if rank else ""


def machine_times() -> MachineTimes:
    """Read the machine's processor times; cost: some 40 µs on two processors.

    In a container they are those of the whole host. Where the system does not let them be read, they
    are not known.
    """
    try:
        return split_times(psutil.cpu_times())
    except OSError:
        return MachineTimes(busy_seconds=None, steal_seconds=None)


def split_times(times: Any) -> MachineTimes:
    """Split a named tuple of ``psutil``: all fields but idle, iowait, steal and guest are busy.

    Guest time is part of user time already, and iowait is idle time by another name.
    """
    fields = times._asdict()
    return MachineTimes(
        busy_seconds=sum(value for name, value in fields.items() if name not in _NOT_BUSY),
        steal_seconds=fields.get("steal"),
    )


def family_cpu_seconds() -> float:
    """Return processor seconds of this process and of its children, those that have ended among them.

    Loops may be counted in a child of a run, and what it computes is the run's. Children of children count
    once their parent has ended. Where the system does not list children cheaply (Linux does), those that
    still run are left out. Cost: some 50 µs and as much for each child.
    """
    children: set[int] = set()
    for path in _TASKS.glob("*/children"):
        with suppress(OSError):
            children.update(map(int, path.read_text(encoding="ascii").split()))
    ended = os.times()
    return process_time() + ended.children_user + ended.children_system + sum(map(_cpu_seconds_of, children))


def cpu_model(cpuinfo: str) -> str | None:
    r"""Return the processor's name from the text of ``/proc/cpuinfo``, ``None`` where it has none (ARM).

    >>> cpu_model("processor : 0\nmodel name\t: AMD EPYC 9654\n")
    'AMD EPYC 9654'
    """
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return found.group(1).strip() if found else None


def is_virtualised(cpuinfo: str) -> bool | None:
    """Whether the processor reports a hypervisor; ``None`` where it has no such field (ARM).

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
    found = [(_read(folder / "class"), _read(folder / "vendor")) for folder in sorted(root.iterdir())]
    return tuple(_VENDORS[vendor] for kind, vendor in found if kind.startswith("0x03") and vendor in _VENDORS)


def _cpu_seconds_of(number: int) -> float:
    try:
        times = psutil.Process(number).cpu_times()
    except (psutil.Error, OSError):
        return 0.0
    return float(times.user + times.system)


def _difference(now: float | None, before: float | None) -> float | None:
    # Linux may set a processor's times back by a tick.
    return None if now is None or before is None else max(0.0, now - before)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
