"""A job in a process of its own, below the worker that was given it.

The worker's threads, heartbeats and profiler are not in the job's processor seconds, and a crash takes the
job, not the worker. A job goes there as a pickle, which the worker hands on unread; what comes back is JSON.

The process is started as a program, not by ``multiprocessing``: a worker that Dask watches is a daemonic
process, and those may have no children there. It ends when its pipe does: a worker that was killed leaves
no job behind.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

from tpsprune.errors import TpspruneError
from tpsprune.jobs.crew import LostJobError

WANTED_SECONDS: Final = 0.5
"""How often a job is asked after that may have been given up."""
SETTLED: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
"""What Dask sets for its workers and a job must have as here: it moves last digits and processor seconds."""
# Our import path is passed; our main script is not, and so is not run over again.
ENTRY: Final = (
    "import sys; handle = int(sys.argv[1]); sys.path[:] = sys.argv[2:]; "
    "from tpsprune.jobs.own_process import serve; serve(handle)"
)


def settled_variables() -> dict[str, str | None]:
    """Return what a job's process must find in its environment, as it is here."""
    return {name: os.environ.get(name) for name in SETTLED}


def pack(do: Callable[[Any], Any], job: Any) -> bytes:
    """Return what ``run_in_own_process`` runs; both must be found there by their names."""
    return pickle.dumps((do, job))


def run_in_own_process(
    packed: bytes, variables: Mapping[str, str | None], is_wanted: Callable[[], bool] = lambda: True
) -> str:
    """Do a packed job in a new process and return what came of it, as JSON that ``read_outcome`` reads.

    The process is killed once it is no longer wanted. Cost: its imports, some seconds where torch is one.
    """
    environment = {**os.environ, **variables}
    ours, its = Pipe()
    # Its standard output is nobody's result: it is shown with what else is told.
    process = subprocess.Popen(  # noqa: S603 -- this interpreter, with a text of ours
        [sys.executable, "-c", ENTRY, str(its.fileno()), *sys.path],
        env={name: value for name, value in environment.items() if value is not None},
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=2,
    )
    its.close()
    with ours, process:
        try:
            ours.send_bytes(packed)
            while not ours.poll(WANTED_SECONDS):
                if not is_wanted():
                    return json.dumps({"lost": "it was given up"})
            return ours.recv_bytes().decode()
        except (EOFError, OSError):
            return json.dumps({"lost": _describe_end(process.wait())})
        finally:
            process.kill()


def _describe_end(code: int) -> str:
    """Return how a process ended.

    >>> _describe_end(-9), _describe_end(1)
    ('its process was ended by SIGKILL', 'its process ended with code 1')
    """
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"


def read_outcome(text: str) -> Any:
    """Return the result of a job, as JSON values.

    Raises:
        TpspruneError: the job ended with one, with its message.
        LostJobError: its process ended before the job did.
        RuntimeError: the job ended with another exception, a fault of this program: its traceback as text.
    """
    outcome = json.loads(text)
    if "fault" in outcome:
        raise TpspruneError(outcome["fault"])
    if "lost" in outcome:
        raise LostJobError(outcome["lost"])
    if "traceback" in outcome:
        raise RuntimeError(f"a job failed on its worker\n{outcome['traceback']}")
    return outcome["result"]


def serve(handle: int) -> None:
    """Do the one job that comes through the pipe, in the process that was started for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(handle) as pipe:
        called = pipe.recv_bytes()
        threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
        pipe.send_bytes(json.dumps(_try(called)).encode())


def _try(called: bytes) -> dict[str, Any]:
    try:
        do, job = pickle.loads(called)  # noqa: S301 -- sent by whoever can run code here anyway
        return {"result": do(job)}
    except TpspruneError as error:
        return {"fault": str(error)}
    except Exception:  # noqa: BLE001 -- told to whoever gave the job, as the traceback it would have been
        return {"traceback": traceback.format_exc()}


def _end_with(pipe: Connection) -> None:
    """End this process once the other end of its pipe is gone; nothing else comes through it."""
    pipe.poll(None)
    os._exit(1)
