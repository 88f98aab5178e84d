"""Small folders and zips of real image files, for the tests beside this file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHADES = {"cat": (200, 40, 30), "dog": (20, 180, 60), "eel": (10, 20, 220)}


def picture(seed: int, shade: tuple[int, int, int], side: int = 12) -> NDArray[np.uint8]:
    """Return noise (side, side, 3) round a colour."""
    noise = np.random.default_rng(seed).integers(-10, 10, (side, side, 3))
    return (np.asarray(shade) + noise).clip(0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """Return the pixels as an image file; PNGs of equal size have equally many bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, compress_level=0)
    return stream.getvalue()


def files(train: int = 8, test: int = 3, side: int = 12) -> dict[str, bytes]:
    """Return PNG files by path: so many a class and split."""
    return {
        f"{split}/{name}/{i:02}.png": encoded(picture(1000 * i + len(split), shade, side))
        for split, count in (("train", train), ("test", test))
        for name, shade in SHADES.items()
        for i in range(count)
    }


def in_folder(root: Path, content: dict[str, bytes]) -> Path:
    """Write the files below ``root``."""
    for name, raw in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return root


def in_zip(path: Path, content: dict[str, bytes]) -> Path:
    """Write the files into a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in content.items():
            archive.writestr(name, raw)
    return path
