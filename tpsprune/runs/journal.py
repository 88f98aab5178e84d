"""A journal: one JSON object a line, on the disk before the call returns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, final

from tpsprune.errors import RunFolderError
from tpsprune.runs.files import cannot_write, sync_folder, write_bytes_atomically

__all__ = ["Journal"]

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Journal:
    """Records appended to ``path``, each flushed to the disk: a kill loses at most the line being written.

    A last line without its line end is what a kill leaves behind. It was never acknowledged: ``read``
    leaves it out and says so, the next append cuts it away.
    """

    path: Path

    def append(self, record: dict[str, Any]) -> None:
        """Append one record and flush it to the disk; see ``append_all``."""
        self.append_all([record])

    def append_all(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records in one write and one flush.

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
        """Return the records, and whether a cut-off last line was left out; no file means no records.

        Raises:
            RunFolderError: a line that is not the cut-off last one is damaged; names its number.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], False
        except OSError as error:
            raise RunFolderError(f"cannot read {self.path}: {error.strerror or error}") from error
        *lines, tail = content.split(b"\n")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            record = _from_line(line)
            if record is None:
                raise RunFolderError(
                    f"{self.path} is damaged: line {number} of {len(lines)} is not a JSON object; "
                    f"restore the file, or start anew (--again, or another --out)"
                )
            records.append(record)
        last = _from_line(tail)
        return (records, bool(tail)) if last is None else ([*records, last], False)

    def parsed(self, parse: Callable[[dict[str, Any]], T]) -> list[T]:
        """Return the records as ``parse`` makes values of them; a cut-off last line is left out.

        Raises:
            RunFolderError: a line is damaged or is no such record; names its number.
        """
        values = []
        for number, record in enumerate(self.read()[0], 1):
            try:
                values.append(parse(record))
            except (KeyError, TypeError, ValueError) as error:
                raise RunFolderError(
                    f"{self.path} line {number} is no record of this journal ({error!r}): "
                    "the file was changed from outside; start anew (--again, or another --out)"
                ) from error
        return values

    def truncate_to(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite the journal with the records that ``keep`` holds for; return how many were dropped.

        The file is replaced whole or not at all. A cut-off last line goes too, uncounted.

        Raises:
            RunFolderError: the journal is damaged or cannot be written.
        """
        records, cut_off = self.read()
        kept = [record for record in records if keep(record)]
        if cut_off or len(kept) < len(records):
            write_bytes_atomically(self.path, b"".join(map(_to_line, kept)))
        return len(records) - len(kept)


def _append(file: BinaryIO, content: bytes) -> None:
    end = _mended_end(file)
    try:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise


def _mended_end(file: BinaryIO) -> int:
    # A record glued to a cut-off line would be lost with it at the next reading.
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


def _to_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _from_line(line: bytes) -> dict[str, Any] | None:
    # A JSON object cut short is never a JSON object, so whatever parses is whole.
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
