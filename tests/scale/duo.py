"""Two processes, started once, that take cases: the path of a function each, answered as JSON.

Both have the environment that ``torchrun --nproc-per-node=2`` gives, and the process group is initialised. A
case is ``module:function``; it gets the arguments as keywords and returns JSON. What it prints comes with the
answer. A pair in which a case fails or takes too long is ended, and the next case starts another.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import socket
import subprocess
import sys
import traceback
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[2]
SECONDS: Final = 60.0
"""So long may a case take; the first of a pair has its imports besides."""


@dataclass(frozen=True)
class Answer:
    """What a case returned in one of the processes, and what it printed there."""

    value: Any
    printed: str


class Duo:
    """The pair; ``ask`` starts it where there is none."""

    def __init__(self) -> None:
        self._pair: list[subprocess.Popen[str]] = []
        self._lines: list[Queue[str]] = []

    def ask(self, case: str, *, seconds: float = SECONDS, **arguments: Any) -> list[Answer]:
        """Return the answers of both processes to a case, by rank.

        Raises:
            AssertionError: one failed, with its traceback, or has not answered in time: names the case.
        """
        if not self._pair:
            self._start()
            self._collect("the import of tpsprune", SECONDS)
        for each in self._pair:
            assert each.stdin is not None
            each.stdin.write(json.dumps({"case": case, "arguments": arguments}) + "\n")
            each.stdin.flush()
        return self._collect(case, seconds)

    def close(self) -> None:
        """End both."""
        pair, self._pair = self._pair, []
        for each in pair:
            each.kill()
        for each in pair:
            each.communicate()

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        names = {"TORCHELASTIC_RUN_ID": "duo", "GROUP_RANK": "0", "ACCELERATE_USE_CPU": "true"}
        self._lines = []
        for rank in ("0", "1"):
            own = {"RANK": rank, "LOCAL_RANK": rank, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.scale.duo"],
                cwd=ROOT,
                env=os.environ | shared | names | own,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._pair.append(process)
            self._lines.append(Queue())
            assert process.stdout is not None
            Thread(target=_forward, args=(process.stdout, self._lines[-1]), daemon=True).start()

    def _collect(self, case: str, seconds: float) -> list[Answer]:
        answers = []
        faults = []
        for rank, lines in enumerate(self._lines):
            try:
                answer = json.loads(lines.get(timeout=seconds) or '{"fault": "its process has ended"}')
            except Empty:
                answer = {"fault": f"no answer within {seconds:g} s"}
            if "fault" in answer:
                faults.append(f"'{case}' on rank {rank}: {answer['fault']}")
                seconds = 5.0  # The other may wait for this one.
            else:
                answers.append(Answer(answer["value"], answer["printed"]))
        if faults:
            self.close()
            raise AssertionError("\n".join(faults))
        return answers


def _forward(stdout: IO[str], lines: Queue[str]) -> None:
    for line in stdout:
        lines.put(line)
    lines.put("")


def _serve(answers: IO[str]) -> None:
    """Answer cases until there are no more."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=SECONDS))
    import tpsprune.loop.watch  # noqa: F401 -- so that no case pays for it

    print(json.dumps({"value": None, "printed": ""}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        module, function = asked["case"].split(":")
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                value = getattr(importlib.import_module(module), function)(**asked["arguments"])
            answer = {"value": value, "printed": printed.getvalue()}
        except Exception:  # noqa: BLE001 -- told to the test, which fails with it
            answer = {"fault": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # What libraries print at the level of the process must not pass for an answer.
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(own)
