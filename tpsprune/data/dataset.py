"""The data of a task: three splits, how stored inputs become what a model takes, and batches of a caller.

Splits are drawn by a generator of their own, seeded by the recipe's ``split_seed``: runs with different seeds
see the same items. Shapes: n items, c channels, h height, w width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from tpsprune.errors import DataError
from tpsprune.numerics.trees import Tree, at, map_tensors
from tpsprune.recipe.task import Augment, DigitsData, IteratedData, TabularData, TextData
from tpsprune.records import TaskFacts


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Inputs as stored (uint8 images, int64 tokens, float32 else), item first, and labels, item first.

    Inputs are a tensor, or a mapping or tuple of them. Labels are classes (n,) int64 but where ``task.loss``
    wants others: see ``Objective``.
    """

    inputs: Tree
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def at(self, index_n: Tensor) -> Split:
        """Return the items at ``index_n``, in that order, copied."""
        return Split(at(self.inputs, index_n), self.labels[index_n])

    def to(self, device: torch.device | str) -> Split:
        """Return the same items on ``device``."""
        return Split(map_tensors(self.inputs, lambda each: each.to(device)), self.labels.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What ``load`` returns: ``train`` is learned from, ``validation`` decides, ``test`` is read once."""

    name: str
    facts: TaskFacts
    train: Split
    validation: Split
    test: Split
    prepare: Preparation

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data on ``device``, the preparation's statistics too."""
        parts = ("train", "validation", "test", "prepare")
        return replace(self, **{name: getattr(self, name).to(device) for name in parts})


def stratified_order(labels_n: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random order (n,) of which every prefix holds the classes in proportion, within one item.

    An item that comes r-th of its shuffled class of size m has the key (r + 1/2) / m; keys are sorted,
    ties keep the shuffled order. Cost O(n log n).
    """
    shuffled = torch.randperm(labels_n.shape[0], generator=generator)
    labels_s = labels_n[shuffled]
    by_class = labels_s.argsort(stable=True)
    sizes = labels_s.bincount()
    sorted_labels = labels_s[by_class]
    rank = torch.arange(labels_n.shape[0]) - (sizes.cumsum(0) - sizes)[sorted_labels]
    key = torch.empty(labels_n.shape[0], dtype=torch.float64)
    key[by_class] = (rank.double() + 0.5) / sizes[sorted_labels]
    return shuffled[key.argsort(stable=True)]


def split_off(split: Split, order_n: Tensor, share: float, place: str) -> tuple[Split, Split]:
    """Return the rest and the first ``share`` of ``split`` in the order of ``order_n``.

    Raises:
        DataError: one of the two would be empty; ``place`` is where in the recipe the share stands.
    """
    drawn = round(share * len(split))
    if not 0 < drawn < len(split):
        raise DataError(
            f"{place}: {share:g} of {len(split)} items is {drawn}; expected a share that leaves "
            "items on both sides"
        )
    return split.at(order_n[drawn:]), split.at(order_n[:drawn])


def hold_out(name: str, facts: TaskFacts, train: Split, held_out: Split, validation_share: float) -> Dataset:
    """Return a data set without preparation: the first of what is held out for validation, the rest for test.

    Raises:
        DataError: validation or test would be empty.
    """
    in_order = torch.arange(len(held_out))
    test, validation = split_off(held_out, in_order, validation_share, "task.data.validation_share")
    return Dataset(name, facts, train, validation, test, Preparation())


def sklearn_data() -> Path:
    """Return the folder of scikit-learn's tables: its own readers take seconds to import."""
    package = find_spec("sklearn")
    home = Path(package.origin).parent if package is not None and package.origin else Path()
    return home / "datasets" / "data"


def require_rest(data: DigitsData | IteratedData | TabularData | TextData) -> None:
    """Refuse shares that leave nothing to train on.

    Raises:
        DataError: naming both.
    """
    if data.validation_share + data.test_share >= 1:
        raise DataError(
            f"task.data: validation_share {data.validation_share:g} and test_share {data.test_share:g} "
            "leave nothing to train on; expected shares that sum to less than 1"
        )


def require_every_class(part: Split, role: str, whole: Split, place: str) -> None:
    """Refuse a part that lacks a class of the whole it was drawn from.

    Raises:
        DataError: naming the class; ``place`` is the setting that would fix it.
    """
    there = whole.labels.bincount()
    lost = (there > 0) & (part.labels.bincount(minlength=there.shape[0])[: there.shape[0]] == 0)
    if bool(lost.any()):
        missing = int(lost.nonzero()[0])
        raise DataError(
            f"{place}: leaves the {role} split of {len(part)} items without class {missing}, which has "
            f"{int(there[missing])} in all; use another share or more items of that class"
        )


LARGE_PADDING = 4
SMALL_PADDING = 1
SMALL_SIDE = 16
CHUNK_IMAGES = 256


@final
@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """Stored inputs to model inputs: uint8 images become (x / 255 − mean) / std, all else passes as it is.

    ``mean`` and ``std`` (c,) are those of the training split alone, in units of 0..1, and ``None`` where
    there is nothing to standardise: tokens, floats, which are taken as their owner prepared them, and inputs
    of several parts.
    """

    mean: Tensor | None = None
    std: Tensor | None = None
    augment: Augment = "none"

    def __call__(self, inputs: Tree, draws_n3: Tensor | None = None) -> Tree:
        """Return what the model takes; images are augmented only with what ``draw`` drew for them."""
        if self.mean is None or self.std is None:
            return inputs
        if draws_n3 is not None:
            inputs = augment_images(inputs, self.augment, draws_n3)
        middle_c11 = (self.mean * 255).view(-1, 1, 1)
        scale_c11 = (self.std * 255).reciprocal().view(-1, 1, 1)
        return inputs.to(self.mean.dtype).sub_(middle_c11).mul_(scale_c11)

    def draw(self, inputs: Tree, generator: torch.Generator) -> Tensor | None:
        """Return what ``augment_images`` takes for each of ``inputs``, ``None`` where nothing is augmented.

        On the generator's device; the same whatever the images show. All of an epoch are drawn at once: drawn
        for each batch, a GPU would wait for them at every step.
        """
        if self.augment == "none" or self.mean is None:
            return None
        return draw_augmentation(len(inputs), min(inputs.shape[-2:]), generator)

    def to(self, device: torch.device | str) -> Preparation:
        """Return the same preparation with its statistics on ``device``."""
        if self.mean is None or self.std is None:
            return self
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))


def draw_augmentation(images: int, side: int, generator: torch.Generator) -> Tensor:
    """Return (n, 3) int64: top and left of the crop, and 1 where mirrored, of images of this least side."""
    device, ends = generator.device, 2 * _padding(side) + 1
    corner_n2 = torch.randint(0, ends, (images, 2), generator=generator, device=device)
    mirrored_n1 = torch.randint(0, 2, (images, 1), generator=generator, device=device)
    return torch.cat((corner_n2, mirrored_n1), dim=1)


def augment_images(images_nchw: Tensor, augment: Augment, draws_n3: Tensor) -> Tensor:
    """Return the images shifted and mirrored, each as its row of ``draw_augmentation`` has it.

    ``crop``: padded with black, 4 pixels on each side (1 where a side is below 16), and cropped back to the
    old size at a place drawn uniformly. ``flip``: mirrored left to right, one time in two.
    """
    count, _, height, width = images_nchw.shape
    top_n, left_n, mirrored_n = draws_n3.unbind(1)
    if "crop" in augment:
        padded = functional.pad(images_nchw, (_padding(min(height, width)),) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images_nchw = windows[torch.arange(count, device=images_nchw.device), :, top_n, left_n]
    if "flip" in augment:
        images_nchw = torch.where(mirrored_n.bool()[:, None, None, None], images_nchw.flip(-1), images_nchw)
    return images_nchw


def _padding(side: int) -> int:
    return SMALL_PADDING if side < SMALL_SIDE else LARGE_PADDING


def channel_statistics(images_nchw: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel of uint8 images, in units of 0..1, float32.

    Sums are of whole numbers and exact in float64, so no order of the images changes the result. The
    deviation is that of the population; a channel that never varies gets 1, so that dividing is harmless.
    """
    channels = images_nchw.shape[1]
    total_c = torch.zeros(channels, dtype=torch.float64)
    squares_c = torch.zeros(channels, dtype=torch.float64)
    for start in range(0, images_nchw.shape[0], CHUNK_IMAGES):
        values = images_nchw[start : start + CHUNK_IMAGES].double()
        total_c += values.sum((0, 2, 3))
        squares_c += values.square_().sum((0, 2, 3))
    pixels = images_nchw.numel() // channels
    mean_c = total_c / pixels
    variance_c = (squares_c / pixels - mean_c.square()).clamp(min=0.0)
    deviation_c = torch.where(variance_c > 0, variance_c.sqrt() / 255, torch.ones_like(variance_c))
    return (mean_c / 255).float(), deviation_c.float()


def expand_home(path: str, place: str) -> Path:
    """Return ``path`` with ``~`` or ``~user`` replaced by the home folder.

    Raises:
        DataError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{place}: {path} begins with the home of an unknown user") from error
