"""Counting loops without delaying training: in line where that costs next to nothing, else in a process.

The process runs this very file: it loads numpy and Ripser, not torch, and starts in 0.1 to 0.2 s. Messages
are bytes on a pipe, never pickles. A request is three int64 (its number, clouds, points) and the clouds'
condensed distances in float32; a response is JSON.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from signal import SIG_IGN, SIGINT, SIGKILL, signal
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from tpsprune.numerics.persistence import H1Summary, h1_bars, summary

LIMIT_SECONDS: Final = 20.0
IN_LINE_SECONDS_PER_STEP: Final = 1e-3
IN_LINE_POINTS: Final = 128
"""Up to so many points loops are counted in line while their cost or the steps between are not known."""
HEAD: Final = struct.Struct("<3q")
NICENESS: Final = 10
# Run by path and not by name, past the package that loads torch. Our import path is passed; our main script
# is not: unlike with multiprocessing, one without `if __name__ == "__main__"` is not run over again.
ENTRY: Final = (
    "import runpy, sys; sys.path[:] = sys.argv[3:]; runpy.run_path(sys.argv[1], run_name='__main__')"
)
Clouds = npt.NDArray[np.float32]


class CountingError(Exception):
    """Loops could not be counted; the message is the reason that the reading carries."""


@dataclass(slots=True)
class _Process:
    """A process that counts, our end of its pipe, and the processor time it has last reported."""

    handle: subprocess.Popen[bytes]
    pipe: Connection
    cpu_seconds: float = 0.0


@final
class LoopCounter:
    """Holds one request at a time; ``submit`` replaces it, ``collect`` returns its summaries.

    Loops are counted in this process where the last one's processor time, at its number of clouds, is
    below ``in_line_seconds_per_step`` for each training step since then, and, while no cost is known, up to
    128 points (2 to 30 ms a cloud of 128, 200 of 256; starting a process takes 75 ms and more). Else in a
    process of its own, which is started for the first such request and again after it has ended. The same
    function counts the same numbers in both, and results are collected at the same time: where it is counted
    changes no reading, so measured cost may decide.

    The process is niced, ignores Ctrl-C, and ends when its pipe does: at ``close``, or because this process
    was killed. POSIX only.
    """

    def __init__(
        self,
        *,
        limit_seconds: float = LIMIT_SECONDS,
        in_line_seconds_per_step: float = IN_LINE_SECONDS_PER_STEP,
    ) -> None:
        self.limit_seconds = limit_seconds
        self.in_line_seconds_per_step = in_line_seconds_per_step
        self._process: _Process | None = None
        self._in_line: tuple[Clouds, int] | None = None
        self._ended_cpu_seconds = 0.0
        self._number = 0
        self._submitted_at_seconds = 0.0
        self._step: int | None = None
        self._seconds_per_cloud: float | None = None

    @property
    def process_cpu_seconds(self) -> float:
        """Processor time of all processes of this counter, start-up included, as of the last response.

        What is counted in line is this process's own time and not in here.
        """
        return self._ended_cpu_seconds + (self._process.cpu_seconds if self._process else 0.0)

    def prepare(self, points: int) -> None:
        """Start the process where the first request will need it, so as to be ready by then."""
        if not self._fits_in_line(1, points, None):
            self._start()

    def submit(self, clouds_cm: Clouds, points: int, step: int | None = None) -> int:
        """Take condensed distance matrices and return the number under which to collect the result.

        ``step`` is the training step. Waits for a process that is still starting, if the matrices are more
        than the pipe holds.
        """
        self._number += 1
        self._in_line = None
        if self._fits_in_line(len(clouds_cm), points, step):
            self._in_line = clouds_cm, points
        else:
            pipe = self._start().pipe
            self._submitted_at_seconds = time.monotonic()
            # ``collect`` reports a process that has died.
            with suppress(OSError):
                pipe.send_bytes(HEAD.pack(self._number, len(clouds_cm), points) + clouds_cm.tobytes())
        self._step = step
        return self._number

    def holds(self, number: int) -> bool:
        """Return whether ``number`` is the last request, and can still be collected.

        Numbers begin at 1: a memory out of a checkpoint has no request here yet.
        """
        return 0 < number == self._number and not (self._in_line is None and self._process is None)

    def collect(self, number: int) -> tuple[H1Summary, ...]:
        """Return a summary for each cloud of ``number``, the last request; counts them now, or waits.

        Raises:
            CountingError: a distance is not finite, or the process did not respond within ``limit_seconds``
                or has died; the next request starts another.
        """
        if self._in_line is not None:
            clouds_cm, points = self._in_line
            self._in_line = None
            return self._read(_count(clouds_cm, points))
        while self._process is not None:
            left_seconds = self._submitted_at_seconds + self.limit_seconds - time.monotonic()
            if not self._process.pipe.poll(max(0.0, left_seconds)):
                self.close()
                raise CountingError(f"counting loops took longer than {self.limit_seconds:g} s")
            try:
                message: dict[str, Any] = json.loads(self._process.pipe.recv_bytes())
            except (EOFError, OSError):
                self.close()
                break
            self._process.cpu_seconds = message["cpu_seconds"]
            if message["number"] == number:
                return self._read(message)
        raise CountingError("the process that counts loops died")

    def close(self) -> None:
        """Forget the request and end the process at once, if any; a later request starts another."""
        self._in_line = None
        if self._process is None:
            return
        handle, pipe = self._process.handle, self._process.pipe
        # Not by the handle, which would reap a process that has ended before its usage can be read.
        os.kill(handle.pid, SIGKILL)
        _, _, usage = os.wait4(handle.pid, 0)
        # Marks the handle as ended; there is nothing left to wait for.
        handle.wait()
        pipe.close()
        self._process = None
        self._ended_cpu_seconds += usage.ru_utime + usage.ru_stime

    def _fits_in_line(self, clouds: int, points: int, step: int | None) -> bool:
        steps = 0 if step is None or self._step is None else step - self._step
        if self._seconds_per_cloud is None or steps <= 0:
            return points <= IN_LINE_POINTS and self.in_line_seconds_per_step > 0
        return self._seconds_per_cloud * clouds < self.in_line_seconds_per_step * steps

    def _read(self, message: dict[str, Any]) -> tuple[H1Summary, ...]:
        if fault := message["fault"]:
            raise CountingError(fault)
        summaries = tuple(H1Summary(**each) for each in message["summaries"])
        self._seconds_per_cloud = message["seconds"] / len(summaries)
        return summaries

    def _start(self) -> _Process:
        if self._process is not None:
            return self._process
        ours, theirs = Pipe()
        with theirs:
            handle = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", ENTRY, __file__, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # One thread: a pool would only lengthen the start.
                env=os.environ
                | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
                # Out of reach of the terminal's Ctrl-C, even while it starts.
                start_new_session=True,
            )
        self._process = _Process(handle, ours)
        return self._process


def _count(clouds_cm: Clouds, points: int) -> dict[str, Any]:
    """Return the clouds' summaries as JSON values, or the fault, and this thread's processor seconds."""
    before = time.thread_time()
    try:
        summaries, fault = [asdict(summary(h1_bars(cloud_m, points))) for cloud_m in clouds_cm], ""
    except ValueError as error:
        summaries, fault = [], str(error)
    return {"summaries": summaries, "fault": fault, "seconds": time.thread_time() - before}


def _serve(descriptor: int) -> None:
    """Serve requests from the pipe with that file descriptor until it ends."""
    signal(SIGINT, SIG_IGN)
    os.nice(NICENESS)
    pipe = Connection(descriptor)
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        number, clouds, points = HEAD.unpack_from(message)
        clouds_cm = np.frombuffer(message, np.float32, offset=HEAD.size).reshape(clouds, -1)
        response = {"number": number, **_count(clouds_cm, points), "cpu_seconds": time.process_time()}
        with suppress(OSError):
            pipe.send_bytes(json.dumps(response).encode())


if __name__ == "__main__":
    _serve(int(sys.argv[2]))
