"""What the whole machine did over a window: whether the figures of one run are its own, or a neighbour's."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any, Final

import psutil

__all__ = ["MachineTimes", "family_cpu_seconds", "machine_times", "times_of"]

_TASKS: Final = Path("/proc/self/task")
_NOT_BUSY: Final = frozenset({"idle", "iowait", "steal", "guest", "guest_nice"})


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


def machine_times() -> MachineTimes:
    """Read the machine's processor times; cost: some 40 µs on two processors.

    In a container they are those of the whole host. Where the system does not let them be read, they
    are not known.
    """
    try:
        return times_of(psutil.cpu_times())
    except OSError:
        return MachineTimes(busy_seconds=None, steal_seconds=None)


def family_cpu_seconds() -> float:
    """Return processor seconds of this process and of its children, those that have ended among them.

    Signals are read in a child of a run, and what it computes is the run's. Children of children count once
    their parent has ended. Where the system does not list children cheaply (Linux does), those that still
    run are left out. Cost: some 50 µs and as much for each child.
    """
    ended = os.times()
    return process_time() + ended.children_user + ended.children_system + sum(map(_of_child, _children()))


def _children() -> set[int]:
    found: set[int] = set()
    for path in _TASKS.glob("*/children"):
        with suppress(OSError):
            found.update(map(int, path.read_text(encoding="ascii").split()))
    return found


def _of_child(number: int) -> float:
    try:
        times = psutil.Process(number).cpu_times()
    except (psutil.Error, OSError):
        return 0.0
    return float(times.user + times.system)


def times_of(times: Any) -> MachineTimes:
    """Split a named tuple of ``psutil``: all fields but idle, iowait, steal and guest are busy.

    Guest time is part of user time already, and iowait is idle time by another name.
    """
    fields = times._asdict()
    return MachineTimes(
        busy_seconds=sum(value for name, value in fields.items() if name not in _NOT_BUSY),
        steal_seconds=fields.get("steal"),
    )


def _difference(now: float | None, before: float | None) -> float | None:
    # Linux may set a processor's times back by a tick.
    return None if now is None or before is None else max(0.0, now - before)
