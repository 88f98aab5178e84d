"""Labelled uint8 images: scikit-learn's digits, folders of IDX files, and what all kinds of images share.

An IDX file is a 4-byte magic number (0, 0, 8 for uint8, number of axes), one big-endian uint32 per axis,
and the bytes. Sources: Y. LeCun, C. Cortes and C. Burges, The MNIST Database, "File formats";
E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
(its test part, as scikit-learn ships it: 1,797 grey images of 8×8 pixels).
"""

from __future__ import annotations

import errno
import math
import struct
import zlib
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from tpsprune.data.dataset import (
    Dataset,
    Preparation,
    Split,
    channel_statistics,
    expand_home,
    require_every_class,
    require_rest,
    sklearn_data,
    split_off,
    stratified_order,
)
from tpsprune.errors import DataError
from tpsprune.recipe.task import DigitsData, IdxData, ImageFolderData
from tpsprune.records import TaskFacts
from tpsprune.runs import read_bytes

GREY_STEP: Final = 15
UINT8_CODE: Final = 8
MAX_BYTES: Final = 2**30
FILES: Final = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
VALIDATION: Final = "task.data.validation_share"
LIMIT: Final = "task.data.train_limit"


def image_dataset(
    data: DigitsData | IdxData | ImageFolderData,
    name: str,
    pool: Split,
    test: Split,
    classes: int,
    generator: torch.Generator,
) -> Dataset:
    """Draw validation off ``pool`` by class, keep ``train_limit`` of the rest, and measure its channels.

    Raises:
        DataError: fewer than two classes, or a part would be left without items of some class.
    """
    if int((pool.labels.bincount() > 0).sum()) < 2:
        raise DataError(f"task.data: {name} holds only one class; expected two classes or more")
    share, limit = data.validation_share, None
    if isinstance(data, DigitsData):
        share /= 1 - data.test_share  # Shares of digits are of all that there are, the test's among them.
    else:
        limit = data.train_limit
    train, validation = split_off(pool, stratified_order(pool.labels, generator), share, VALIDATION)
    for role, split in (("validation", validation), ("training", train)):
        require_every_class(split, role, pool, VALIDATION)
    if limit is not None:
        if limit > len(train):
            raise DataError(
                f"{LIMIT}: is {limit} images, {len(train)} are left after validation; leave it out to "
                "train on all of them"
            )
        train = train.at(stratified_order(train.labels, generator)[:limit])
        require_every_class(train, "training", pool, LIMIT)
    mean, std = channel_statistics(train.inputs)
    shape = tuple(train.inputs.shape[1:])
    return Dataset(
        name=name,
        facts=TaskFacts(input_kind="image", input_shape=shape, classes=classes),
        train=train,
        validation=validation,
        test=test,
        prepare=Preparation(mean=mean, std=std, augment=data.augment),
    )


def digits() -> Split:
    """Return all digits: inputs (1797, 1, 8, 8) uint8 and labels.

    The 17 shades 0..16 become 0, 15, …, 240: exact multiples, so nothing is rounded away.

    Raises:
        DataError: scikit-learn is not installed whole.
    """
    path = sklearn_data() / "digits.csv.gz"
    if not path.is_file():
        raise DataError(
            "task.data: scikit-learn's digits.csv.gz is not there; run `pip install scikit-learn`"
        )
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    images = table[:, :64].reshape(-1, 1, 8, 8) * GREY_STEP
    return Split(images, table[:, 64].to(torch.int64))


def digits_dataset(data: DigitsData) -> Dataset:
    """Return the digits, test and validation drawn off by class with ``split_seed``.

    Both shares are of all 1,797 digits.

    Raises:
        DataError: the shares leave a split without some class.
    """
    require_rest(data)
    generator = torch.Generator().manual_seed(data.split_seed)
    everything = digits()
    order = stratified_order(everything.labels, generator)
    pool, test = split_off(everything, order, data.test_share, "task.data.test_share")
    require_every_class(test, "test", everything, "task.data.test_share")
    return image_dataset(data, "digits", pool, test, 10, generator)


def read_idx(path: Path, axes: Literal[1, 3], most_bytes: int = MAX_BYTES) -> Tensor:
    """Return the uint8 tensor in an IDX file of so many axes; ``.gz`` files are unpacked in memory.

    Its header is read first: no more is unpacked than it states, and nothing where that is too much.

    Raises:
        DataError: not an IDX file of uint8 with so many axes, not as many bytes as its header states, or more
            than ``most_bytes``.
    """
    try:
        raw = read_bytes(path, most_bytes)
    except OSError as error:
        hint = "; task.data.max_bytes = BYTES reads more" if error.errno == errno.EFBIG else ""
        raise DataError(f"{path}: cannot be read ({error.strerror}){hint}") from error
    head_bytes = 4 + 4 * axes
    stream = zlib.decompressobj(wbits=31) if path.suffix == ".gz" else None
    content = raw if stream is None else _unpacked(stream, raw, head_bytes, path)
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
    if expected > most_bytes:
        raise DataError(
            f"{path}: states {expected:,} bytes, and {most_bytes:,} are read at most; "
            f"set task.data.max_bytes = {expected}"
        )
    if stream is not None:
        content += _unpacked(stream, stream.unconsumed_tail, expected + 1 - head_bytes, path)
    if len(content) != expected:
        fault, found = "cut short", str(len(content))
        if len(content) > expected:
            fault, found = "too long", found if stream is None else "more"
        raise DataError(f"{path}: {fault}: {expected} bytes are expected, {found} were found")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head_bytes).reshape(shape).copy())


def idx_dataset(data: IdxData) -> Dataset:
    """Return the images of a folder of IDX files; validation is drawn off by class with ``split_seed``.

    Raises:
        DataError: a folder or file is missing, cut short, of another format, or labels and images do not
            go together.
    """
    folder = expand_home(data.folder, "task.data.folder")
    if not folder.is_dir():
        names = ", ".join(f"{name}[.gz]" for pair in FILES.values() for name in pair)
        raise DataError(
            f"task.data.folder: {folder} is not a folder; expected one that holds {names} "
            "(`apt-get install dataset-fashion-mnist` puts Fashion-MNIST into "
            "/usr/share/datasets/fashion-mnist)"
        )
    most_bytes = data.max_bytes or MAX_BYTES
    pool = _read_pair(folder, *FILES["train"], most_bytes)
    test = _read_pair(folder, *FILES["test"], most_bytes)
    if pool.inputs.shape[1:] != test.inputs.shape[1:]:
        of_train, of_test = ("×".join(map(str, part.inputs.shape[-2:])) for part in (pool, test))
        raise DataError(
            f"{folder}: training images are of {of_train}, test images of {of_test} pixels; "
            "expected one size for both"
        )
    classes = int(pool.labels.max()) + 1
    if int(test.labels.max()) >= classes:
        raise DataError(
            f"{folder}: the test labels go up to {int(test.labels.max())}, the training labels to "
            f"{classes - 1}; expected only classes that are trained on"
        )
    generator = torch.Generator().manual_seed(data.split_seed)
    return image_dataset(data, folder.resolve().name, pool, test, classes, generator)


def _read_pair(folder: Path, images_name: str, labels_name: str, most_bytes: int) -> Split:
    images_path, labels_path = _found(folder, images_name), _found(folder, labels_name)
    images = read_idx(images_path, 3, most_bytes)
    labels = read_idx(labels_path, 1, most_bytes)
    if images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{labels_path}: holds {labels.shape[0]} labels for the {images.shape[0]} images of "
            f"{images_path.name}; expected one label per image"
        )
    if images.numel() == 0:
        raise DataError(f"{images_path}: holds no images; expected at least one")
    return Split(images.unsqueeze(1), labels.to(torch.int64))


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"task.data.folder: {folder} lacks {name}; expected that file, with or without .gz")


def _unpacked(stream: zlib._Decompress, raw: bytes, most_bytes: int, path: Path) -> bytes:
    try:
        # A stream that ends early gives what it holds, and its length shows it.
        return stream.decompress(raw, most_bytes)
    except zlib.error as error:
        raise DataError(f"{path}: is not a sound gzip file ({error}); use a fresh copy") from error
