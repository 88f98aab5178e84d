"""Sequences that mean nothing as data: labels are the words that follow, parts are apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tpsprune import recipe
from tpsprune.data import load
from tpsprune.errors import DataError, RecipeError
from tpsprune.recipe.task import IteratedData, split_by


def made(**settings: Any) -> IteratedData:
    return IteratedData(**{"vocabulary": 20, "length": 12, "items": 50, **settings})


def test_every_label_is_the_word_that_follows_and_parts_have_their_shares() -> None:
    data = load(made(validation_share=0.2))
    assert [len(each) for each in (data.train, data.validation, data.test)] == [35, 10, 5]
    for split in (data.train, data.validation, data.test):
        assert split.inputs.shape[1:] == (12,)
        assert torch.equal(split.inputs[:, 1:], split.labels[:, :-1])
        assert int(split.labels.max()) < 20
    assert (data.facts.vocabulary, data.facts.classes, data.facts.loss) == (20, 20, "next-token")
    whole = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    assert len(whole.unique(dim=0)) == 50


def test_the_seed_draws_the_words() -> None:
    first, again = load(made()), load(made())
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, load(split_by(made(), 1)).train.inputs)


def test_a_part_without_a_sequence_is_refused() -> None:
    with pytest.raises(DataError, match=r"of 10 sequences the test part gets none; use more items"):
        load(made(items=10, test_share=0.01))
    with pytest.raises(DataError, match="leave nothing to train on"):
        load(made(test_share=0.95))


def test_a_text_recipe_takes_it_and_a_loss_of_classes_does_not() -> None:
    change = "task.data={kind='iterated', length=64}"
    assert recipe.read("llama-text", (change,)).task.data == IteratedData()
    with pytest.raises(RecipeError, match="data of kind 'iterated' have the next word for a label"):
        recipe.read("llama-text", (change, "task.loss=cross-entropy"))
