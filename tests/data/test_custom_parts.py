"""A user's own data of several arrays, and labels that are no classes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from tpsprune.data import Dataset, load
from tpsprune.errors import DataError
from tpsprune.recipe.task import CustomData
from tpsprune.records import InputPart

FACTORY = '''
import numpy as np
import torch


def part(name, count):
    generator = np.random.default_rng(len(name) + count)
    return {
        "ids": generator.integers(1, 20, (count, 5)),
        "mask": torch.tensor(generator.integers(0, 2, (count, 5)), dtype=torch.bool),
        "numbers": generator.normal(size=(count, 6)),
    }


def classes(count):
    return np.arange(count) % 4


def by_name(**more):
    """Inputs by name; anything of it exchanged."""
    plain = {
        "train": (part("train", 40), classes(40)),
        "test": (part("test", 12), classes(12)),
    }
    return {**plain, **{key: eval(value) for key, value in more.items()}}


def by_place():
    return {
        "train": (tuple(part("train", 40).values()), classes(40)),
        "test": (tuple(part("test", 12).values()), classes(12)),
    }


def of(labels, count=None):
    """Vectors with labels of another kind."""
    made = {name: eval(labels, {"n": n, "np": np}) for name, n in (("train", 40), ("test", 12))}
    inputs = {name: np.random.default_rng(n).normal(size=(n, 3)) for name, n in (("train", 40), ("test", 12))}
    found = {name: (inputs[name], made[name]) for name in made}
    return found if count is None else {**found, "classes": count}


def words():
    counts = (("train", 40), ("test", 12))
    tokens = {name: np.random.default_rng(n).integers(0, 9, (n, 6)) for name, n in counts}
    return {name: (each, np.roll(each, -1, axis=1)) for name, each in tokens.items()}
'''


@pytest.fixture(autouse=True)
def _factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_parts.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_parts", raising=False)


def given(name: str, loss: str = "cross-entropy", **arguments: object) -> Dataset:
    return load(CustomData(factory=f"their_parts:{name}", data_args=arguments, validation_share=0.2), loss)


def test_parts_by_name_are_stored_each_in_its_own_type() -> None:
    data = given("by_name")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [32, 8, 12]
    types = {name: each.dtype for name, each in data.train.inputs.items()}
    assert types == {"ids": torch.int64, "mask": torch.bool, "numbers": torch.float32}
    assert all(len(each) == 32 for each in data.train.inputs.values())
    assert data.facts.input_kind == "parts"
    assert data.facts.parts == (
        InputPart(name="ids", shape=(5,), dtype="int64", lowest=1, highest=19),
        InputPart(name="mask", shape=(5,), dtype="bool", lowest=0, highest=1),
        InputPart(name="numbers", shape=(6,), dtype="float32"),
    )


def test_parts_of_an_item_stay_together_when_items_are_drawn() -> None:
    named, placed = given("by_name"), given("by_place")
    assert isinstance(placed.train.inputs, tuple)
    assert [part.name for part in placed.facts.parts] == ["", "", ""]
    for one, two in zip(named.train.inputs.values(), placed.train.inputs, strict=True):
        assert torch.equal(one, two)
    few = named.train.at(torch.tensor([3, 1]))
    assert torch.equal(few.inputs["ids"], named.train.inputs["ids"][[3, 1]])
    assert torch.equal(few.labels, named.train.labels[[3, 1]])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"test": "(part('a', 12)['ids'], classes(12))"},
            "test inputs are ndarray, train inputs several arrays;",
        ),
        (
            {"test": "({'idz': part('a', 12)['ids']}, classes(12))"},
            "train inputs have a part 'ids' that test inputs",
        ),
        (
            {"test": "({**part('a', 12), 'more': classes(12)}, classes(12))"},
            "test inputs have a part 'more' that train",
        ),
        (
            {"test": "({**part('a', 12), 'ids': classes(12)}, classes(12))"},
            "test inputs 'ids' are int64 of shape (12,),",
        ),
        (
            {"test": "({**part('a', 12), 'ids': classes(11)}, classes(12))"},
            "'ids' hold 11 items and there are 12 labels",
        ),
        (
            {"train": "({**part('a', 40), 'a b': classes(40)}, classes(40))"},
            "part 'a b'; the name of an argument",
        ),
        (
            {"train": "({'x': np.zeros((40, 3, 4, 4), 'u1')}, classes(40))"},
            "'x' are uint8 of shape (40, 3, 4, 4): im",
        ),
        (
            {"train": "({'x': np.full((40, 3), np.nan)}, classes(40))"},
            "train inputs 'x' hold nan or inf as float32",
        ),
        ({"train": "({'x': ['a'] * 40}, classes(40))"}, "train inputs 'x' are list, not an array of numbers"),
        (
            {"train": "({}, classes(40))"},
            "train inputs are dict, train inputs several arrays; a mapping or tuple",
        ),
        ({"input_kind": "'vector'"}, "input_kind is said of inputs of one tensor; these are several"),
        ({"vocabulary": "9"}, "vocabulary is said of inputs of one tensor; these are several"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_what_would_do(more: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=r"^task\.data\.factory: .*" + re.escape(words)):
        given("by_name", **more)


@pytest.mark.parametrize(
    ("loss", "labels", "count", "dtype"),
    [
        ("mse", "np.arange(n) / 3", 1, torch.float32),
        ("mse", "np.arange(n)", 1, torch.float32),
        ("mse", "np.ones((n, 3)) * np.arange(n)[:, None]", 3, torch.float32),
        ("bce", "(np.arange(n)[:, None] % 2 == np.arange(2))", 2, torch.float32),
        ("bce", "(np.arange(n)[:, None] % 2 == np.arange(2)).astype(int)", 2, torch.float32),
        ("theirs:loss", "np.arange(n) % 3", 3, torch.int64),
        ("theirs:loss", "np.ones((n, 4))", 4, torch.float32),
        ("theirs:loss", "np.ones((n, 4, 2), int)", 1, torch.int64),
    ],
)
def test_labels_are_stored_as_their_loss_wants_them(
    loss: str, labels: str, count: int, dtype: torch.dtype
) -> None:
    data = given("of", loss, labels=labels)
    assert data.facts.classes == count
    assert data.train.labels.dtype == dtype
    assert (data.facts.loss, len(data.validation)) == (loss, 8)


def test_tokens_with_the_next_ones_for_labels_have_one_vocabulary() -> None:
    facts = given("words", "next-token").facts
    assert (facts.input_kind, facts.vocabulary, facts.classes) == ("tokens", 9, 9)


@pytest.mark.parametrize(
    ("loss", "labels", "count", "words"),
    [
        (
            "mse",
            "np.ones((n, 2, 2))",
            None,
            "float64 of shape (40, 2, 2); numbers of shape (n,) or (n, targets)",
        ),
        (
            "mse",
            "np.arange(n) * np.nan",
            None,
            "train labels hold nan or inf as float32; finite numbers would do",
        ),
        (
            "mse",
            "np.ones((n, 2))",
            3,
            "classes is 3, and train labels are float32 of shape (40, 2); leave it out",
        ),
        (
            "bce",
            "np.arange(n) % 2",
            None,
            "labels are int64 of shape (40,); zeros and ones of shape (n, labels) would",
        ),
        (
            "bce",
            "np.ones((n, 2)) / 2",
            None,
            "labels go from 0.5 to 0.5; zeros and ones would do with loss 'bce'",
        ),
        ("next-token", "np.arange(n)", None, "int64 of shape (40,); token ids (n, length) of integers"),
        ("next-token", "np.full((n, 3), -100)", None, "train labels are all -100, of which none counts"),
        (
            "next-token",
            "np.full((n, 3), 2) - 3 * (np.arange(n)[:, None] == 0)",
            None,
            "labels go from -1 to 2; from 0 to 2",
        ),
        (
            "theirs:loss",
            "np.ones((n, 2))",
            "'two'",
            "classes is \"'two'\"; a whole number above zero would do",
        ),
        (
            "cross-entropy",
            "np.ones((n, 2), int)",
            None,
            "int64 of shape (40, 2); integers of shape (n,) would do",
        ),
    ],
)
def test_labels_that_a_loss_cannot_use_are_refused(loss: str, labels: str, count: object, words: str) -> None:
    with pytest.raises(DataError, match=r"^task\.data\.factory: .*" + re.escape(words)):
        given("of", loss, labels=labels, **({} if count is None else {"count": count}))


def test_labels_of_another_shape_than_those_trained_on_are_refused() -> None:
    with pytest.raises(DataError, match=r"test labels are float32 of shape \(12, 12\), train labels float32"):
        given("of", "mse", labels="np.ones((n, n))")
