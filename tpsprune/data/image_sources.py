"""Where image files lie: a folder, or a zip that is read in place and never unpacked to disk.

Both hold ``train/CLASS/*.jpg|jpeg|png`` and ``test/CLASS/…``; files of other kinds, hidden files and
deeper folders are passed over.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from tpsprune.errors import DataError

__all__ = ["Entry", "FolderSource", "Source", "ZipSource", "opened"]

SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = ("train", "test")
MAX_ENTRY_BYTES = 2**28


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One image file: split, class and file name, size, and a stamp that changes with its content.

    The stamp is the time of change in nanoseconds in a folder, the CRC-32 in a zip.
    """

    split: str
    label: str
    name: str
    bytes: int
    stamp: int

    @property
    def path(self) -> str:
        """Where it lies in its source, with slashes."""
        return f"{self.split}/{self.label}/{self.name}"


class Source(Protocol):
    """Image files by split and class."""

    @property
    def identity(self) -> str:
        """What tells this source from others beyond its entries."""

    def classes(self) -> frozenset[tuple[str, str]]:
        """Return every (split, class) that has a folder, empty ones too."""

    def entries(self) -> list[Entry]:
        """Return all images, sorted."""

    def read(self, entry: Entry) -> bytes:
        """Return one file as it is stored."""


@final
class FolderSource:
    """Images in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.identity = str(root.resolve())

    def classes(self) -> frozenset[tuple[str, str]]:
        """Return every (split, class) that has a folder, empty ones too."""
        return frozenset(
            (split, folder.name)
            for split in SPLITS
            if (self._root / split).is_dir()
            for folder in (self._root / split).iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
        )

    def entries(self) -> list[Entry]:
        """Return all images, sorted."""
        found = []
        for split, label in self.classes():
            for file in (self._root / split / label).iterdir():
                if _is_image(file.name) and file.is_file():
                    facts = file.stat()
                    found.append(Entry(split, label, file.name, facts.st_size, facts.st_mtime_ns))
        return sorted(found)

    def read(self, entry: Entry) -> bytes:
        """Return one file as it is stored.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return (self._root / entry.path).read_bytes()
        except OSError as error:
            raise DataError(f"{self._root / entry.path}: cannot be read ({error.strerror})") from error


@final
class ZipSource:
    """Images in a zip; one folder round everything is looked through."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        # CRCs tell contents apart, so a zip may be moved and its cache found again.
        self.identity = "zip"
        tops = {name.split("/", 1)[0] for name in archive.namelist()} - {"__MACOSX"}
        self._inside = f"{tops.pop()}/" if len(tops) == 1 and not tops & set(SPLITS) else ""

    def classes(self) -> frozenset[tuple[str, str]]:
        """Return every (split, class) that has a folder, empty ones too."""
        return frozenset((split, label) for split, label, name, _ in self._walk())

    def entries(self) -> list[Entry]:
        """Return all images, sorted."""
        return sorted(
            Entry(split, label, name, info.file_size, info.CRC)
            for split, label, name, info in self._walk()
            if _is_image(name)
        )

    def read(self, entry: Entry) -> bytes:
        """Return one file as it is stored.

        Raises:
            DataError: it is encrypted, damaged, packed in an unknown way, or unpacks to more than
                256 MiB.
        """
        if entry.bytes > MAX_ENTRY_BYTES:
            raise DataError(
                f"{entry.path}: unpacks to {entry.bytes} bytes; at most {MAX_ENTRY_BYTES} are read"
            )
        try:
            return self._archive.read(self._inside + entry.path)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            raise DataError(f"{entry.path}: cannot be read from the zip ({error})") from error

    def _walk(self) -> Iterator[tuple[str, str, str, zipfile.ZipInfo]]:
        for info in self._archive.infolist():
            if not info.filename.startswith(self._inside):
                continue
            parts = info.filename.removeprefix(self._inside).split("/")
            if len(parts) == 3 and parts[0] in SPLITS and parts[1] and not parts[1].startswith("."):
                yield parts[0], parts[1], parts[2], info


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open a folder or a zip of images.

    Raises:
        DataError: nothing is there, or it is neither.
    """
    if path.is_dir():
        yield FolderSource(path)
        return
    if not path.exists():
        raise DataError(
            f"task.data.path: {path} is not there; a folder or zip that holds train/CLASS/*.jpg|png and "
            "test/CLASS/*.jpg|png would do"
        )
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"task.data.path: {path} is neither a folder nor a sound zip ({error})") from error
    with archive:
        yield ZipSource(archive)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
