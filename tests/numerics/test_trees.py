"""Batches of several tensors are cut, joined and drawn as one tensor would be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tpsprune.numerics.trees import at, first_of, item_count, joined, mapped, parted_evenly, taken, tensors_of

ROWS = torch.arange(10)
TREES: list[Any] = [
    ROWS,
    {"a": ROWS, "b": ROWS[:, None] * 2},
    (ROWS, ROWS[:, None] * 2),
    {"a": (ROWS, ROWS + 1), "b": ROWS},
]


def same(first: Any, second: Any) -> bool:
    pairs = list(zip(tensors_of(first), tensors_of(second), strict=True))
    return type(first) is type(second) and all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("parts", [1, 3, 10])
def test_parts_joined_again_are_the_whole(tree: Any, parts: int) -> None:
    cut = parted_evenly(tree, parts)
    assert len(cut) == parts
    assert max(map(item_count, cut)) - min(map(item_count, cut)) <= 1
    assert same(joined(cut), tree)


def test_parts_of_one_tensor_are_those_of_torch() -> None:
    ours, theirs = parted_evenly(ROWS, 3), torch.tensor_split(ROWS, 3)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("tree", TREES)
def test_an_index_and_a_slice_are_those_of_every_tensor(tree: Any) -> None:
    assert same(at(tree, slice(2, 4)), at(tree, torch.tensor([2, 3])))
    assert same(first_of(tree), mapped(tree, lambda each: each[0]))
    assert item_count(at(tree, torch.tensor([7, 7, 1]))) == 3


def test_items_beyond_the_batch_are_passed_over_and_what_is_no_item_stays() -> None:
    tree = {"a": ROWS[:3], "scale": torch.tensor(2.0), "mask": torch.ones(5), "name": "x"}
    found = taken(tree, torch.arange(2, 9))
    assert found["a"].tolist() == [2]
    assert found["scale"] is tree["scale"]
    assert found["mask"] is tree["mask"]
    assert found["name"] == "x"
