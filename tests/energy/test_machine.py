"""What the whole machine did beside us: everybody's processor time, and what was taken away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import namedtuple
from typing import Any

import pytest

from tpsprune.energy import build
from tpsprune.energy.machine import MachineTimes, machine_times, times_of
from tpsprune.energy.nvml import NvmlBoards
from tpsprune.recipe.train import Energy

LinuxTimes = namedtuple(
    "LinuxTimes", "user nice system idle iowait irq softirq steal guest guest_nice", defaults=[0.0] * 10
)


def test_busy_is_all_but_idle_iowait_steal_and_what_is_counted_twice() -> None:
    times = LinuxTimes(
        user=100.0,
        nice=20.0,
        system=30.0,
        idle=1e6,
        iowait=1e5,
        irq=4.0,
        softirq=5.0,
        steal=7.0,
        guest=60.0,
        guest_nice=6.0,
    )
    assert times_of(times) == MachineTimes(busy_seconds=159.0, steal_seconds=7.0)


def test_where_nothing_is_said_of_steal_it_is_not_known() -> None:
    mac = namedtuple("mac", "user nice system idle")
    now, before = times_of(mac(9.0, 1.0, 2.0, 50.0)), times_of(mac(4.0, 1.0, 1.5, 40.0))
    assert now.since(before) == MachineTimes(busy_seconds=5.5, steal_seconds=None)


def test_a_clock_set_back_by_a_tick_is_nought_and_no_negative_time() -> None:
    now, before = times_of(LinuxTimes(user=9.99, steal=1.0)), times_of(LinuxTimes(user=10.0, steal=1.5))
    assert now.since(before) == MachineTimes(busy_seconds=0.0, steal_seconds=0.0)


def test_times_that_may_not_be_read_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def refuse() -> Any:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    nothing = MachineTimes(busy_seconds=None, steal_seconds=None)
    assert machine_times() == nothing
    monkeypatch.undo()
    assert machine_times().since(nothing) == nothing


@pytest.mark.parametrize("kind", ["codecarbon", "none"])
def test_a_window_holds_everybodys_processor_time_and_our_own_in_it(kind: str) -> None:
    meter = build(Energy(meter=kind), attempt=0)  # type: ignore[arg-type]
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with meter.window("train") as span:
        other = subprocess.Popen([sys.executable, "-c", code])
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        assert other.wait() == 0
    window = span.window
    meter.shut()
    assert window.machine_cpu_seconds is not None
    cpus = os.cpu_count() or 1
    assert meter.method().details["logical_cpus"] == str(cpus)
    assert window.cpu_seconds > 0.6 - 0.05 * cpus, "what a child computes is the run's own"
    # Ticks of 10 ms a processor, kind by kind; and a process's own clock may go on while time is stolen.
    taken = window.machine_cpu_seconds + (window.steal_seconds or 0.0)
    assert taken > window.cpu_seconds - 0.05 * cpus
    assert window.machine_cpu_seconds < cpus * (window.seconds + 0.1)
    assert window.steal_seconds is None or 0.0 <= window.steal_seconds <= cpus * (window.seconds + 0.1)


def test_without_a_board_nothing_is_known_of_boards() -> None:
    boards = NvmlBoards()
    assert (boards.joules(), boards.celsius(), boards.throttled()) == (None, None, None)
    with build(Energy(meter="none"), attempt=0).window("train") as span:
        pass
    assert (span.window.gpu_celsius, span.window.throttled) == (None, None)


def test_the_fake_machine_does_nothing_that_is_known() -> None:
    with build(Energy(meter="fake"), attempt=0).window("train") as span:
        pass
    assert (span.window.machine_cpu_seconds, span.window.steal_seconds) == (None, None)
