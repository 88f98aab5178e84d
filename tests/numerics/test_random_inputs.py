"""Made-up inputs have the shapes, types and bounds that the facts say, and are the same for one seed."""

from __future__ import annotations

import pytest
import torch

from tpsprune.numerics.random_inputs import random_inputs
from tpsprune.numerics.trees import tensors_of
from tpsprune.records import InputPart, TaskFacts

IDS = InputPart(name="ids", shape=(7,), dtype="int64", lowest=3, highest=9)
MASK = InputPart(name="mask", shape=(7,), dtype="int64", lowest=0, highest=1)
SEEN = InputPart(name="seen", shape=(2, 7), dtype="bool")
NUMBERS = InputPart(name="numbers", shape=(), dtype="float32")
PARTS = TaskFacts(input_kind="parts", input_shape=(), classes=2, parts=(IDS, MASK, SEEN, NUMBERS))
PLAIN = [
    TaskFacts(input_kind="image", input_shape=(3, 8, 8), classes=2),
    TaskFacts(input_kind="tokens", input_shape=(7,), classes=2, vocabulary=5),
    TaskFacts(input_kind="vector", input_shape=(6,), classes=2),
]


@pytest.mark.parametrize("facts", PLAIN)
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


@pytest.mark.parametrize("facts", [*PLAIN, PARTS])
def test_equal_seeds_give_equal_items_and_others_do_not(facts: TaskFacts) -> None:
    state = torch.get_rng_state()
    first, again, other = (list(tensors_of(random_inputs(facts, 9, seed))) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "nobody else's dice are thrown"
