"""A cluster that does not do is refused before the first job; nothing pickled comes back; nothing listens."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from dask import config
from distributed import LocalCluster

from tests.jobs.deeds import return_harm
from tpsprune.cli import main
from tpsprune.errors import WorkerError
from tpsprune.jobs import cluster as under_test
from tpsprune.jobs.address import Address
from tpsprune.jobs.alike import agree, refuse_another
from tpsprune.jobs.cluster import HERE, RETRIES, Cluster, connect

pytestmark = pytest.mark.xdist_group("dask")


@contextmanager
def scheduler(workers: int = 0, retries: int = 0) -> Iterator[LocalCluster]:
    """A cluster in this process that is not as it should be."""
    with (
        config.set({RETRIES: retries}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address=HERE,
            worker_dashboard_address=HERE,
            silence_logs=logging.CRITICAL,
        ) as local,
    ):
        yield local


def address_of(local: LocalCluster) -> str:
    return f"dask:{local.scheduler_address}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "REACHED_SECONDS", 0.5)


def refused(address: str, message: str, *, alone: bool = False) -> None:
    with pytest.raises(WorkerError, match=message), connect(address, alone=alone):
        pass


@pytest.mark.usefixtures("impatient")
def test_a_scheduler_that_is_not_there_is_told_within_bounds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        refused(
            f"dask:tcp://127.0.0.1:{port}", r"no Dask scheduler answers there .*start one with 'dask sched"
        )
    refused(f"dask:tcp://127.0.0.1:{port}", r"no Dask scheduler answers there \(ConnectionRefusedError")
    refused("dask:tcp://no.such.host.invalid:8786", r"no Dask scheduler answers there")
    refused(f"dask:tls://127.0.0.1:{port}", r"no Dask scheduler answers there")


@pytest.mark.usefixtures("impatient")
def test_a_cluster_without_a_worker_that_does_is_refused() -> None:
    with scheduler() as local:
        refused(
            address_of(local),
            r"no worker is there after 0 s; start each with 'dask worker ADDRESS --nthreads 1'$",
        )
    with scheduler(workers=1) as local:
        refused(address_of(local), r"no worker that offers 'machine' .* --resources machine=1'$", alone=True)


def test_a_scheduler_that_tries_again_by_itself_is_refused() -> None:
    with scheduler(workers=1, retries=3) as local:
        refused(address_of(local), r"up to 3 times more .* DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0")


@pytest.mark.parametrize("name", ["tpsprune", "torch", "numpy"])
def test_a_worker_with_another_version_is_refused(
    address: Address, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    version = under_test._version
    monkeypatch.setattr(under_test, "_version", lambda each: "0.0.1" if each == name else version(each))
    refused(
        address.text, rf"the worker at tcp://\S+ has {name} \S+, and here it is 0\.0\.1: install the same"
    )


def test_a_worker_of_another_python_is_refused(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "HERE_PYTHON", "3.1")
    refused(address.text, r"runs Python 3\.\d+, and here it is 3\.1: use the same")


def test_a_scheduler_that_goes_away_ends_the_jobs_in_words() -> None:
    with scheduler(workers=1) as local, connect(address_of(local)) as cluster:
        local.close()
        while cluster.client.status == "running":
            time.sleep(0.05)
        for ask in (lambda: cluster.submit(len, ""), lambda: Cluster.count_places(_stale(cluster))):
            with pytest.raises(WorkerError, match=r"its scheduler has gone; .* the same command resumes"):
                ask()


def _stale(cluster: Cluster) -> Cluster:
    cluster._asked = 0.0
    return cluster


def test_workers_that_stay_away_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with scheduler(workers=1) as local, connect(address_of(local)) as cluster:
        assert cluster.count_places() == 1
        cluster.client.retire_workers()
        monkeypatch.setattr(under_test, "GONE_SECONDS", -1.0)
        with pytest.raises(WorkerError, match="its workers have been gone for"):
            _stale(cluster).count_places()


def test_what_is_pickled_is_not_taken_back(cluster: Cluster, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    with pytest.raises(TypeError, match="only able to deserialize"):
        cluster.client.submit(return_harm, str(harm), pure=False).result()
    assert not harm.exists()


def test_workers_here_listen_on_the_loopback_address_alone() -> None:
    before = listening()
    with connect("dask:local:2"):
        assert {host for host, _ in listening() - before} <= {"127.0.0.1"}


def listening() -> set[tuple[str, int]]:
    found = psutil.Process().net_connections(kind="tcp")
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN}


def test_machines_that_differ_are_told_by_the_first_difference() -> None:
    one = {"machine": {"logical_cpus": 2, "torch": "2.13"}, "processor": "A"}
    assert agree("dask:x", {"w1": one, "w2": dict(one)}) == one
    other = {**one, "machine": {"logical_cpus": 4, "torch": "2.13"}}
    with pytest.raises(
        WorkerError,
        match=r"dask:x: its workers are not alike.* machine\.logical_cpus is 4 at w2 and 2 at w1$",
    ):
        agree("dask:x", {"w1": one, "w2": other})
    refuse_another("dask:x", dict(one), one)
    with pytest.raises(WorkerError, match=r"came later is another: processor is 'B' there and 'A' here$"):
        refuse_another("dask:x", {**one, "processor": "B"}, one)


@pytest.mark.parametrize(
    "words",
    [
        ("study", "reach", "--workers", "dask:local:2", "--out", "found"),
        ("compare", "digits", "--machines", "dask:local:1", "--out", "found"),
    ],
    ids=["study", "compare"],
)
def test_without_the_extra_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "tpsprune.jobs.cluster")
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.output) == (
        2,
        "Error: jobs on Dask's workers need Dask: pip install 'tpsprune[dask]'\n",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("study", "reach", "--workers", "dask:lcoal:2"), "(did you mean 'dask:local:2'?)"),
        (("study", "reach", "--workers", "many"), "'many' names no workers"),
        (("study", "reach", "--workers", "0"), "0 is not in the range x>=1"),
        (("compare", "digits", "--machines", "dask:tcp://h"), "expected host and port of a scheduler"),
        (("compare", "digits", "--machines", "2"), "'2' names no workers"),
        (("compare", "digits", "--machines", "dask:local:2"), "a pair is alone on it: use dask:local:1"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
