"""Jobs that a worker is given in the tests; a worker imports this file."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tpsprune.errors import DivergedError


def end_itself(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_the_first_time(place: str) -> str:
    """Leave both process numbers and wait to be killed; once they are there, leave a line and end."""
    folder = Path(place)
    if not (folder / "pids").exists():
        (folder / "new").write_text(f"{os.getppid()} {os.getpid()}")
        (folder / "new").rename(folder / "pids")
        time.sleep(60)
    with (folder / "done").open("a") as file:
        file.write("done\n")
    return place


def leave_a_line(place: str) -> str:
    with Path(place).open("a") as file:
        file.write("done\n")
    return place


def diverge(_: Any) -> None:
    raise DivergedError("step 3: the loss is nan")


def find_variable(name: str) -> str | None:
    return os.environ.get(name)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def return_harm(folder: str) -> Harmful:
    return Harmful(folder)
