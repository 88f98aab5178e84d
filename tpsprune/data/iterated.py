"""Sequences that random networks make of noise: a language without a meaning, to pre-train on."""

from __future__ import annotations

import torch

from tpsprune.data.dataset import Dataset, Preparation, Split, require_rest
from tpsprune.errors import DataError
from tpsprune.numerics.random_networks import iterated_words
from tpsprune.recipe.task import IteratedData
from tpsprune.records import TaskFacts


def iterated_dataset(data: IteratedData) -> Dataset:
    """Return ``items`` sequences of ``length`` words, each word's label the one that follows.

    Equal settings give equal words. Sequences of one random network may lie in several parts.

    Raises:
        DataError: the shares leave a part without a sequence.
    """
    require_rest(data)
    generator = torch.Generator().manual_seed(data.split_seed)
    test, validation = (round(share * data.items) for share in (data.test_share, data.validation_share))
    sizes = [data.items - validation - test, validation, test]
    for name, size in zip(("train", "validation", "test"), sizes, strict=True):
        if size < 1:
            raise DataError(
                f"task.data: of {data.items} sequences the {name} part gets none; use more items or another "
                "share"
            )
    words = iterated_words(data.vocabulary, (data.items, data.length + 1), generator)
    train, middle, end = (Split(part[:, :-1], part[:, 1:]) for part in torch.split(words, sizes))
    facts = TaskFacts(
        input_kind="tokens",
        input_shape=(data.length,),
        classes=data.vocabulary,
        vocabulary=data.vocabulary,
        loss="next-token",
    )
    return Dataset("iterated-words", facts, train, middle, end, Preparation())
