"""A folder or a zip of images by split and class, decoded once and kept as one ``.npy`` file of uint8.

Both hold ``train/CLASS/*.jpg|jpeg|png`` and ``test/CLASS/…``; files of other kinds, hidden files and deeper
folders are passed over. A zip is read in place and never unpacked to disk. The cache is written beside its
place and renamed when it is whole: a kill or a full disk leaves it as it was; read again it is memory-mapped.
Shapes: n images, c channels, s pixels a side.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from tpsprune.data.dataset import Dataset, Split, expand_home
from tpsprune.data.images import image_dataset
from tpsprune.errors import DataError
from tpsprune.recipe.task import ImageFolderData
from tpsprune.runs import beside, open_regular, read_bytes


def image_folder_dataset(data: ImageFolderData) -> Dataset:
    """Return the images of ``train/CLASS/`` and ``test/CLASS/``; classes are numbered by sorted name.

    The first reading decodes every file into the cache; later ones map it. Validation is drawn off the
    training images by class with ``split_seed``.

    Raises:
        DataError: nothing is there, a split or class is empty, a test class is not trained on, an image is
            damaged, or the cache cannot be written.
    """
    path = expand_home(data.path, "task.data.path")
    with open_source(path) as source:
        entries = source.entries()
        names = _class_names(source, entries, path)
        images = _images(source, entries, data)
    labels = torch.tensor([names.index(entry.label) for entry in entries])
    # Entries are sorted, so the test images come first; slices are still memory-mapped.
    tests = sum(entry.split == "test" for entry in entries)
    return image_dataset(
        data,
        path.resolve().stem,
        Split(images[tests:], labels[tests:]),
        Split(images[:tests], labels[:tests]),
        len(names),
        torch.Generator().manual_seed(data.split_seed),
    )


def _class_names(source: Source, entries: list[Entry], path: Path) -> list[str]:
    folders = source.classes()
    for split in ("train", "test"):
        if not any(there == split for there, _ in folders):
            raise DataError(
                f"task.data.path: {path} has no class folders in {split}/; expected images as "
                f"{split}/CLASS/*.jpg|png"
            )
    filled = Counter((entry.split, entry.label) for entry in entries)
    for split, label in sorted(folders):
        if (split, label) not in filled:
            raise DataError(
                f"task.data.path: {path} holds no image in {split}/{label}/; add at least one .jpg or "
                ".png, or remove the folder"
            )
    trained = sorted(label for split, label in folders if split == "train")
    strange = sorted({label for split, label in folders if split == "test"} - set(trained))
    if strange:
        raise DataError(
            f"task.data.path: {path} has the class '{strange[0]}' in test/ and not in train/; expected "
            "only classes that are trained on"
        )
    if len(trained) < 2:
        raise DataError(
            f"task.data.path: {path} holds only one class, '{trained[0]}'; expected two classes or more"
        )
    return trained


def _images(source: Source, entries: list[Entry], data: ImageFolderData) -> Tensor:
    stamps = [(entry.path, entry.bytes, entry.stamp) for entry in entries]
    key = cache_key(source.identity, stamps, data.size, data.channels)
    file = cache_folder(data.cache) / f"images-{key}.npy"
    shape = (len(entries), data.channels, data.size, data.size)
    images = read_cache(file, shape)
    if images is None:
        pixels = (decode(source.read(entry), entry.path, data.size, data.channels) for entry in entries)
        write_cache(file, pixels, shape)
        images = read_cache(file, shape)
    if images is None:
        raise DataError(f"{file}: does not read back as it was written; choose another cache folder")
    return torch.from_numpy(images)


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
            return read_bytes(self._root / entry.path, MAX_ENTRY_BYTES)
        except OSError as error:
            raise DataError(f"{self._root / entry.path}: cannot be read ({error.strerror})") from error


@final
class ZipSource:
    """Images in a zip; a single folder round everything is skipped."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        # CRCs distinguish contents, so a zip may be moved and its cache found again.
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


Source: TypeAlias = FolderSource | ZipSource


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a folder or a zip of images.

    Raises:
        DataError: nothing is there, or it is neither.
    """
    if path.is_dir():
        yield FolderSource(path)
        return
    if not path.exists():
        raise DataError(
            f"task.data.path: {path} is not there; expected a folder or zip that holds "
            "train/CLASS/*.jpg|png and test/CLASS/*.jpg|png"
        )
    try:
        file = open_regular(path)
    except OSError as error:
        raise DataError(f"task.data.path: {path} cannot be read ({error.strerror or error})") from error
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"task.data.path: {path} is neither a folder nor a sound zip ({error})"
            ) from error
        with archive:
            yield ZipSource(archive)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


MAX_PIXELS = 2**26
"""Largest image that is decoded, 67 million pixels: a small file can claim to hold far more."""

MODES = {1: "L", 3: "RGB"}
FAULTS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on files that are damaged or no images."""


def decode(raw: bytes, name: str, size: int, channels: int) -> NDArray[np.uint8]:
    """Return the pixels (channels, size, size) of a JPEG or PNG file.

    An image of another size is scaled (bicubic, antialiased) until its shorter side is ``size`` and its
    centre is cropped. Orientation tags are not followed; transparency is dropped.

    Raises:
        DataError: naming the file: it is no sound image, larger than ``MAX_PIXELS``, or of more than
            8 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of large and of oddly transparent images; the one is refused, the other harmless.
            warnings.simplefilter("ignore")
            return _pixels(raw, name, size, channels)
    except FAULTS as error:
        # Pillow names the buffer it read from where it means the file.
        message = str(error).partition(" <_io")[0] or type(error).__name__
        raise DataError(f"{name}: is not a sound JPEG or PNG image ({message}); leave it out") from error


def _pixels(raw: bytes, name: str, size: int, channels: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise DataError(
                f"{name}: is of {opened.width}×{opened.height} pixels; at most {MAX_PIXELS} in all are read"
            )
        if opened.mode.startswith(("I", "F")):
            raise DataError(f"{name}: has more than 8 bits a channel; expected 8-bit images")
        # JPEGs can be decoded at a fraction of their size, far cheaper; twice the size needed is kept.
        opened.draft(None, (2 * size, 2 * size))
        image = opened.convert(MODES[channels])
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size))
        pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


FORMAT = 1


def cache_folder(named: str | None) -> Path:
    """Return the folder of the cache: as named, else in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    if named is not None:
        return expand_home(named, "task.data.cache")
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "tpsprune"


def cache_key(identity: str, entries: Iterable[tuple[str, int, int]], size: int, channels: int) -> str:
    """Return a name that changes with any file's path, size or stamp, and with how images are decoded."""
    content = json.dumps([FORMAT, identity, size, channels, list(entries)])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def read_cache(path: Path, shape: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
    """Return the images (n, c, s, s) in ``path``, mapped copy-on-write; ``None`` if they are not there.

    A file that is damaged or of another shape counts as not there: it can be made again.
    """
    try:
        images = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(images, np.ndarray) and images.shape == shape and images.dtype == np.uint8
    return images if fits else None


def write_cache(path: Path, images: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int]) -> None:
    """Write ``images``, each (c, s, s) and taken one at a time, to ``path``.

    Bytes are written rather than mapped: on a full disk a mapped page ends the process, a write raises.

    Raises:
        DataError: the file cannot be written; nothing is left of it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as part:
            with part.open("xb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for image in images:
                    file.write(np.ascontiguousarray(image).data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    except OSError as error:
        raise DataError(
            f"task.data.cache: the decoded images cannot be written to {path.parent} "
            f"({error.strerror or error}); choose a folder with enough room"
        ) from error
