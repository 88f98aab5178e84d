"""The workers of a Dask cluster: found, checked, and given one job after the other.

Dask sends what it is given as pickles, and runs it: whoever can reach a scheduler can run code on its
workers, and the scheduler on the machine of the command, for Dask's messages may hold pickles. A job's result
is text.
"""

from __future__ import annotations

import logging
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from typing import Any, Final, final

from tpsprune.errors import WorkerError, first_line
from tpsprune.jobs.address import Address, parse_address
from tpsprune.jobs.crew import LostJobError
from tpsprune.jobs.own_process import pack, read_outcome, run_in_own_process, settled_variables

try:
    from dask import config
    from distributed import Client, Future, LocalCluster, get_worker
except ImportError as error:
    raise WorkerError("jobs on Dask's workers need Dask: pip install 'tpsprune[dask]'") from error

ALIKE: Final = ("tpsprune", "torch", "numpy")
"""Packages whose versions must be the same on every worker as here."""
RETRIES: Final = "distributed.scheduler.allowed-failures"
ALONE: Final = "machine"
"""The resource of a worker that takes one job at a time, and no other beside it."""
REACHED_SECONDS: Final = 10.0
"""How long a scheduler, and its first worker, are waited for."""
GONE_SECONDS: Final = 60.0
"""How long workers may be away once jobs have begun: those that died are started again meanwhile."""
ASKED_SECONDS: Final = 1.0
"""How old an answer may be to how many workers there are."""
HERE_PYTHON: Final = platform.python_version().rpartition(".")[0]
HERE: Final = "127.0.0.1:0"


@contextmanager
def connect(address: Address | str, *, alone: bool = False) -> Iterator[Cluster]:
    """Give the workers of a cluster, found to have the same versions as here; let go of them at the end.

    ``alone``: only workers that offer the resource ``machine`` are used, each for one job at a time. Those of
    ``dask:local:N`` are threads of this process, each of which runs a job in a process of its own; Dask then
    listens on the loopback address alone.

    Raises:
        WorkerError: the scheduler does not answer, has no such worker, would try jobs again by itself, or its
            workers have other versions.
    """
    where = parse_address(address) if isinstance(address, str) else address
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        client = stack.enter_context(_connected(where))
        cluster = Cluster(where.text, client, alone=alone)
        cluster.check()
        yield cluster


@contextmanager
def _connected(where: Address) -> Iterator[Client]:
    # Results are text; what needs a pickle is no result.
    safe: dict[str, Any] = {"deserializers": ["dask", "msgpack"], "set_as_default": False}
    if where.workers:
        quiet: dict[str, Any] = {RETRIES: 0, "distributed.worker.profile.enabled": False}
        for role in ("scheduler", "worker"):
            quiet[f"distributed.{role}.http.routes"] = []
        with (
            config.set(quiet),
            LocalCluster(
                n_workers=1,
                threads_per_worker=where.workers,
                processes=False,
                resources={ALONE: 1},
                dashboard_address=HERE,
                worker_dashboard_address=HERE,
                silence_logs=logging.CRITICAL,
            ) as local,
            Client(local, **safe) as client,
        ):
            yield client
        return
    try:
        _greet(where)
        client = Client(where.url, timeout=REACHED_SECONDS, **safe)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise WorkerError(
            f"{where.text}: no Dask scheduler answers there ({first_line(error)}); start one with 'dask "
            "scheduler', or mend the address"
        ) from error
    with client:
        yield client


def _greet(where: Address) -> None:
    """Wait for the first bytes that a scheduler sends: Dask would wait for another server's for ever.

    Raises:
        OSError: nothing listens there, or it says nothing.
    """
    host, _, port = where.url.partition("://")[2].rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), REACHED_SECONDS) as connection:
        # A server of TLS speaks second.
        if where.url.startswith("tcp") and not connection.recv(1):
            raise ConnectionAbortedError("what listens there is none")


@final
@dataclass(slots=True)
class Cluster:
    """The workers of a scheduler, and what is asked of them."""

    name: str
    client: Client
    alone: bool = False
    _seen: float = field(default_factory=time.monotonic)
    _asked: float = 0.0
    _places: int = 0

    def check(self) -> None:
        """Refuse a cluster that could not do the jobs, before the first of them.

        Raises:
            WorkerError: no worker is there, versions differ, or the scheduler tries jobs again by itself.
        """
        end = time.monotonic() + REACHED_SECONDS
        while not self.count_places() and time.monotonic() < end:
            time.sleep(0.1)
        if not self.count_places():
            offer, need = (" --resources machine=1", f" that offers '{ALONE}'") if self.alone else ("", "")
            raise WorkerError(
                f"{self.name}: no worker{need} is there after {REACHED_SECONDS:.0f} s; start each with "
                f"'dask worker ADDRESS --nthreads 1{offer}'"
            )
        retries = self.client.run_on_scheduler(config.get, RETRIES)
        if retries != 0:
            raise WorkerError(
                f"{self.name}: its scheduler runs a job up to {retries} times more when a worker dies, and "
                "nobody would learn what those took: start it with "
                "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0 in its environment"
            )
        self._check_versions()

    def _check_versions(self) -> None:
        # First by a function of the library's own: one of ours could not be read by another Python.
        for worker, found in self.client.run(platform.python_version).items():
            if (minor := found.rpartition(".")[0]) != HERE_PYTHON:
                raise WorkerError(
                    f"the worker at {worker} runs Python {minor}, and here it is {HERE_PYTHON}: use the same"
                )
        # By value: a worker that lacks this package can answer too.
        found = self.client.run(
            lambda names: {
                name: next((each.version for each in distributions(name=name)), None) for name in names
            },
            ALIKE,
        )
        for worker, theirs in found.items():
            for name in ALIKE:
                if theirs[name] != (ours := _version(name)):
                    raise WorkerError(
                        f"the worker at {worker} has {name} {theirs[name] or '(none)'}, and here it is "
                        f"{ours}: install the same version on both"
                    )

    def count_places(self) -> int:
        """Return how many jobs its workers take at a time, as of a second ago.

        Raises:
            WorkerError: none has been there for a minute, or the scheduler is gone.
        """
        now = time.monotonic()
        if now - self._asked < ASKED_SECONDS:
            return self._places
        self._places = sum(self._find_workers().values())
        self._asked = now
        self._seen = now if self._places else self._seen
        if now - self._seen > GONE_SECONDS:
            raise WorkerError(
                f"{self.name}: its workers have been gone for {GONE_SECONDS:.0f} s; once there are some, the "
                "same command resumes"
            )
        return self._places

    def _find_workers(self) -> dict[str, int]:
        """Return the workers that take jobs, by their address, and how many each takes at a time."""
        refuse_gone(self.name, self.client)
        found = self.client.scheduler_info(n_workers=-1)["workers"]
        # Asked in vain it returns what it knew.
        refuse_gone(self.name, self.client)
        places = {
            worker: int(facts["resources"].get(ALONE, 0)) if self.alone else facts["nthreads"]
            for worker, facts in found.items()
        }
        return {worker: number for worker, number in places.items() if number}

    def submit(self, do: Callable[[Any], Any], job: Any) -> DaskHandle:
        """Hand a job over; ``do`` returns JSON values."""
        return self._submit(do, job)

    def _submit(self, do: Callable[[Any], Any], job: Any, **options: Any) -> DaskHandle:
        refuse_gone(self.name, self.client)
        if self.alone:
            options["resources"] = {ALONE: 1}
        future = self.client.submit(
            _run_on_worker, pack(do, job), settled_variables(), pure=False, retries=0, **options
        )
        return DaskHandle(self.name, self.client, future)

    def ask_each(self, do: Callable[[Any], Any], job: Any) -> dict[str, Any]:
        """Return the result of one job on every worker that takes any, by the worker's address."""
        handles = {
            worker: self._submit(do, job, workers=[worker], allow_other_workers=False)
            for worker in self._find_workers()
        }
        while not all(handle.done() for handle in handles.values()):
            time.sleep(0.05)
        found = {}
        for worker, handle in handles.items():
            try:
                found[worker] = handle.result()
            except LostJobError as error:
                raise WorkerError(
                    f"{self.name}: the worker at {worker} could not do a first job ({error}): is the same "
                    "tpsprune installed there, and is there memory?"
                ) from error
        return found


def refuse_gone(name: str, client: Client) -> None:
    """Refuse a cluster whose scheduler has gone: it would forget what it was given.

    Raises:
        WorkerError: the client has no connection to it.
    """
    if client.status != "running":
        raise WorkerError(f"{name}: its scheduler has gone; once it is there again, the same command resumes")


def _version(name: str) -> str | None:
    return next((each.version for each in distributions(name=name)), None)


@final
@dataclass(frozen=True, slots=True)
class DaskHandle:
    """A job on a worker of a cluster."""

    name: str
    client: Client
    future: Future

    def done(self) -> bool:
        """Return whether it has ended."""
        return bool(self.future.done())

    def result(self) -> Any:
        """Return its result; raises as ``read_outcome``, and a LostJobError if its worker died.

        Raises:
            WorkerError: the scheduler is gone, and with it all jobs under way.
        """
        refuse_gone(self.name, self.client)
        if self.future.status != "finished":
            raise LostJobError(f"its worker was lost ({self.future.status})")
        return read_outcome(self.future.result())

    def cancel(self) -> None:
        """Give it up: its process is killed within a second."""
        self.future.cancel()


def _run_on_worker(packed: bytes, variables: Mapping[str, str | None]) -> str:
    """Run a job below the worker that this is called on, for as long as the worker has it."""
    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing"

    return run_in_own_process(packed, variables, is_wanted)
