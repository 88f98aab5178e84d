"""From labelled uint8 images to a data set: validation drawn off, training limited, channels measured."""

from __future__ import annotations

import torch

from tpsprune.data.preparation import Preparation, channel_statistics
from tpsprune.data.splits import Dataset, Split, parted, require_every_class, stratified_order
from tpsprune.errors import DataError
from tpsprune.recipe.task import Augment
from tpsprune.records import TaskFacts

__all__ = ["image_dataset", "limited"]


def image_dataset(
    name: str,
    pool: Split,
    test: Split,
    *,
    classes: int,
    validation_share: float,
    train_limit: int | None,
    augment: Augment,
    generator: torch.Generator,
) -> Dataset:
    """Draw ``validation_share`` of ``pool`` off by class, keep ``train_limit`` of the rest, and measure it.

    Raises:
        DataError: fewer than two classes, or a part would be left without items of some class.
    """
    if int((pool.labels.bincount() > 0).sum()) < 2:
        raise DataError(f"task.data: {name} holds only one class; two classes or more would do")
    train, validation = parted(
        pool, stratified_order(pool.labels, generator), validation_share, "task.data.validation_share"
    )
    for role, split in (("validation", validation), ("training", train)):
        require_every_class(split, role, pool, "task.data.validation_share")
    if train_limit is not None:
        train = limited(train, train_limit, generator)
        require_every_class(train, "training", pool, "task.data.train_limit")
    mean, std = channel_statistics(train.inputs)
    channels, height, width = train.inputs.shape[1:]
    return Dataset(
        name=name,
        facts=TaskFacts(input_kind="image", input_shape=(channels, height, width), classes=classes),
        train=train,
        validation=validation,
        test=test,
        prepare=Preparation(mean=mean, std=std, augment=augment),
    )


def limited(train: Split, limit: int, generator: torch.Generator) -> Split:
    """Return ``limit`` items of ``train``, drawn by class.

    Raises:
        DataError: there are fewer items than that.
    """
    if limit > len(train):
        raise DataError(
            f"task.data.train_limit: asks for {limit} images, {len(train)} are left beside validation; "
            "leave it out to train on all of them"
        )
    return train.at(stratified_order(train.labels, generator)[:limit])
