"""A handle on the process that counts loops, so that training does not stand still while Ripser does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from signal import SIGKILL
from typing import Any, final

import numpy as np
import numpy.typing as npt

from tpsprune.numerics.persistence import H1Summary
from tpsprune.signals import h1_process

__all__ = ["H1Worker", "WorkerError"]

LIMIT_SECONDS = 20.0
# Run by path and not by name, past the package that loads torch. Our import path goes along; our main script
# does not: unlike with multiprocessing, one without `if __name__ == "__main__"` is not run over again.
ENTRY = "import runpy, sys; sys.path[:] = sys.argv[3:]; runpy.run_path(sys.argv[1], run_name='__main__')"


class WorkerError(Exception):
    """The worker gave no answer; the message is the reason that the reading carries."""


@dataclass(slots=True)
class _Live:
    """A worker process, our end of its pipe, and the processor time it has last reported."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    cpu_seconds: float = 0.0


@final
class H1Worker:
    """A handle on the worker process, which is started when first asked and again after it has gone.

    The worker is niced, hears no Ctrl-C, and ends when its pipe does: at ``close``, or because this
    process was killed. One request at a time: asking again forgets what was asked before. POSIX only.
    """

    def __init__(self, *, limit_seconds: float = LIMIT_SECONDS) -> None:
        self.limit_seconds = limit_seconds
        self._live: _Live | None = None
        self._ended_cpu_seconds = 0.0
        self._asked = 0
        self._asked_at_seconds = 0.0

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all workers of this handle, start-up included, as of the last answer."""
        return self._ended_cpu_seconds + (self._live.cpu_seconds if self._live else 0.0)

    def start(self) -> _Live:
        """Start the worker if there is none; it is ready a few tenths of a second later."""
        if self._live is None:
            self._live = _started()
        return self._live

    def ask(self, clouds_cm: npt.NDArray[np.float32], points: int) -> int:
        """Send condensed distance matrices and return the number under which to fetch the answer.

        Waits for a worker that is still starting, if they are more than the pipe holds.
        """
        live = self.start()
        self._asked += 1
        self._asked_at_seconds = time.monotonic()
        # A worker that has died is met, and told of, where the answer is fetched.
        with suppress(OSError):
            head = h1_process.HEAD.pack(self._asked, len(clouds_cm), points)
            live.pipe.send_bytes(head + clouds_cm.tobytes())
        return self._asked

    def is_on(self, number: int) -> bool:
        """Return whether ``number`` is the last request, of a worker that has not been ended since.

        Numbers begin at 1: a memory out of a checkpoint has asked no worker of this process yet.
        """
        return self._live is not None and 0 < number == self._asked

    def answer(self, number: int) -> tuple[H1Summary, ...]:
        """Wait for the answer to ``number``, the last request, and return a summary for each cloud.

        Raises:
            WorkerError: there is no answer within ``limit_seconds`` of asking, or the worker has died; the
                next request starts a new one.
        """
        while self._live is not None:
            left_seconds = self._asked_at_seconds + self.limit_seconds - time.monotonic()
            if not self._live.pipe.poll(max(0.0, left_seconds)):
                self.close()
                raise WorkerError(f"counting loops took longer than {self.limit_seconds:g} s")
            try:
                message: dict[str, Any] = json.loads(self._live.pipe.recv_bytes())
            except (EOFError, OSError):
                self.close()
                break
            self._live.cpu_seconds = message["cpu_seconds"]
            if message["number"] == number:
                return tuple(H1Summary(**each) for each in message["summaries"])
        raise WorkerError("the process that counts loops died")

    def close(self) -> None:
        """End the worker at once, if there is one; a later request starts a new one."""
        if self._live is None:
            return
        process, pipe = self._live.process, self._live.pipe
        # Not by the handle, which would reap a process that has ended before its usage can be asked for.
        os.kill(process.pid, SIGKILL)
        _, _, usage = os.wait4(process.pid, 0)
        # Tells the handle that its process is gone; there is nothing left to wait for.
        process.wait()
        pipe.close()
        self._live = None
        self._ended_cpu_seconds += usage.ru_utime + usage.ru_stime


def _started() -> _Live:
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", ENTRY, h1_process.__file__, str(theirs.fileno()), *sys.path],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # One thread: a pool would only lengthen the start.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            # Out of reach of the terminal's Ctrl-C, even while it starts.
            start_new_session=True,
        )
    return _Live(process, ours)
