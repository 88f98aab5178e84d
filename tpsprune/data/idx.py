"""IDX files, as MNIST and Fashion-MNIST come: four files in a folder, plain or gzipped.

An IDX file is a 4-byte magic number (0, 0, 8 for uint8, number of axes), one big-endian uint32 per axis,
and the bytes. Source: Y. LeCun, C. Cortes and C. Burges, The MNIST Database, "File formats".
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tpsprune.data.images import image_dataset
from tpsprune.data.paths import expanded
from tpsprune.data.splits import Dataset, Split
from tpsprune.errors import DataError
from tpsprune.recipe.task import IdxData

__all__ = ["idx_dataset", "read_idx"]

UINT8_CODE = 8
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path, axes: Literal[1, 3]) -> Tensor:
    """Return the uint8 tensor in an IDX file of so many axes; ``.gz`` files are unpacked in memory.

    Raises:
        DataError: not an IDX file of uint8 with so many axes, or not as many bytes as its head says.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    content = _unpacked(raw, path) if path.suffix == ".gz" else raw
    head_bytes = 4 + 4 * axes
    if len(content) < head_bytes:
        raise DataError(
            f"{path}: cut short: an IDX head of {head_bytes} bytes is expected, {len(content)} were found"
        )
    magic = int.from_bytes(content[:4], "big")
    wanted = UINT8_CODE << 8 | axes
    if magic != wanted:
        raise DataError(
            f"{path}: begins with {magic:#010x}, where an IDX file of uint8 with {axes} axes begins "
            f"with {wanted:#010x}"
        )
    shape = struct.unpack(f">{axes}I", content[4:head_bytes])
    expected = head_bytes + math.prod(shape)
    if len(content) != expected:
        fault = "cut short" if len(content) < expected else "too long"
        raise DataError(f"{path}: {fault}: {expected} bytes are expected, {len(content)} were found")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head_bytes).reshape(shape).copy())


def idx_dataset(data: IdxData) -> Dataset:
    """Return the images of a folder of IDX files; validation is drawn off by class with ``split_seed``.

    Raises:
        DataError: a folder or file is missing, cut short, of another format, or labels and images do not
            go together.
    """
    folder = expanded(data.folder, "task.data.folder")
    if not folder.is_dir():
        names = ", ".join(f"{name}[.gz]" for pair in FILES.values() for name in pair)
        raise DataError(
            f"task.data.folder: {folder} is not a folder; one that holds {names} would do "
            "(`apt-get install dataset-fashion-mnist` puts Fashion-MNIST into "
            "/usr/share/datasets/fashion-mnist)"
        )
    pool = _read_pair(folder, *FILES["train"])
    test = _read_pair(folder, *FILES["test"])
    if pool.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"{folder}: training images are of {_side(pool)}, test images of {_side(test)} pixels; "
            "one size for both would do"
        )
    classes = int(pool.labels.max()) + 1
    if int(test.labels.max()) >= classes:
        raise DataError(
            f"{folder}: the test labels go up to {int(test.labels.max())}, the training labels to "
            f"{classes - 1}; a test of classes that are trained on would do"
        )
    return image_dataset(
        folder.resolve().name,
        pool,
        test,
        classes=classes,
        validation_share=data.validation_share,
        train_limit=data.train_limit,
        augment=data.augment,
        generator=torch.Generator().manual_seed(data.split_seed),
    )


def _read_pair(folder: Path, images_name: str, labels_name: str) -> Split:
    images_path, labels_path = _found(folder, images_name), _found(folder, labels_name)
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1)
    if images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{labels_path}: holds {labels.shape[0]} labels for the {images.shape[0]} images of "
            f"{images_path.name}; one label per image would do"
        )
    if images.numel() == 0:
        raise DataError(f"{images_path}: holds no images; at least one would do")
    return Split(images.unsqueeze(1), labels.to(torch.int64))


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"task.data.folder: {folder} lacks {name}; that file, plain or with .gz, would do")


def _unpacked(raw: bytes, path: Path) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        # A stream that ends early gives what it holds, and the length tells.
        return stream.decompress(raw)
    except zlib.error as error:
        raise DataError(f"{path}: is not a sound gzip file ({error}); a fresh copy would do") from error


def _side(split: Split) -> str:
    return f"{split.inputs.shape[-2]}×{split.inputs.shape[-1]}"
