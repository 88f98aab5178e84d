"""A folder or a zip of images by split and class, decoded once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from tpsprune.data.image_cache import cache_folder, cache_key, read_cache, write_cache
from tpsprune.data.image_decode import decoded
from tpsprune.data.image_sources import Entry, Source, opened
from tpsprune.data.images import image_dataset
from tpsprune.data.paths import expanded
from tpsprune.data.splits import Dataset, Split
from tpsprune.errors import DataError
from tpsprune.recipe.task import ImageFolderData

__all__ = ["image_folder_dataset"]


def image_folder_dataset(data: ImageFolderData) -> Dataset:
    """Return the images of ``train/CLASS/`` and ``test/CLASS/``; classes are numbered by sorted name.

    The first reading decodes every file into the cache; later ones map it. Validation is drawn off the
    training images by class with ``split_seed``.

    Raises:
        DataError: nothing is there, a split or class is empty, a test class is not trained on, an image is
            damaged, or the cache cannot be written.
    """
    path = expanded(data.path, "task.data.path")
    with opened(path) as source:
        entries = source.entries()
        names = _class_names(source, entries, path)
        images = _images(source, entries, data)
    labels = torch.tensor([names.index(entry.label) for entry in entries])
    # Entries are sorted, so the test images come first; cut rather than picked, they stay mapped.
    tests = sum(entry.split == "test" for entry in entries)
    return image_dataset(
        path.resolve().stem,
        Split(images[tests:], labels[tests:]),
        Split(images[:tests], labels[:tests]),
        classes=len(names),
        validation_share=data.validation_share,
        train_limit=data.train_limit,
        augment=data.augment,
        generator=torch.Generator().manual_seed(data.split_seed),
    )


def _class_names(source: Source, entries: list[Entry], path: Path) -> list[str]:
    folders = source.classes()
    for split in ("train", "test"):
        if not any(there == split for there, _ in folders):
            raise DataError(
                f"task.data.path: {path} has no class folders in {split}/; images as "
                f"{split}/CLASS/*.jpg|png would do"
            )
    filled = Counter((entry.split, entry.label) for entry in entries)
    for split, label in sorted(folders):
        if (split, label) not in filled:
            raise DataError(
                f"task.data.path: {path} holds no image in {split}/{label}/; at least one .jpg or .png, "
                "or no such folder, would do"
            )
    trained = sorted(label for split, label in folders if split == "train")
    strange = sorted({label for split, label in folders if split == "test"} - set(trained))
    if strange:
        raise DataError(
            f"task.data.path: {path} has the class '{strange[0]}' in test/ and not in train/; a test of "
            "classes that are trained on would do"
        )
    if len(trained) < 2:
        raise DataError(
            f"task.data.path: {path} holds only one class, '{trained[0]}'; two classes or more would do"
        )
    return trained


def _images(source: Source, entries: list[Entry], data: ImageFolderData) -> Tensor:
    stamps = [(entry.path, entry.bytes, entry.stamp) for entry in entries]
    key = cache_key(source.identity, stamps, data.size, data.channels)
    file = cache_folder(data.cache) / f"images-{key}.npy"
    shape = (len(entries), data.channels, data.size, data.size)
    images = read_cache(file, shape)
    if images is None:
        pixels = (decoded(source.read(entry), entry.path, data.size, data.channels) for entry in entries)
        write_cache(file, pixels, shape)
        images = read_cache(file, shape)
    if images is None:
        raise DataError(f"{file}: does not read back as it was written; another cache folder would do")
    return torch.from_numpy(images)
