"""Data of the studies, through recipes: by hand, by counting, by the law of a group; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from math import comb
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.data import Dataset, load
from tpsprune.errors import RecipeError
from tpsprune.recipe.task import CustomData
from tpsprune_studies import tasks
from tpsprune_studies.tasks import (
    LARGEST,
    all_permutations,
    brackets,
    composition_table,
    continuations,
    describe_data,
    distinct,
    parity,
    permutations,
    sequences,
    split_data,
    windows,
)


def named(factory: Callable[..., Any], **data_args: Any) -> CustomData:
    return CustomData(factory=f"tpsprune_studies.tasks:{factory.__name__}", data_args=data_args)


def made(factory: Callable[..., Any], **data_args: Any) -> Dataset:
    """As a recipe loads it."""
    return load(named(factory, **data_args))


def everything(data: Dataset) -> tuple[Tensor, Tensor]:
    splits = (data.train, data.validation, data.test)
    return torch.cat([split.inputs for split in splits]), torch.cat([split.labels for split in splits])


@pytest.mark.parametrize(
    ("factory", "sizes", "facts"),
    [
        (permutations, (7200, 3600, 3600), ("tokens", (2,), 120, 120)),
        (parity, (1000, 1000, 1000), ("vector", (40,), 2, None)),
        (brackets, (50, 2500, 2500), ("tokens", (24,), 13, 2)),
    ],
)
def test_items_are_sampled_by_the_split_seed_alone(
    factory: Callable[..., Any], sizes: tuple[int, ...], facts: tuple[object, ...]
) -> None:
    torch.manual_seed(1)
    first = made(factory)
    torch.manual_seed(2)
    again, other = made(factory), made(factory, split_seed=1)
    assert tuple(len(split) for split in (first.train, first.validation, first.test)) == sizes
    found = first.facts
    assert (found.input_kind, found.input_shape, found.classes, found.vocabulary) == facts
    assert not found.cyclic
    for one, same in zip(everything(first), everything(again), strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert split_data(named(factory), 1).data_args == {"split_seed": 1}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("factory", "data_args", "words"),
    [
        (permutations, {"degree": 6}, "degree is 6; expected a whole number from 3 to 5"),
        (
            permutations,
            {"degree": 3, "train_share": 0.01},
            "train_share: 0.01 of 36 items is 0; expected a share that",
        ),
        (parity, {"bits": 1}, "bits is 1; expected a whole number from 2 to 4096"),
        (parity, {"suport": 3}, "unexpected keyword argument 'suport'"),
        (parity, {"bits": 4, "support": 5}, "support is 5; expected a whole number from 1 to 4"),
        (
            parity,
            {"bits": 4, "items": 10, "held_out": 7},
            "10 items and 7 held out are more than the 16 that 4 bits make; choose fewer",
        ),
        (parity, {"held_out": 1}, "validation_share: 0.5 of 1 items is 0; expected a share that leaves"),
        (brackets, {"length": 63}, "length is 63; expected a whole number from 2 to 62"),
        (
            brackets,
            {"length": 6, "items": 15, "held_out": 6},
            "15 items and 6 held out are more than the 20 that 6 brackets make; choose fewer",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    factory: Callable[..., Any], data_args: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        made(factory, **data_args)
    assert words in str(caught.value)


def test_journals_keep_the_names_of_their_data() -> None:
    data = named(parity, bits=8, split_seed=3)
    assert describe_data(data) == {
        "kind": "parity",
        "bits": 8,
        "support": 2,
        "items": 1000,
        "held_out": 2000,
        "validation_share": 0.5,
    }
    assert describe_data(named(windows))["factory"] == "tpsprune.studies.text:windows"


E, SWAP_12, SWAP_01, TURN, TURN_BACK, SWAP_02 = range(6)
BY_HAND = [
    [E, SWAP_12, SWAP_01, TURN, TURN_BACK, SWAP_02],
    [SWAP_12, E, TURN_BACK, SWAP_02, SWAP_01, TURN],
    [SWAP_01, TURN, E, SWAP_12, SWAP_02, TURN_BACK],
    [TURN, SWAP_01, SWAP_02, TURN_BACK, E, SWAP_12],
    [TURN_BACK, SWAP_02, SWAP_12, E, TURN, SWAP_01],
    [SWAP_02, TURN_BACK, TURN, SWAP_01, SWAP_12, E],
]


def signs(degree: int) -> Tensor:
    """By counting inversions."""
    return torch.tensor(
        [
            (-1) ** sum(row[i] > row[j] for i in range(degree) for j in range(i + 1, degree))
            for row in all_permutations(degree).tolist()
        ]
    )


def test_the_table_of_three_things_is_the_one_made_by_hand() -> None:
    assert composition_table(3).tolist() == BY_HAND


@pytest.mark.parametrize("degree", [3, 4])
def test_composition_makes_a_group(degree: int) -> None:
    table = composition_table(degree)
    ids = torch.arange(len(table))
    assert torch.equal(table[0], ids)
    assert torch.equal(table[:, 0], ids)
    assert bool((table == 0).any(1).all())
    assert torch.equal(table[table], table[ids[:, None, None], table])  # (a∘b)∘c and a∘(b∘c)
    assert not torch.equal(table, table.T)


@pytest.mark.parametrize("degree", [3, 4, 5])
def test_the_sign_of_a_composition_is_the_product_of_the_signs(degree: int) -> None:
    sign = signs(degree)
    assert torch.equal(sign[composition_table(degree)], sign[:, None] * sign[None])
    assert int(sign.sum()) == 0


def test_the_second_permutation_acts_first() -> None:
    maps = all_permutations(5).tolist()
    table = composition_table(5)
    for a, b in ((1, 7), (100, 33), (119, 2)):
        assert maps[int(table[a, b])] == [maps[a][maps[b][x]] for x in range(5)]


@settings(max_examples=15, deadline=None)
@given(degree=st.integers(3, 4), seed=st.integers(0, 50), share=st.floats(0.1, 0.9), relabel=st.booleans())
def test_every_pair_is_there_once_whatever_is_trained_on(
    degree: int, seed: int, share: float, relabel: bool
) -> None:
    data = made(permutations, degree=degree, split_seed=seed, train_share=share, relabel=relabel)
    elements = len(composition_table(degree))
    pairs, _ = everything(data)
    assert sorted(map(tuple, pairs.tolist())) == list(product(range(elements), repeat=2))
    assert len(data.train) == round(share * elements**2)


def test_renamed_permutations_are_the_same_group_under_other_names() -> None:
    (pairs, labels), (renamed, renamed_labels) = (
        everything(made(permutations, degree=4, relabel=relabel)) for relabel in (False, True)
    )
    tokens: dict[int, int] = {}
    names: dict[int, int] = {}
    for old, new in zip(pairs.flatten().tolist(), renamed.flatten().tolist(), strict=True):
        assert tokens.setdefault(old, new) == new
    for old, new in zip(labels.tolist(), renamed_labels.tolist(), strict=True):
        assert names.setdefault(old, new) == new
    assert sorted(tokens.values()) == sorted(names.values()) == list(range(24))
    assert tokens != names
    assert any(old != new for old, new in tokens.items())


def supports(data: Dataset, size: int) -> list[tuple[int, ...]]:
    """Return the sets of bits whose product gives the label of every item."""
    signs, labels = everything(data)
    return [
        chosen
        for chosen in combinations(range(signs.shape[1]), size)
        if torch.equal(signs[:, list(chosen)].prod(1), 1.0 - 2.0 * labels)
    ]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 4), bits=st.integers(8, 11))
def test_the_label_is_the_product_of_as_many_signs_as_the_recipe_sets(
    seed: int, size: int, bits: int
) -> None:
    data = made(parity, bits=bits, support=size, items=120, held_out=80, split_seed=seed)
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
def test_no_row_comes_twice_and_each_split_has_its_size(
    seed: int, bits: int, items: int, held_out: int
) -> None:
    data = made(parity, bits=bits, items=items, held_out=held_out, split_seed=seed)
    signs, _ = everything(data)
    assert signs.shape == (items + held_out, bits)
    assert len(signs.unique(dim=0)) == len(signs)
    assert len(data.train) == items
    assert len(data.validation) == round(held_out / 2)
    assert data.facts.input_shape == (bits,)


def test_all_rows_may_be_used() -> None:
    signs, labels = everything(made(parity, bits=8, support=3, items=100, held_out=156))
    assert len(signs.unique(dim=0)) == 256
    assert int(labels.sum()) == 128


def test_more_items_are_of_the_same_task() -> None:
    few, many = (made(parity, bits=12, support=3, items=items) for items in (300, 600))
    assert supports(few, 3) == supports(many, 3)


def test_a_larger_share_of_validation_does_not_touch_what_is_trained_on() -> None:
    half, most = (made(parity, validation_share=share) for share in (0.5, 0.9))
    assert torch.equal(half.train.inputs, most.train.inputs)
    assert (len(half.validation), len(most.validation)) == (1000, 1800)


def test_long_rows_are_even_in_every_bit() -> None:
    signs, _ = everything(made(parity, bits=70, items=10_000))
    assert float(signs.mean(0).abs().max()) < 0.05


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
    monkeypatch.setattr(tasks, "LISTED", 0)
    numbers = distinct(50, 49, torch.Generator().manual_seed(0)).tolist()
    assert len(set(numbers)) == 49
    assert numbers != sorted(numbers)


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
def test_there_are_as_many_sequences_as_the_binomial_coefficient(length: int) -> None:
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
def test_the_label_is_half_the_depth_found_by_counting(
    length: int, items: int, held_out: int, seed: int
) -> None:
    data = made(brackets, length=length, items=items, held_out=held_out, split_seed=seed)
    rows, labels = everything(data)
    assert (len(data.train), len(rows)) == (items, items + held_out)
    assert len(rows.unique(dim=0)) == len(rows)
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        assert by_counting(written(row)) == 2 * label + length % 2


@pytest.mark.parametrize(("length", "classes"), [(8, 5), (9, 5)])
def test_all_depths_of_all_sequences_make_all_classes(length: int, classes: int) -> None:
    total = comb(length, length // 2)
    data = made(brackets, length=length, items=total - 20, held_out=20)
    rows, labels = everything(data)
    assert labels.unique().tolist() == list(range(classes))
    assert data.facts.classes == classes
    assert int((1 - 2 * rows).sum(1).max()) == length


def test_all_sequences_are_as_likely() -> None:
    rows, _ = everything(made(brackets, length=40, items=20_000))
    ways = continuations(40)
    opens_next = int(ways[38, 2]) / int(ways[40, 0])
    assert float((rows[:, 1] == 0).float().mean()) == pytest.approx(opens_next, abs=0.02)


def test_text_held_out_is_text_not_trained_on() -> None:
    found = windows(length=8, items=500, seed=1)
    assert found["train"][0].shape == (500, 8)
    assert found["validation"][0].shape == (50, 8)
    whole = windows(length=8, items=10**6, seed=1)
    assert len(whole["train"][0]) > 300_000
    again = windows(length=8, items=500, seed=1)
    assert (found["train"][0] == again["train"][0]).all()
    assert (
        found["classes"]
        == found["vocabulary"]
        == int(max(whole["train"][0].max(), whole["train"][1].max())) + 1
    )
