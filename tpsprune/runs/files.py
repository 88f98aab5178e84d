"""Files that are wholly written or not there, journals that lose at most a line, JSON read strictly."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final, TypeVar, final

from tpsprune.errors import CannotWriteError, RunFolderError
from tpsprune.records import EnergyReport, Fidelity, RunResult, dump, is_newer, load
from tpsprune.records.strict import escape_json, read_bytes, refuse_many, strict_json

T = TypeVar("T")

TEMPORARY: Final = ".tmp-tpsprune-"
"""How the names of temporary folders begin: no file of anybody else is named so."""

MAX_JOURNAL_VALUES: Final = 2**22
_WORDS: Final[dict[int, str]] = {
    errno.ENOSPC: "no space left on the device while writing {path}; free some",
    errno.EDQUOT: "the disk quota is used up while writing {path}; free some",
    errno.EFBIG: "{path} would grow beyond the file size limit (ulimit -f); raise it",
    errno.EROFS: "{path} lies on a read-only file system; choose another folder",
    errno.EACCES: "not permitted to write {path}; choose another folder",
    errno.EPERM: "not permitted to write {path}; choose another folder",
    errno.ENOTDIR: "cannot write {path}: a part of it is a file, not a folder; choose another place",
    errno.EEXIST: "cannot write {path}: a part of it is a file, not a folder; choose another place",
    errno.ELOOP: "cannot write {path}: it is a link, which is not followed; move it away",
    errno.EISDIR: "cannot write {path}: a folder is in its place; move it away",
}


def cannot_write(path: Path, error: OSError) -> CannotWriteError:
    """Return the error of a ``path`` that could not be written, with a remedy."""
    words = _WORDS.get(error.errno or 0)
    plain = f"cannot write {path}: {error.strerror or error}"
    return CannotWriteError(words.format(path=path) if words else plain)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a path to write a new ``path`` at, in a temporary folder next to it, which is removed at the end.

    A kill leaves that folder; whoever writes there next removes it, see ``sweep``. A folder and not a file,
    because libraries write files of their own beside the one that they are asked for.

    Raises:
        OSError: it cannot be made.
    """
    with _opened(path.parent) as handle:
        _remove_left(path.parent, handle)
        with suppress(OSError):  # No locks on this file system: then nothing is swept on it either.
            fcntl.flock(handle, fcntl.LOCK_SH)
        with TemporaryDirectory(prefix=TEMPORARY, dir=path.parent, ignore_cleanup_errors=True) as temporary:
            yield Path(temporary, path.name)


def sweep(folder: Path, *, below: bool = True) -> None:
    """Remove what killed processes left half written in ``folder`` and below; what is being written stays.

    Who writes into a folder holds a shared lock on it, which ends with the process: no process number can
    be taken for another's, in another container neither. Where locks do not work nothing is removed.
    """
    for place, folders, _ in islice(os.walk(folder), None if below else 1):
        if any(name.startswith(TEMPORARY) for name in folders):
            with suppress(OSError), _opened(Path(place)) as handle:
                _remove_left(Path(place), handle)


def _remove_left(folder: Path, handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    for left in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write ``path`` at: after a crash the old file or the new one is there, never a part.

    Written in the same folder, see ``beside``, flushed to the disk, renamed, and the folder flushed too,
    because a rename that is not on the disk does not outlive a power failure.

    Raises:
        RunFolderError: no space, not permitted, read-only; no temporary file is left.
    """
    try:
        with beside(path) as temporary:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Give an open file to write ``path`` to; see ``replacing``."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all; see ``writing``.

    Raises:
        RunFolderError: it cannot be written; no temporary file is left.
    """
    with writing(path) as file:
        file.write(content)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with Unix line ends; see ``write_bytes_atomically``."""
    write_bytes_atomically(path, text.encode())


def write_json_atomically(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, keys in their order; see ``write_bytes_atomically``.

    Raises:
        RunFolderError: it cannot be written.
        ValueError: a number is not finite, which JSON cannot hold; the file is as it was.
    """
    write_text_atomically(path, to_json_text(value))


def to_json_text(value: Any) -> str:
    """Return ``value`` as this package writes JSON: two spaces, order kept, no ``NaN``, a last line end.

    What cannot be seen is written as an escape.

    >>> print(to_json_text({"b": 1, "a": "π"}), end="")
    {
      "b": 1,
      "a": "π"
    }
    """
    return escape_json(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        RunFolderError: it is not there, cannot be read, too long, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
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
        return strict_json(read_bytes(path))
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is not there") from error
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    with _opened(folder) as handle:
        os.fsync(handle)


def write_result(path: Path, result: RunResult) -> None:
    """Write ``result.json``, whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
        ValueError: it could not be read again, which is a fault of this package, not of the user.
    """
    raw = dump(result)
    load(RunResult, raw)
    write_json_atomically(path, raw)


def read_result(path: Path) -> RunResult:
    """Read ``result.json``; its ``folder`` is the one that it lies in.

    Raises:
        RunFolderError: it is missing, damaged, of a newer version, or no result; names the first place.
    """
    return replace(_document(path, RunResult, "a result")[0], folder=str(path.parent))


def read_fidelity(path: Path) -> Fidelity:
    """Read ``fidelity.json``.

    Raises:
        RunFolderError: as ``read_result``.
    """
    return _document(path, Fidelity, "a panel of fidelity")[0]


def energy_report_text(raw: Mapping[str, Any]) -> str:
    """Return a comparison's report as the text of its file, once it is found to be one.

    Raises:
        ValueError: it is none, which is a fault of this package, not of the user.
    """
    load(EnergyReport, raw)
    return to_json_text(raw)


def read_energy_report(path: Path) -> dict[str, Any]:
    """Read a comparison's report as it stands in its file; raises as ``read_result``."""
    return _document(path, EnergyReport, "an energy report")[1]


def _document(path: Path, kind: type[T], what: str) -> tuple[T, dict[str, Any]]:
    raw, current = read_json(path), str(getattr(kind, "SCHEMA", ""))
    found = raw.get("schema") if isinstance(raw, dict) else None
    if is_newer(found, current):
        raise RunFolderError(
            f"{path} was written by a newer tpsprune: it is {found}, this one reads {current}; upgrade"
        )
    try:
        return load(kind, raw), raw
    except ValueError as error:
        raise RunFolderError(f"{path} is not {what} this tpsprune can read: {error}") from error


@final
@dataclass(frozen=True, slots=True)
class Journal:
    """Records appended to ``path``, each flushed to the disk: a kill loses at most the line being written.

    A last line without its line end is what a kill leaves behind. It was never acknowledged: ``read``
    leaves it out and reports it, the next append removes it.
    """

    path: Path

    def append(self, record: object) -> None:
        """Append one record and flush it to the disk; see ``append_all``."""
        self.append_all([record])

    def append_all(self, records: Iterable[object]) -> None:
        """Append records, or JSON objects as they are, in one write and one flush.

        Raises:
            RunFolderError: they cannot be written; the journal is as it was.
            ValueError: a number is not finite; the journal is as it was.
        """
        content = b"".join(map(_to_line, records))
        if not content:
            return
        try:
            is_new = not self.path.exists()
            with self.path.open("ab+") as file:
                _append(file, content)
            if is_new:
                sync_folder(self.path.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the records, and whether a truncated last line was left out; no file means no records.

        Raises:
            RunFolderError: a line that is not the truncated last one is damaged; names its number.
        """
        try:
            content = read_bytes(self.path, follow=False)
        except FileNotFoundError:
            return [], False
        except OSError as error:
            raise RunFolderError(f"cannot read {self.path}: {error.strerror or error}") from error
        try:
            refuse_many(content, MAX_JOURNAL_VALUES)
        except ValueError as error:
            raise RunFolderError(f"{self.path} is no journal: {error}") from error
        *lines, tail = content.split(b"\n")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(_object(line))
            except ValueError as error:
                words = str(error).removeprefix("line 1 is ")
                raise RunFolderError(
                    f"{self.path} is damaged: line {number} of {len(lines)} is not a JSON object ({words}); "
                    f"restore the file, or start over (--again, or another --out)"
                ) from error
        last = _from_line(tail)
        return (records, bool(tail)) if last is None else ([*records, last], False)

    def parsed(self, kind: type[T]) -> list[T]:
        """Return the lines as records of one kind; a truncated last line is left out.

        Raises:
            RunFolderError: a line is damaged or is no such record; names its number.
        """
        values = []
        for number, record in enumerate(self.read()[0], 1):
            try:
                values.append(load(kind, record))
            except ValueError as error:
                raise RunFolderError(
                    f"{self.path} line {number} is no record of this journal ({error}): "
                    "the file was changed from outside; start over (--again, or another --out)"
                ) from error
        return values

    def truncate_to(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite the journal with the records that ``keep`` holds for; return how many were dropped.

        The file is replaced whole or not at all. A truncated last line is dropped too, uncounted.

        Raises:
            RunFolderError: the journal is damaged or cannot be written.
        """
        records, is_truncated = self.read()
        kept = [record for record in records if keep(record)]
        if is_truncated or len(kept) < len(records):
            write_bytes_atomically(self.path, b"".join(map(_to_line, kept)))
        return len(records) - len(kept)


def _append(file: BinaryIO, content: bytes) -> None:
    end = _repair_end(file)
    try:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise


def _repair_end(file: BinaryIO) -> int:
    # A record glued to a truncated line would be lost with it at the next reading.
    end = file.seek(0, os.SEEK_END)
    if not end:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    file.seek(0)
    content = file.read()
    tail_at = content.rfind(b"\n") + 1
    if _from_line(content[tail_at:]) is None:
        return file.truncate(tail_at)
    file.write(b"\n")
    return end + 1


def _to_line(record: object) -> bytes:
    return (
        json.dumps(
            record if isinstance(record, dict) else dump(record), ensure_ascii=False, allow_nan=False
        ).encode()
        + b"\n"
    )


def _object(line: bytes) -> dict[str, Any]:
    record = strict_json(line)
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__} is there")  # noqa: TRY004 -- a fault of the file
    return record


def _from_line(line: bytes) -> dict[str, Any] | None:
    # A truncated JSON object is never a JSON object, so whatever parses is whole.
    try:
        return _object(line)
    except ValueError:
        return None
