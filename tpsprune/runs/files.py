"""Files that are either wholly written or not there: write beside, flush to the disk, rename."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final

from tpsprune.errors import CannotWriteError, RunFolderError

__all__ = [
    "cannot_write",
    "open_regular",
    "read_json",
    "read_text",
    "sync_folder",
    "to_json_text",
    "write_bytes_atomically",
    "write_json_atomically",
    "write_text_atomically",
    "writing",
]

_WORDS: Final[dict[int, str]] = {
    errno.ENOSPC: "no space left on the device while writing {path}; free some",
    errno.EDQUOT: "the disk quota is used up while writing {path}; free some",
    errno.EFBIG: "{path} would grow beyond the file size limit (ulimit -f); raise it",
    errno.EROFS: "{path} lies on a read-only file system; choose another folder",
    errno.EACCES: "not permitted to write {path}; choose another folder",
    errno.EPERM: "not permitted to write {path}; choose another folder",
    errno.ENOTDIR: "cannot write {path}: a part of it is a file, not a folder; choose another place",
    errno.EEXIST: "cannot write {path}: a part of it is a file, not a folder; choose another place",
    errno.EISDIR: "cannot write {path}: a folder is in its place; move it away",
}


def cannot_write(path: Path, error: OSError) -> CannotWriteError:
    """Put into words why ``path`` could not be written, and what would do."""
    words = _WORDS.get(error.errno or 0, f"cannot write {{path}}: {error.strerror or error}")
    return CannotWriteError(words.format(path=path))


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write ``path`` to: after a crash the old file or the new one is there, never a part.

    Written beside under ``.NAME.tmp-PID``, flushed to the disk, renamed, and the folder flushed too,
    because a rename that is not on the disk does not outlive a power cut.

    Raises:
        RunFolderError: no space, not permitted, read-only; nothing is left beside.
    """
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all; see ``writing``.

    Raises:
        RunFolderError: it cannot be written; nothing is left beside.
    """
    with writing(path) as file:
        file.write(content)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with Unix line ends; see ``write_bytes_atomically``."""
    write_bytes_atomically(path, text.encode())


def write_json_atomically(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, keys in the order given; see ``write_bytes_atomically``.

    Raises:
        RunFolderError: it cannot be written.
        ValueError: a number is not finite, which JSON cannot say; the file is as it was.
    """
    write_text_atomically(path, to_json_text(value))


def to_json_text(value: Any) -> str:
    """Return ``value`` as this package writes JSON: two spaces, order kept, no ``NaN``, a last line end.

    >>> print(to_json_text({"b": 1, "a": "π"}), end="")
    {
      "b": 1,
      "a": "π"
    }
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        RunFolderError: it is not there, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{path} is not UTF-8 text: it was changed from outside") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunFolderError: it is missing, cannot be read, or is not JSON; the message names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is not there") from error
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path} is damaged: line {error.lineno} is not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{path} is damaged: byte {error.start} is not UTF-8") from error


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read; a pipe or a device, which could wait or flow for ever, is refused.

    Raises:
        OSError: it is not there, not permitted, a folder, or no regular file.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 -- Path.open takes no opener
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
