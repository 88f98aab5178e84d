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
from tpsprune.signals.h1_worker import H1Worker, WorkerError

POINTS = 12
PAIRS = POINTS * (POINTS - 1) // 2


@pytest.fixture
def worker() -> Iterator[H1Worker]:
    worker = H1Worker()
    yield worker
    worker.close()


def clouds(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1.0, 2.0, size=(count, PAIRS)).astype(np.float32)


def pid_of(worker: H1Worker) -> int:
    assert worker._live is not None
    return worker._live.process.pid


def test_answers_equal_those_worked_out_here(worker: H1Worker) -> None:
    for seed in (0, 1):
        asked = clouds(seed=seed)
        expected = tuple(summary(h1_bars(cloud, POINTS)) for cloud in asked)
        assert worker.answer(worker.ask(asked, POINTS)) == expected
        assert any(each.bars for each in expected)


def test_one_process_serves_all_requests_and_reports_its_processor_time(worker: H1Worker) -> None:
    assert worker.cpu_seconds == 0.0
    worker.answer(worker.ask(clouds(), POINTS))
    pid, first = pid_of(worker), worker.cpu_seconds
    worker.answer(worker.ask(clouds(40), POINTS))
    assert pid_of(worker) == pid
    assert 0.0 < first < worker.cpu_seconds
    worker.close()
    assert worker.cpu_seconds > first


def test_an_answer_that_nobody_fetched_is_not_taken_for_the_next(worker: H1Worker) -> None:
    first = worker.ask(clouds(1, seed=5), POINTS)
    second = worker.ask(clouds(2, seed=6), POINTS)
    assert worker.is_on(second)
    assert not worker.is_on(first)
    assert len(worker.answer(second)) == 2


def test_what_takes_too_long_is_killed_and_the_next_request_starts_anew() -> None:
    worker = H1Worker(limit_seconds=0.0)
    number = worker.ask(clouds(), POINTS)
    pid = pid_of(worker)
    with pytest.raises(WorkerError, match="took longer than 0 s"):
        worker.answer(number)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    worker.limit_seconds = 20.0
    assert len(worker.answer(worker.ask(clouds(), POINTS))) == 3
    worker.close()


def test_a_worker_that_died_is_told_of_and_the_next_request_starts_anew(worker: H1Worker) -> None:
    worker.answer(worker.ask(clouds(), POINTS))
    os.kill(pid_of(worker), signal.SIGKILL)
    with pytest.raises(WorkerError, match="died"):
        worker.answer(worker.ask(clouds(), POINTS))
    assert len(worker.answer(worker.ask(clouds(), POINTS))) == 3


def test_the_worker_hears_no_interrupt(worker: H1Worker) -> None:
    worker.answer(worker.ask(clouds(), POINTS))
    os.kill(pid_of(worker), signal.SIGINT)
    assert len(worker.answer(worker.ask(clouds(), POINTS))) == 3


def test_a_request_larger_than_the_pipes_buffer_goes_through(worker: H1Worker) -> None:
    assert len(worker.answer(worker.ask(clouds(3_000), POINTS))) == 3_000


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_the_worker_is_niced_and_has_not_loaded_torch(worker: H1Worker) -> None:
    worker.answer(worker.ask(clouds(), POINTS))
    assert os.getpriority(os.PRIO_PROCESS, pid_of(worker)) >= min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    maps = Path(f"/proc/{pid_of(worker)}/maps").read_text()
    assert "pyRipser" in maps
    assert "libtorch" not in maps


def test_a_killed_parent_leaves_no_worker_and_its_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import time, numpy as np\n"
        "from tpsprune.signals.h1_worker import H1Worker\n"
        "worker = H1Worker()\n"
        f"answer = worker.answer(worker.ask(np.ones((1, {PAIRS}), np.float32), {POINTS}))\n"
        "print(worker._live.process.pid, len(answer), flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid, answers = map(int, parent.stdout.readline().split())
        parent.kill()
    assert answers == 1
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
