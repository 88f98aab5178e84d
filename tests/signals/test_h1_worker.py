"""Where loops are counted: the process and its end, and when the counting is done in line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tpsprune.numerics.persistence import h1_bars, summary
from tpsprune.signals.h1_worker import CountingError, LoopCounter

POINTS = 12
PAIRS = POINTS * (POINTS - 1) // 2


@pytest.fixture
def worker() -> Iterator[LoopCounter]:
    worker = LoopCounter(in_line_seconds_per_step=0.0)
    yield worker
    worker.close()


def clouds(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1.0, 2.0, size=(count, PAIRS)).astype(np.float32)


def pid_of(worker: LoopCounter) -> int:
    assert worker._process is not None
    return worker._process.handle.pid


def test_in_line_and_in_the_process_the_same_function_counts(worker: LoopCounter) -> None:
    in_line = LoopCounter()
    for seed in (0, 1):
        requested = clouds(seed=seed)
        expected = tuple(summary(h1_bars(cloud, POINTS)) for cloud in requested)
        assert worker.collect(worker.submit(requested, POINTS)) == expected
        assert in_line.collect(in_line.submit(requested, POINTS, 1000 * seed)) == expected
        assert any(each.bars for each in expected)
    assert in_line.process_cpu_seconds == 0.0, "this process's own time is no process's"


def test_a_distance_that_is_not_finite_raises_the_same_in_both_and_kills_nothing(worker: LoopCounter) -> None:
    for counter in (worker, LoopCounter()):
        with pytest.raises(CountingError, match="a distance is not finite"):
            counter.collect(counter.submit(np.full((1, PAIRS), np.inf, np.float32), POINTS))
    assert len(worker.collect(worker.submit(clouds(), POINTS))) == 3


@pytest.mark.parametrize(
    ("seconds_per_cloud", "points", "steps", "in_line"),
    [(None, 128, None, True), (None, 129, None, False), (0.02, 128, 41, True), (0.02, 64, 40, False)],
)
def test_a_request_is_counted_in_line_below_a_millisecond_for_each_step(
    monkeypatch: pytest.MonkeyPatch,
    seconds_per_cloud: float | None,
    points: int,
    steps: int | None,
    in_line: bool,
) -> None:
    counter = LoopCounter()
    started: list[int] = []
    monkeypatch.setattr(counter, "_start", lambda: started.append(1) or Started())
    if seconds_per_cloud is not None:
        counter.submit(clouds(2), points, 100)
        counter._seconds_per_cloud = seconds_per_cloud
    counter.submit(clouds(2), points, None if steps is None else 100 + steps)
    assert (not started) is in_line


class Started:
    """A process that takes requests and never responds."""

    def __init__(self) -> None:
        self.pipe = self

    def send_bytes(self, message: bytes) -> None:
        pass


def test_one_process_serves_all_requests_and_reports_its_processor_time(worker: LoopCounter) -> None:
    assert worker.process_cpu_seconds == 0.0
    worker.collect(worker.submit(clouds(), POINTS))
    pid, first = pid_of(worker), worker.process_cpu_seconds
    os.kill(pid, signal.SIGINT)  # which it ignores
    # More than the pipe holds.
    assert len(worker.collect(worker.submit(clouds(3_000), POINTS))) == 3_000
    assert pid_of(worker) == pid
    assert 0.0 < first < worker.process_cpu_seconds
    if Path("/proc/self/maps").exists():
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, pid) >= min(19, nice + 10)
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "pyRipser" in maps
        assert "libtorch" not in maps
    before = worker.process_cpu_seconds
    worker.close()
    assert worker.process_cpu_seconds >= before


def test_a_result_never_collected_is_not_taken_for_the_next(worker: LoopCounter) -> None:
    first = worker.submit(clouds(1, seed=5), POINTS)
    second = worker.submit(clouds(2, seed=6), POINTS)
    assert worker.holds(second)
    assert not worker.holds(first)
    assert len(worker.collect(second)) == 2


def test_a_timeout_and_a_dead_process_raise_and_the_next_request_starts_another(worker: LoopCounter) -> None:
    worker.limit_seconds = 0.0
    number = worker.submit(clouds(), POINTS)
    pid = pid_of(worker)
    with pytest.raises(CountingError, match="took longer than 0 s"):
        worker.collect(number)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    worker.limit_seconds = 20.0
    assert len(worker.collect(worker.submit(clouds(), POINTS))) == 3
    os.kill(pid_of(worker), signal.SIGKILL)
    with pytest.raises(CountingError, match="died"):
        worker.collect(worker.submit(clouds(), POINTS))
    assert len(worker.collect(worker.submit(clouds(), POINTS))) == 3


def test_a_killed_parent_leaves_no_worker_and_its_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import time, numpy as np\n"
        "from tpsprune.signals.h1_worker import LoopCounter\n"
        "worker = LoopCounter(in_line_seconds_per_step=0.0)\n"
        f"summaries = worker.collect(worker.submit(np.ones((1, {PAIRS}), np.float32), {POINTS}))\n"
        "print(worker._process.handle.pid, len(summaries), flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid, count = map(int, parent.stdout.readline().split())
        parent.kill()
    assert count == 1
    for _ in range(200):
        if not is_running(pid):
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by ten seconds")


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be reaped has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
