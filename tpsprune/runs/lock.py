"""One process per folder: a lock that a killed process lets go of by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final

from tpsprune.errors import RunFolderError
from tpsprune.runs.files import cannot_write

__all__ = ["exclusive"]

_FCNTL: Final[ModuleType | None] = import_module("fcntl") if find_spec("fcntl") else None


@contextmanager
def exclusive(lock: Path, beside: str = "start a run beside it with --again") -> Iterator[None]:
    """Hold a lock, a file two levels below the folder it stands for, for this process, with ``flock``.

    ``beside`` is what would do for somebody who does not want to wait.

    Where the system has no ``flock``, its mere existence is the lock; a kill leaves that behind, and
    the message then says which file to delete.

    Raises:
        RunFolderError: another process holds it, or it cannot be written.
    """
    with _flocked(lock, _FCNTL, beside) if _FCNTL else _created(lock):
        yield


@contextmanager
def _flocked(lock: Path, fcntl: ModuleType, beside: str) -> Iterator[None]:
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        _take(lock, handle, fcntl, beside)
        yield
    finally:
        os.close(handle)


def _take(lock: Path, handle: int, fcntl: ModuleType, beside: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(handle, 20, 0).decode(errors="replace") or "(unknown)"
        raise RunFolderError(
            f"{lock.parent.parent} is in use by process {holder}: wait for it to end, or {beside}"
        ) from error
    except OSError as error:
        raise cannot_write(lock, error) from error


@contextmanager
def _created(lock: Path) -> Iterator[None]:
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError as error:
        raise RunFolderError(
            f"{lock.parent.parent} is in use by another process; if there is none, delete {lock}"
        ) from error
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        yield
    finally:
        os.close(handle)
        lock.unlink(missing_ok=True)
