"""The data of a task: three splits, how inputs are prepared, and what other rooms need to know of it.

Splits are drawn by a generator of their own, seeded by the recipe's ``split_seed``: runs with
different seeds see the same items. Shapes: n items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tpsprune.data.preparation import Preparation
from tpsprune.errors import DataError
from tpsprune.numerics.trees import Tree, at, map_tensors
from tpsprune.records import TaskFacts

__all__ = ["Dataset", "Split", "held_out_parted", "parted", "require_every_class", "stratified_order"]


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
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            prepare=self.prepare.to(device),
        )


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


def parted(split: Split, order_n: Tensor, share: float, place: str) -> tuple[Split, Split]:
    """Return the rest and the first ``share`` of ``split`` in the given order.

    Raises:
        DataError: one of the two would be empty; ``place`` is where in the recipe the share stands.
    """
    drawn = round(share * len(split))
    if not 0 < drawn < len(split):
        raise DataError(
            f"{place}: {share:g} of {len(split)} items is {drawn}; a share that leaves items on "
            "both sides would do"
        )
    return split.at(order_n[drawn:]), split.at(order_n[:drawn])


def held_out_parted(
    name: str, facts: TaskFacts, train: Split, held_out: Split, validation_share: float
) -> Dataset:
    """Return a data set without preparation: the first of what is held out for validation, the rest for test.

    Raises:
        DataError: validation or test would be empty.
    """
    in_order = torch.arange(len(held_out))
    test, validation = parted(held_out, in_order, validation_share, "task.data.validation_share")
    return Dataset(name, facts, train, validation, test, Preparation())


def require_every_class(part: Split, role: str, whole: Split, place: str) -> None:
    """Refuse a part that lacks a class of the whole it was drawn from.

    Raises:
        DataError: naming the class; ``place`` is the setting that would mend it.
    """
    there = whole.labels.bincount()
    lost = (there > 0) & (part.labels.bincount(minlength=there.shape[0])[: there.shape[0]] == 0)
    if bool(lost.any()):
        missing = int(lost.nonzero()[0])
        raise DataError(
            f"{place}: leaves the {role} split of {len(part)} items without class {missing}, which has "
            f"{int(there[missing])} in all; another share, or more items of that class, would do"
        )
