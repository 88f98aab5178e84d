"""Trainings side by side, each in a process of its own, in whatever order they end."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import AsyncResult
from typing import Any, Final, TypeVar

__all__ = ["in_turn", "side_by_side"]

Job = TypeVar("Job")
Result = TypeVar("Result")
Due = Callable[[], Sequence[Job]]
"""What is left to do, the most urgent first; asked again whenever something has ended."""

PATIENCE_SECONDS: Final = 0.05


def in_turn(due: Due[Job], do: Callable[[Job], Result]) -> Iterator[Result]:
    """Do what is due, one after the other, in this process."""
    while jobs := due():
        yield do(jobs[0])


def side_by_side(due: Due[Job], do: Callable[[Job], Result], workers: int) -> Iterator[Result]:
    """Do what is due, ``workers`` at a time; yield results as they come.

    ``do`` and jobs are sent to other processes, which begin anew (spawned) and ignore an interrupt: leaving
    the loop ends them, and what they were at is lost.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _deaf_to_interrupts) as pool:
        under_way: dict[Job, AsyncResult[Result]] = {}
        while True:
            waiting = [job for job in due() if job not in under_way]
            for job in waiting[: workers - len(under_way)]:
                under_way[job] = pool.apply_async(do, (job,))
            if not under_way:
                return
            ended = [job for job, result in under_way.items() if result.ready()]
            for job in ended:
                yield under_way.pop(job).get()
            if not ended:
                time.sleep(PATIENCE_SECONDS)


def _deaf_to_interrupts(*_: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
