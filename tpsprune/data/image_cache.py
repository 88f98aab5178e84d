"""Decoded images, kept as one ``.npy`` file of uint8 per source, memory-mapped when read again.

A file is written beside its place and renamed when it is whole: a kill or a full disk leaves the cache as
it was. Shapes: n images, c channels, s pixels a side.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from tpsprune.data.paths import expanded
from tpsprune.errors import DataError

__all__ = ["cache_folder", "cache_key", "read_cache", "write_cache"]

FORMAT = 1
STALE_SECONDS = 24 * 3600


def cache_folder(named: str | None) -> Path:
    """Return the folder of the cache: as named, else in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    if named is not None:
        return expanded(named, "task.data.cache")
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
    part = path.with_name(f"{path.stem}-{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_stale(path.parent)
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
            f"({error.strerror or error}); a folder with room enough would do"
        ) from error
    finally:
        # Once renamed it is gone; a part that cannot be unlinked must not hide why it is one.
        with suppress(OSError):
            part.unlink()


def _drop_stale(folder: Path) -> None:
    """Remove what a kill has left behind; another writer's part is younger."""
    for part in folder.glob("images-*.part"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()
