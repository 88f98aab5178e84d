"""The loops that run what is due: in turn, in processes here, or through handles of jobs elsewhere."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult
from typing import Any, Final, Generic, Protocol, TypeVar, final

from tpsprune.errors import WorkerError

Job = TypeVar("Job")
Result = TypeVar("Result")
Outcome_co = TypeVar("Outcome_co", covariant=True)
Due = Callable[[], Sequence[Job]]
"""The jobs left to do, the most urgent first; called again whenever a job has ended."""
POLL_SECONDS: Final = 0.05
MOST_LOSSES: Final = 2
"""A job that has ended its worker so often is not tried again: most likely it ends every worker."""


class LostJobError(Exception):
    """A job has ended without a result, because its process or its worker did."""


class Handle(Protocol[Outcome_co]):
    """A job that was handed over."""

    def done(self) -> bool:
        """Return whether it has ended, in whichever way."""

    def result(self) -> Outcome_co:
        """Return its result, or raise what it raised; a LostJobError if its worker died."""

    def cancel(self) -> object:
        """Give the job up; what it has done is lost."""


def run_serially(due: Due[Job], do: Callable[[Job], Result]) -> Iterator[Result]:
    """Run what is due, one job after the other, in this process."""
    while jobs := due():
        yield do(jobs[0])


def run_in_parallel(due: Due[Job], do: Callable[[Job], Result], workers: int) -> Iterator[Result]:
    """Run what is due, ``workers`` jobs at a time; yield results as they come.

    ``do`` and jobs are sent to spawned processes, which ignore an interrupt: leaving the loop ends them, and
    the jobs under way are lost.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from run_afar(due, do, lambda do, job: _Pooled(pool.apply_async(do, (job,))), lambda: workers)


@final
@dataclass(frozen=True, slots=True)
class _Pooled(Generic[Result]):
    """A job in a pool of processes, which ends with the pool."""

    pooled: AsyncResult[Result]

    def done(self) -> bool:
        return self.pooled.ready()

    def result(self) -> Result:
        return self.pooled.get()

    def cancel(self) -> None:
        pass


def run_afar(
    due: Due[Job],
    do: Callable[[Job], Result],
    submit: Callable[[Callable[[Job], Result], Job], Handle[Result]],
    count_places: Callable[[], int],
    describe: Callable[[Any], str] = str,
) -> Iterator[Result]:
    """Run what is due, as many jobs at a time as there are places; yield results as they come.

    ``submit`` hands a job over and returns its handle, which is let go of before its result is yielded: a
    cluster that still held a finished job would run it again if its worker died. A job that is lost is due
    again, and is tried once more. ``count_places`` is asked again and again, since workers come and go.
    Leaving the loop cancels the jobs under way.

    Raises:
        WorkerError: a job, by its name as ``describe`` has it, has ended its worker twice.
    """
    under_way: dict[Job, Handle[Result]] = {}
    losses: Counter[Job] = Counter()
    try:
        while True:
            waiting = [job for job in due() if job not in under_way]
            for job in waiting[: max(0, count_places() - len(under_way))]:
                under_way[job] = submit(do, job)
            if not under_way and not waiting:
                return
            ended = [job for job, handle in under_way.items() if handle.done()]
            for job in ended:
                try:
                    result = under_way.pop(job).result()
                except LostJobError as error:
                    losses[job] += 1
                    if losses[job] == MOST_LOSSES:
                        raise WorkerError(
                            f"{describe(job)} has ended its worker twice (out of memory?): {error}"
                        ) from error
                else:
                    yield result
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for handle in under_way.values():
            handle.cancel()
