"""A run folder: its files, its lock, the machine it was made on, and how it is found to be resumed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, final

from tpsprune.errors import RunFolderError
from tpsprune.runs.files import Journal, cannot_write, sweep, sync_folder

PACKAGES: Final = ("tpsprune", "torch", "torch-pruning", "codecarbon", "numpy", "ripser", "safetensors")


def digest_of(text: str) -> str:
    """Return the first eight hexadecimal digits of SHA-256 of a resolved recipe's text.

    >>> digest_of("seed = 0")
    '989713f4'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:8]


T = TypeVar("T")


@final
class _Inside(Generic[T]):
    """Something in a folder, by its name there."""

    def __init__(self, name: str, kind: Callable[[Path], T]) -> None:
        self._name = name
        self._kind = kind

    def __get__(self, folder: RunFolder, _: type) -> T:
        return self._kind(folder.path / self._name)


@final
@dataclass(frozen=True, slots=True)
class RunFolder:
    """``ROOT/NAME-DIGEST`` and what lies in it; a folder is finished when its result is written, the last."""

    path: Path
    is_scratch: bool = False
    """Whether it is that of a process beside the first, and gone with it."""
    home: Path | None = None
    """The first process's folder, where this is that of a process beside it."""
    recipe = _Inside("recipe.toml", Path)
    """The recipe as resolved."""
    readings = _Inside("readings.jsonl", Journal)
    """The journal of signal readings."""
    energy = _Inside("energy.jsonl", Journal)
    """The journal of energy windows."""
    decisions = _Inside("decisions.jsonl", Journal)
    """The journal of verdicts on drawing and stopping."""
    plan = _Inside("plan.json", Path)
    """What was removed."""
    dense = _Inside("dense.safetensors", Path)
    """The dense model's tensors."""
    ticket = _Inside("ticket.safetensors", Path)
    """The ticket's tensors."""
    result = _Inside("result.json", Path)
    """What came out."""
    fidelity = _Inside("fidelity.json", Path)
    """How faithful the ticket is to the dense model, where that was read."""
    state = _Inside("state", Path)
    """The folder of the checkpoint."""

    @classmethod
    def create(cls, root: Path, name: str, digest: str, *, again: bool = False) -> RunFolder:
        """Make a new folder for a run; with ``again``, the next free of NAME-DIGEST, -2, -3 and so on.

        Raises:
            RunFolderError: it exists already, or cannot be made; the message names a remedy.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = cls(_make_free(root / f"{name}-{digest}", again=again))
            folder.state.mkdir()
            sync_folder(root)
        except OSError as error:
            raise cannot_write(root, error) from error
        return folder

    @classmethod
    def open_existing(cls, path: Path) -> RunFolder:
        """Open the run folder at ``path``.

        Raises:
            RunFolderError: nothing is there, or it is not a run folder.
        """
        if not path.exists():
            raise RunFolderError(f"{path} is not there; `ls {path.parent}` shows the runs that are")
        folder = cls(path)
        if not (folder.recipe.is_file() or folder.state.is_dir()):
            raise RunFolderError(f"{path} is not a run folder: it holds neither recipe.toml nor state/")
        return folder

    @classmethod
    def list_all(cls, root: Path, name: str, digest: str) -> list[RunFolder]:
        """Return all runs of this recipe, in the order in which they were begun."""
        return [cls(path) for path in _taken(root / f"{name}-{digest}")]

    @classmethod
    def find(cls, root: Path, name: str, digest: str) -> RunFolder:
        """Return the run to take up again: the last unfinished one of this recipe, else the last one.

        Raises:
            RunFolderError: there is none.
        """
        runs = cls.list_all(root, name, digest)
        if not runs:
            raise RunFolderError(
                f"no run of this recipe in {root} ({name}-{digest} is not there): "
                f"start it without --resume, or give the recipe and --out it was started with"
            )
        unfinished = [run for run in runs if not run.is_finished]
        return (unfinished or runs)[-1]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; a killed process lets go of it, and what it left is swept.

        Raises:
            RunFolderError: another process holds it.
        """
        try:
            self.state.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.state, error) from error
        with exclusive(self.state / "lock"):
            sweep(self.path)
            yield

    @property
    def is_finished(self) -> bool:
        """Whether the result is written, which is the last thing a run does."""
        return self.result.is_file()


def _make_free(path: Path, *, again: bool) -> Path:
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError as error:
            if not again:
                raise _exists(RunFolder(path)) from error
            number += 1
        else:
            return candidate


def _exists(folder: RunFolder) -> RunFolderError:
    if folder.is_finished:
        return RunFolderError(
            f"{folder.path} holds a finished run of this recipe: "
            f"run it once more with --again, or write elsewhere with --out"
        )
    return RunFolderError(
        f"{folder.path} holds an unfinished run of this recipe: "
        f"go on with --resume, start another with --again, or write elsewhere with --out"
    )


def _taken(path: Path) -> list[Path]:
    taken, number = ([path] if path.is_dir() else []), 2
    while (candidate := path.with_name(f"{path.name}-{number}")).is_dir():
        taken.append(candidate)
        number += 1
    return taken


@contextmanager
def exclusive(lock: Path, remedy: str = "start another run with --again") -> Iterator[None]:
    """Hold a lock, a file two levels below the folder it stands for, for this process.

    With ``flock``, which a killed process lets go of by itself. ``remedy`` is the alternative to
    waiting.

    Raises:
        RunFolderError: another process holds it, or it cannot be written.
    """
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        _take(lock, handle, remedy)
        yield
    finally:
        os.close(handle)


def _take(lock: Path, handle: int, remedy: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(handle, 20, 0).decode(errors="replace") or "(unknown)"
        raise RunFolderError(
            f"{lock.parent.parent} is in use by process {holder}: wait for it to end, or {remedy}"
        ) from error
    except OSError as error:
        raise cannot_write(lock, error) from error


def machine_facts() -> dict[str, Any]:
    """Return the kind of machine, without a name or address of it."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "python": sys.implementation.name,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
