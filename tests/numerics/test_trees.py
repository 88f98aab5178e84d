"""Batches of several tensors, split and joined like one; random ones of the wanted shapes and bounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from tpsprune.numerics.forward import call_model
from tpsprune.numerics.trees import (
    WholeBatch,
    at,
    first_of,
    item_count,
    join_items,
    map_leaves,
    map_tensors,
    random_inputs,
    split_evenly,
    take_items,
    tensors_of,
)
from tpsprune.records import InputPart, TaskFacts

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
    batches = split_evenly(tree, parts)
    assert len(batches) == parts
    assert max(map(item_count, batches)) - min(map(item_count, batches)) <= 1
    assert same(join_items(batches), tree)


def test_parts_of_one_tensor_are_those_of_torch() -> None:
    ours, theirs = split_evenly(ROWS, 3), torch.tensor_split(ROWS, 3)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("tree", TREES)
def test_an_index_and_a_slice_are_those_of_every_tensor(tree: Any) -> None:
    assert same(at(tree, slice(2, 4)), at(tree, torch.tensor([2, 3])))
    assert same(first_of(tree), map_tensors(tree, lambda each: each[0]))
    assert item_count(at(tree, torch.tensor([7, 7, 1]))) == 3


def test_items_beyond_the_batch_are_passed_over_and_what_is_no_item_is_kept() -> None:
    tree = {"a": ROWS[:3], "scale": torch.tensor(2.0), "mask": torch.ones(5), "name": "x"}
    found = take_items(tree, torch.arange(2, 9))
    assert found["a"].tolist() == [2]
    assert found["scale"] is tree["scale"]
    assert found["mask"] is tree["mask"]
    assert found["name"] == "x"


class Graph(NamedTuple):
    x: torch.Tensor
    edges: list[torch.Tensor]
    name: str = "g"


WHOLE: list[Any] = [
    (ROWS, ROWS[:4]),
    {"x": ROWS, "y": [ROWS]},
    [{"x": ROWS}, {"x": ROWS[:4]}],
    Graph(ROWS, [ROWS, ROWS[:2]]),
    "no tensor",
]


@pytest.mark.parametrize("data", WHOLE)
def test_a_whole_batch_is_counted_mapped_and_called_but_never_taken_apart(data: Any) -> None:
    class Takes(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return args, kwargs

    batch = WholeBatch(data, 7)
    assert item_count(batch) == 7
    assert take_items(batch, torch.arange(2)) is batch
    mapped = map_tensors(batch, lambda each: each + 1)
    assert mapped.items == 7
    assert type(mapped.data) is type(data)
    pairs = list(zip(tensors_of(mapped), tensors_of(data), strict=True))
    assert all(torch.equal(one, other + 1) for one, other in pairs)
    args, kwargs = call_model(Takes(), batch)
    assert kwargs == (data if isinstance(data, dict) else {})
    assert args == (() if isinstance(data, dict) else data if isinstance(data, tuple) else (data,))


def test_leaves_are_whatever_is_no_dictionary_tuple_or_list() -> None:
    mapped = map_leaves(Graph(ROWS, [ROWS], "name"), lambda leaf: type(leaf).__name__)
    assert mapped == Graph("Tensor", ["Tensor"], "str")  # type: ignore[arg-type,list-item]


IDS = InputPart(name="ids", shape=(7,), dtype="int64", lowest=3, highest=9)
MASK = InputPart(name="mask", shape=(7,), dtype="int64", lowest=0, highest=1)
SEEN = InputPart(name="seen", shape=(2, 7), dtype="bool")
NUMBERS = InputPart(name="numbers", shape=(), dtype="float32")
PARTS = TaskFacts(input_kind="parts", input_shape=(), classes=2, parts=(IDS, MASK, SEEN, NUMBERS))
SINGLE = [
    TaskFacts(input_kind="image", input_shape=(3, 8, 8), classes=2),
    TaskFacts(input_kind="tokens", input_shape=(7,), classes=2, vocabulary=5),
    TaskFacts(input_kind="vector", input_shape=(6,), classes=2),
]


@pytest.mark.parametrize("facts", SINGLE)
def test_one_tensor_comes_as_a_tensor(facts: TaskFacts) -> None:
    inputs = random_inputs(facts, 40)
    assert inputs.shape == (40, *facts.input_shape)
    if facts.input_kind == "tokens":
        assert sorted(set(inputs.flatten().tolist())) == [0, 1, 2, 3, 4]
    else:
        assert inputs.dtype == torch.float32
        assert abs(float(inputs.std()) - 1) < 0.1


def test_parts_come_by_name_within_their_bounds() -> None:
    inputs = random_inputs(PARTS, 200)
    assert list(inputs) == ["ids", "mask", "seen", "numbers"]
    assert sorted(set(inputs["ids"].flatten().tolist())) == [3, 4, 5, 6, 7, 8, 9]
    assert inputs["seen"].dtype == torch.bool
    assert inputs["seen"].shape == (200, 2, 7)
    assert inputs["numbers"].shape == (200,)


def test_a_mask_always_lets_something_through() -> None:
    inputs = random_inputs(PARTS, 2000)
    assert bool(inputs["mask"].any(-1).all())
    assert bool(inputs["seen"].any(-1).all())
    assert 0.4 < float(inputs["mask"][:, 1:].float().mean()) < 0.6


def test_parts_without_names_come_as_a_tuple() -> None:
    nameless = tuple(InputPart(name="", shape=part.shape, dtype=part.dtype) for part in (IDS, NUMBERS))
    inputs = random_inputs(TaskFacts(input_kind="parts", input_shape=(), classes=2, parts=nameless), 3)
    assert isinstance(inputs, tuple)
    assert [tuple(each.shape) for each in inputs] == [(3, 7), (3,)]


@pytest.mark.parametrize("facts", [*SINGLE, PARTS])
def test_equal_seeds_give_equal_items_and_others_do_not(facts: TaskFacts) -> None:
    state = torch.get_rng_state()
    first, again, other = (list(tensors_of(random_inputs(facts, 9, seed))) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "nobody else's dice are thrown"
