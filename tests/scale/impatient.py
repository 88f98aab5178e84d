"""``tpsprune`` as a module to launch: its processes wait for seconds only, and the second falls silent."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

from tpsprune.cli import main
from tpsprune.numerics import peers

CALLS = 5


def fall_silent(method: str) -> None:
    """Have the second process stop where it calls the method for the fifth time."""
    plain, calls = getattr(peers.Gathered, method), []

    def stopping(self: peers.Gathered, *arguments: Any) -> Any:
        calls.append(method)
        if len(calls) == CALLS and method != "sum":  # Until then all wait for a slow machine.
            peers.SILENCE = timedelta(seconds=3)  # type: ignore[misc]
        if self.rank == 1 and len(calls) == CALLS:
            os.kill(os.getpid(), signal.SIGSTOP)
        return plain(self, *arguments)

    setattr(peers.Gathered, method, stopping)


if __name__ == "__main__":
    peers.SILENCE = timedelta(seconds=20)  # type: ignore[misc]
    peers.ROLL_CALL = timedelta(seconds=1)  # type: ignore[misc]
    fall_silent(os.environ["SILENT_IN"])
    main()
