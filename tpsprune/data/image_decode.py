"""One image file to pixels."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tpsprune.errors import DataError

__all__ = ["MAX_PIXELS", "decoded"]

MAX_PIXELS = 2**26
"""Largest image that is decoded, 67 million pixels: a small file can claim to hold far more."""

MODES = {1: "L", 3: "RGB"}
FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on files that are damaged or no images."""


def decoded(raw: bytes, name: str, size: int, channels: int) -> NDArray[np.uint8]:
    """Return the pixels (channels, size, size) of a JPEG or PNG file.

    An image of another size is scaled (bicubic, antialiased) until its shorter side is ``size`` and its
    centre is cut out. Orientation tags are not followed; transparency is dropped.

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
        words = str(error).partition(" <_io")[0] or type(error).__name__
        raise DataError(f"{name}: is not a sound JPEG or PNG image ({words}); leave it out") from error


def _pixels(raw: bytes, name: str, size: int, channels: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise DataError(
                f"{name}: is of {opened.width}×{opened.height} pixels; at most {MAX_PIXELS} in all are read"
            )
        if opened.mode.startswith(("I", "F")):
            raise DataError(f"{name}: has more than 8 bits a channel; 8-bit images would do")
        # JPEGs can be decoded at a fraction of their size, far cheaper; twice what is needed stays.
        opened.draft(None, (2 * size, 2 * size))
        image = opened.convert(MODES[channels])
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size))
        pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
