from __future__ import annotations

import re
from itertools import product
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.data import Dataset, load
from tpsprune.data.brackets import continuations, depths, sequences
from tpsprune.errors import DataError
from tpsprune.recipe.task import BracketsData


def everything(data: Dataset) -> tuple[Tensor, Tensor]:
    splits = (data.train, data.validation, data.test)
    return torch.cat([split.inputs for split in splits]), torch.cat([split.labels for split in splits])


def by_counting(text: str) -> int | None:
    """Return the depth at the end, or ``None`` where more closes than is open."""
    depth = 0
    for bracket in text:
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            return None
    return depth


def written(row: list[int]) -> str:
    return "".join("()"[bracket] for bracket in row)


@pytest.mark.parametrize("length", [2, 3, 6, 9])
def test_the_dictionary_has_every_sequence_that_never_closes_too_much_in_order(length: int) -> None:
    """Against all sequences that there are, each counted through."""
    allowed = [row for row in product((0, 1), repeat=length) if by_counting(written(list(row))) is not None]
    total = int(continuations(length)[length, 0])
    assert [tuple(row) for row in sequences(torch.arange(total), length).tolist()] == allowed


@pytest.mark.parametrize("length", [2, 7, 24, 61, 62])
def test_there_are_as_many_sequences_as_the_binomial_coefficient_says(length: int) -> None:
    ways = continuations(length)
    assert int(ways[length, 0]) == comb(length, length // 2)
    assert ways[1, :length].tolist() == [1, *[2] * (length - 1)]


def test_the_first_sequence_only_opens_and_the_last_is_never_deeper_than_one() -> None:
    total = int(continuations(62)[62, 0])
    first, last = sequences(torch.tensor([0, total - 1]), 62).tolist()
    assert written(first) == "(" * 62
    assert written(last) == "()" * 31


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(6, 40), items=st.integers(1, 9), held_out=st.integers(4, 9), seed=st.integers(0, 500)
)
def test_the_answer_is_half_the_depth_found_by_counting(
    length: int, items: int, held_out: int, seed: int
) -> None:
    data = load(BracketsData(length=length, items=items, held_out=held_out, split_seed=seed))
    rows, labels = everything(data)
    assert (len(data.train), len(rows)) == (items, items + held_out)
    assert len(rows.unique(dim=0)) == len(rows)
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        assert by_counting(written(row)) == 2 * label + length % 2


@pytest.mark.parametrize(("length", "classes"), [(8, 5), (9, 5)])
def test_all_depths_of_all_sequences_make_as_many_classes_as_are_said(length: int, classes: int) -> None:
    total = comb(length, length // 2)
    data = load(BracketsData(length=length, items=total - 20, held_out=20))
    rows, labels = everything(data)
    assert labels.unique().tolist() == list(range(classes))
    assert data.facts.classes == classes
    assert int(depths(rows).max()) == length


def test_all_sequences_are_as_likely() -> None:
    rows, _ = everything(load(BracketsData(length=40, items=20_000)))
    ways = continuations(40)
    opens_next = int(ways[38, 2]) / int(ways[40, 0])
    assert float((rows[:, 1] == 0).float().mean()) == pytest.approx(opens_next, abs=0.02)


def test_splits_are_drawn_by_the_split_seed_alone() -> None:
    torch.manual_seed(1)
    first = load(BracketsData())
    torch.manual_seed(2)
    again, other = load(BracketsData()), load(BracketsData(split_seed=1))
    assert (len(first.train), len(first.validation), len(first.test)) == (50, 2500, 2500)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert (first.facts.input_shape, first.facts.vocabulary, first.facts.classes) == ((24,), 2, 13)


def test_more_sequences_than_there_are_are_refused() -> None:
    words = "task.data: 15 items and 6 held out are more than the 20 that 6 brackets make; fewer would do"
    with pytest.raises(DataError, match=re.escape(words)):
        load(BracketsData(length=6, items=15, held_out=6))
