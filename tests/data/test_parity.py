from __future__ import annotations

import re
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.data import Dataset, drawing, load
from tpsprune.data.drawing import LARGEST, distinct
from tpsprune.errors import DataError
from tpsprune.recipe.task import ParityData


def everything(data: Dataset) -> tuple[Tensor, Tensor]:
    splits = (data.train, data.validation, data.test)
    return torch.cat([split.inputs for split in splits]), torch.cat([split.labels for split in splits])


def supports(data: Dataset, size: int) -> list[tuple[int, ...]]:
    """Return the sets of bits whose product is the answer on every item."""
    signs, labels = everything(data)
    return [
        chosen
        for chosen in combinations(range(signs.shape[1]), size)
        if torch.equal(signs[:, list(chosen)].prod(1), 1.0 - 2.0 * labels)
    ]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 4), bits=st.integers(8, 11))
def test_the_answer_is_the_product_of_as_many_signs_as_the_recipe_says(
    seed: int, size: int, bits: int
) -> None:
    data = load(ParityData(bits=bits, support=size, items=120, held_out=80, split_seed=seed))
    assert len(supports(data, size)) == 1
    signs, _ = everything(data)
    assert signs.dtype == torch.float32
    assert signs.unique().tolist() == [-1.0, 1.0]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([6, 12, 23, 40, 62, 63, 100]),
    items=st.integers(1, 30),
    held_out=st.integers(4, 30),
)
def test_no_row_comes_twice_and_each_split_is_as_large_as_asked(
    seed: int, bits: int, items: int, held_out: int
) -> None:
    data = load(ParityData(bits=bits, items=items, held_out=held_out, split_seed=seed))
    signs, _ = everything(data)
    assert signs.shape == (items + held_out, bits)
    assert len(signs.unique(dim=0)) == len(signs)
    assert len(data.train) == items
    assert len(data.validation) == round(held_out / 2)
    assert data.facts.input_shape == (bits,)


def test_all_rows_that_there_are_may_be_asked_for() -> None:
    signs, labels = everything(load(ParityData(bits=8, support=3, items=100, held_out=156)))
    assert len(signs.unique(dim=0)) == 256
    assert int(labels.sum()) == 128


def test_rows_and_support_are_drawn_by_the_split_seed_alone() -> None:
    torch.manual_seed(1)
    first = load(ParityData(bits=12, support=3))
    torch.manual_seed(2)
    again, other = load(ParityData(bits=12, support=3)), load(ParityData(bits=12, support=3, split_seed=1))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.test.labels, again.test.labels)
    assert supports(first, 3) != supports(other, 3)
    assert not torch.equal(first.train.inputs, other.train.inputs)


def test_more_items_are_of_the_same_task() -> None:
    few, many = (load(ParityData(bits=12, support=3, items=items)) for items in (300, 600))
    assert supports(few, 3) == supports(many, 3)


def test_a_larger_share_of_validation_does_not_touch_what_is_trained_on() -> None:
    half, most = (load(ParityData(validation_share=share)) for share in (0.5, 0.9))
    assert torch.equal(half.train.inputs, most.train.inputs)
    assert (len(half.validation), len(most.validation)) == (1000, 1800)


def test_long_rows_are_even_in_every_bit() -> None:
    signs, _ = everything(load(ParityData(bits=70, items=10_000)))
    assert float(signs.mean(0).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("settings_of", "words"),
    [
        ({"bits": 4, "support": 5}, "task.data.support: 5 of 4 bits; 4 at most would do"),
        (
            {"bits": 4, "items": 10, "held_out": 7},
            "task.data: 10 items and 7 held out are more than the 16 that 4 bits make; fewer would do",
        ),
        ({"held_out": 1}, "task.data.validation_share: 0.5 of 1 items is 0; a share that leaves items on"),
    ],
)
def test_what_cannot_be_is_refused(settings_of: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        load(ParityData(**settings_of))


@settings(max_examples=40, deadline=None)
@given(
    total=st.sampled_from([1, 7, 2**22, 2**22 + 1, 3 * 2**40, LARGEST]),
    count=st.integers(0, 200),
    seed=st.integers(0, 100),
)
def test_numbers_drawn_are_different_and_below_the_total(total: int, count: int, seed: int) -> None:
    count = min(count, total)
    numbers = distinct(total, count, torch.Generator().manual_seed(seed))
    assert len(set(numbers.tolist())) == len(numbers) == count
    assert all(0 <= number < total for number in numbers.tolist())


def test_numbers_out_of_many_are_spread_evenly_also_where_the_total_divides_nothing() -> None:
    total = 3 * 2**60
    numbers = distinct(total, 40_000, torch.Generator().manual_seed(0))
    thirds = torch.bincount(numbers // 2**60, minlength=3) / 40_000
    assert thirds.tolist() == pytest.approx([1 / 3] * 3, abs=0.01)


def test_repeats_are_replaced_when_nearly_all_numbers_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "LISTED", 0)
    numbers = distinct(50, 49, torch.Generator().manual_seed(0)).tolist()
    assert len(set(numbers)) == 49
    assert numbers != sorted(numbers)
