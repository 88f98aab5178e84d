"""The loops: each job once, what becomes due on the way, what is lost, what goes wrong."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.jobs.deeds import diverge, end_itself, find_variable, leave_a_line, wait_the_first_time
from tpsprune.errors import TpspruneError, WorkerError
from tpsprune.jobs import run_afar, run_in_parallel, run_serially
from tpsprune.jobs.cluster import Cluster, DaskHandle, connect

pytestmark = pytest.mark.xdist_group("dask")

Way = Callable[[Callable[[], Sequence[Any]], Callable[[Any], Any]], Iterator[Any]]


@pytest.fixture(params=["in turn", "two here", "threads of a cluster", "workers of a cluster"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    if request.param == "in turn":
        yield run_serially
    elif request.param == "two here":
        yield lambda due, do: run_in_parallel(due, do, 2)
    elif request.param == "threads of a cluster":
        with connect("dask:local:2") as here:
            yield lambda due, do: run_afar(due, do, here.submit, here.count_places)
    else:
        cluster: Cluster = request.getfixturevalue("cluster")
        yield lambda due, do: run_afar(due, do, cluster.submit, cluster.count_places)


def test_each_job_is_run_once_what_becomes_due_on_the_way_too_and_what_goes_wrong_is_heard(way: Way) -> None:
    done: list[int] = []

    def due() -> Sequence[int]:
        # Seven comes due only once three is known, and then a job that fails.
        wanted = [3, 4, 5, *([7] if math.factorial(3) in done else []), *([-1] if len(done) == 4 else [])]
        return [job for job in wanted if job < 0 or math.factorial(job) not in done]

    with pytest.raises((ValueError, RuntimeError), match="negative"):  # noqa: PT012 -- results come first
        for result in way(due, math.factorial):
            done += [result]
    assert sorted(done) == [math.factorial(job) for job in (3, 4, 5, 7)]


def test_a_user_fault_on_a_worker_is_one_here(cluster: Cluster) -> None:
    with pytest.raises(TpspruneError, match=r"^step 3: the loss is nan$"):
        next(run_afar(lambda: [1], diverge, cluster.submit, cluster.count_places))


def when_there(path: Path) -> list[int]:
    while not path.exists():
        time.sleep(0.05)
    return [int(each) for each in path.read_text().split()]


def has_ended(pid: int) -> bool:
    """Whether a process has ended within some seconds; one that is not waited for counts."""
    for _ in range(200):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("victim", ["worker", "process of the job"])
def test_a_job_whose_worker_is_killed_is_due_again_and_comes_out(
    cluster: Cluster, tmp_path: Path, victim: str
) -> None:
    done: list[str] = []

    def kill() -> None:
        worker, process = when_there(tmp_path / "pids")
        os.kill(worker if victim == "worker" else process, signal.SIGKILL)

    Thread(target=kill).start()
    jobs = (str(tmp_path),)
    due = lambda: [job for job in jobs if job not in done]  # noqa: E731
    for result in run_afar(due, wait_the_first_time, cluster.submit, cluster.count_places):
        done += [result]
    assert done == [*jobs]
    assert (tmp_path / "done").read_text() == "done\n"
    assert has_ended(when_there(tmp_path / "pids")[1]), "a worker that was killed leaves no job behind"


def test_a_job_that_ends_its_worker_twice_is_not_tried_again(cluster: Cluster) -> None:
    expected = r"^job 'x' has ended its worker twice \(out of memory\?\): its process was ended by SIGKILL$"
    workers = cluster.client.run(os.getpid)
    with pytest.raises(WorkerError, match=expected):
        list(
            run_afar(
                lambda: ["x"], end_itself, cluster.submit, cluster.count_places, lambda job: f"job '{job}'"
            )
        )
    assert cluster.client.run(os.getpid) == workers, "the workers live on"


def test_a_result_is_let_go_of_so_that_a_worker_lost_later_runs_nothing_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    done: list[str] = []
    jobs = [str(tmp_path / name) for name in "abc"]
    due = lambda: [job for job in jobs if job not in done]  # noqa: E731
    for result in run_afar(due, leave_a_line, cluster.submit, lambda: 1):
        done += [result]
        deadline = time.monotonic() + 5
        while [state for state in cluster.client.futures.values() if state.status == "finished"]:
            assert time.monotonic() < deadline, "the result is still held"
            time.sleep(0.02)
    workers = set(cluster.client.run(os.getpid).values())
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while workers & (now := set(cluster.client.run(os.getpid, on_error="ignore").values())) or len(now) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert next(run_afar(lambda: [4], math.factorial, cluster.submit, cluster.count_places)) == 24
    assert [Path(job).read_text() for job in jobs] == ["done\n"] * 3


def test_leaving_the_loop_ends_what_is_under_way(cluster: Cluster, tmp_path: Path) -> None:
    held: list[DaskHandle] = []

    def submit(do: Callable[[Any], Any], job: Any) -> DaskHandle:
        # Held here: what nobody holds Dask gives up by itself, sooner or later.
        held.append(cluster.submit(do, job))
        return held[-1]

    # The job of no consequence comes first: the loop stops at its result.
    ended = run_afar(lambda: [4, str(tmp_path)], _wait_or_count, submit, cluster.count_places)
    assert next(ended) == 24
    _, process = when_there(tmp_path / "pids")
    ended.close()  # type: ignore[attr-defined]
    assert has_ended(process)
    assert not (tmp_path / "done").exists()


def _wait_or_count(job: Any) -> Any:
    return math.factorial(job) if isinstance(job, int) else wait_the_first_time(job)


@pytest.mark.parametrize("value", ["3", None])
def test_a_job_finds_the_variables_of_here_not_those_that_dask_sets(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    name = "OMP_NUM_THREADS"
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)
    assert next(run_afar(lambda: [name], find_variable, cluster.submit, cluster.count_places)) == value
    assert set(cluster.client.run(os.getenv, name).values()) == {"1"}
