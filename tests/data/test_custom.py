"""Data of the user's own callable: one array, or several."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from tpsprune.data import Dataset, load
from tpsprune.errors import DataError, RecipeError
from tpsprune.recipe.task import CustomData
from tpsprune.records import InputPart

FACTORY = '''
import numpy as np
import torch


def labels(count=40, classes=4):
    return np.arange(count) % classes


def vectors(count=40):
    return np.random.default_rng(0).normal(size=(count, 5))


def images(count=40):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def tokens(count=40):
    return np.stack([np.arange(count) % 6, np.arange(count) % 5], axis=1)


def vector_data():
    return {"train": (vectors(), labels()), "test": (vectors(12), labels(12))}


def pictures():
    return {"train": (images(), labels()), "test": (torch.tensor(images(12)), list(range(4)) * 3)}


def words(**more):
    return {"train": (tokens(), labels()), "test": (tokens(12), labels(12)), **more}


def three_parts():
    return {**vector_data(), "validation": (torch.tensor(vectors(8)).half(), torch.arange(8) % 4)}


def odd(**more):
    """What `vector_data` returns, with something exchanged."""
    return {**vector_data(), **{key: eval(value) for key, value in more.items()}}


def without(key):
    return {name: value for name, value in vector_data().items() if name != key}


def broken():
    raise OSError("the disk is at home")


def a_list():
    return [1, 2]
'''


@pytest.fixture(autouse=True)
def _factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_data", raising=False)


def load_custom(name: str, share: float = 0.2, **arguments: object) -> Dataset:
    return load(CustomData(factory=f"their_data:{name}", data_args=arguments, validation_share=share))


def test_vectors_become_float32_and_validation_is_drawn_off_by_class() -> None:
    data = load_custom("vector_data")
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 8, 12)
    assert data.validation.labels.bincount().tolist() == [2, 2, 2, 2]
    assert data.train.inputs.dtype == torch.float32
    assert data.train.labels.dtype == torch.int64
    assert (data.facts.input_kind, data.facts.input_shape, data.facts.classes) == ("vector", (5,), 4)
    assert data.prepare(data.train.inputs) is data.train.inputs


def test_a_users_validation_split_is_kept() -> None:
    data = load_custom("three_parts")
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 8, 12)
    assert data.validation.inputs.dtype == torch.float32


def test_uint8_images_are_standardised() -> None:
    data = load_custom("pictures")
    assert data.facts.input_kind == "image"
    assert data.facts.input_shape == (3, 8, 8)
    prepared = data.prepare(data.train.inputs)
    torch.testing.assert_close(prepared.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_token_facts_are_counted_or_taken_as_returned() -> None:
    facts = load_custom("words").facts
    assert (facts.input_kind, facts.vocabulary, facts.classes, facts.cyclic) == ("tokens", 6, 4, False)
    facts = load_custom("words", vocabulary=9, classes=7, cyclic=True).facts
    assert (facts.vocabulary, facts.classes, facts.cyclic) == (9, 7, True)


def test_a_factory_that_raises_is_a_fault_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"task\.data\.factory: .* raised OSError: the disk is at home$"):
        load_custom("broken")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("a_list", {}, "returned list; expected a mapping with train=(inputs, labels) and test="),
        ("without", {"key": "train"}, "returned no 'train'; expected train=(inputs, labels)"),
        ("without", {"key": "test"}, "returned no 'test'; expected test=(inputs, labels)"),
        ("odd", {"tset": "1"}, "returned 'tset' (did you mean 'test'?); known are train, validation, test,"),
        ("odd", {"input_kind": "'sound'"}, "input_kind is 'sound'; image, tokens, vector are known"),
        ("odd", {"train": "3"}, "train is int; expected a pair (inputs, labels)"),
        ("odd", {"train": "(['a', 'b'], labels())"}, "train inputs are list, not an array of numbers (can't"),
        ("odd", {"train": "(vectors()[0], labels())"}, "are float64 of shape (5,), from which their kind"),
        ("odd", {"train": "(tokens().astype('u1'), labels())"}, "uint8 of shape (40, 2), from which their"),
        ("odd", {"input_kind": "'image'"}, "are float64 of shape (40, 5); expected images (n, channels,"),
        ("odd", {"input_kind": "'tokens'"}, "are float64 of shape (40, 5); expected token ids"),
        ("odd", {"train": "(vectors(), labels() / 1)"}, "labels are float64 of shape (40,); expected"),
        ("odd", {"train": "(vectors(), labels(39))"}, "train has 40 inputs and 39 labels; expected equally"),
        ("odd", {"test": "(vectors(0), labels(0))"}, "test has 0 inputs and 0 labels; expected equally many"),
        ("odd", {"test": "(vectors() + 1e300, labels())"}, "test inputs hold nan or inf as float32;"),
        ("odd", {"train": "(vectors(), labels() + 2**40)"}, "expected at most 4194304: are the labels ids?"),
        ("odd", {"test": "(vectors() * np.nan, labels())"}, "test inputs hold nan or inf as float32;"),
        ("odd", {"test": "(vectors()[:, :4], labels())"}, "test inputs are float32 of shape (40, 4), train"),
        ("odd", {"test": "(vectors(), labels(40, 5))"}, "test labels go from 0 to 4; expected 0 to 3"),
        ("odd", {"train": "(vectors(), labels() - 1)"}, "train labels go from -1 to 2; expected 0 to 2"),
        ("odd", {"classes": "3"}, "train labels go from 0 to 3; expected 0 to 2 (classes = 3)"),
        ("odd", {"classes": "'four'"}, "classes is 'four'; expected a whole number above zero"),
        ("odd", {"train": "(vectors(), labels() * 0)", "test": "(vectors(), labels() * 0)"}, "only one"),
        ("words", {"vocabulary": 5}, "train inputs go from 0 to 5; expected 0 to 4 (vocabulary = 5)"),
    ],
)  # fmt: skip
def test_what_a_factory_gets_wrong_is_named_with_what_would_do(
    name: str, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError, match=r"^task\.data\.factory: .*" + re.escape(words)):
        load_custom(name, **arguments)


def test_a_validation_share_too_small_for_every_class_is_refused() -> None:
    words = (
        r"task\.data\.validation_share: leaves the validation split of 2 items without class \d, which has 10"
    )
    with pytest.raises(DataError, match=words):
        load_custom("vector_data", share=0.05)


def test_tokens_are_drawn_without_regard_to_their_labels() -> None:
    data = load_custom("words", share=0.05)
    assert (len(data.train), len(data.validation)) == (38, 2)


PARTS_FACTORY = '''
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
    vector_data = {
        "train": (part("train", 40), classes(40)),
        "test": (part("test", 12), classes(12)),
    }
    return {**vector_data, **{key: eval(value) for key, value in more.items()}}


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
def _parts_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_parts.py").write_text(PARTS_FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_parts", raising=False)


def given_parts(name: str, loss: str = "cross-entropy", **arguments: object) -> Dataset:
    return load(CustomData(factory=f"their_parts:{name}", data_args=arguments, validation_share=0.2), loss)


def test_parts_by_name_are_stored_each_in_its_own_type() -> None:
    data = given_parts("by_name")
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


def test_parts_of_an_item_keep_together_when_items_are_drawn() -> None:
    named, placed = given_parts("by_name"), given_parts("by_place")
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
            "part 'a b'; expected the name of an argument",
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
            "train inputs are dict, train inputs several arrays; expected a mapping or tuple",
        ),
        ({"input_kind": "'vector'"}, "input_kind is for inputs of one tensor; these are several"),
        ({"vocabulary": "9"}, "vocabulary is for inputs of one tensor; these are several"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_what_would_do(more: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=r"^task\.data\.factory: .*" + re.escape(words)):
        given_parts("by_name", **more)


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
    data = given_parts("of", loss, labels=labels)
    assert data.facts.classes == count
    assert data.train.labels.dtype == dtype
    assert (data.facts.loss, len(data.validation)) == (loss, 8)


def test_tokens_with_the_next_ones_for_labels_have_one_vocabulary() -> None:
    facts = given_parts("words", "next-token").facts
    assert (facts.input_kind, facts.vocabulary, facts.classes) == ("tokens", 9, 9)


@pytest.mark.parametrize(
    ("loss", "labels", "count", "words"),
    [
        (
            "mse",
            "np.ones((n, 2, 2))",
            None,
            "float64 of shape (40, 2, 2); expected numbers of shape (n,) or (n, targets)",
        ),
        (
            "mse",
            "np.arange(n) * np.nan",
            None,
            "train labels hold nan or inf as float32; expected finite numbers",
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
            "labels are int64 of shape (40,); expected zeros and ones of shape (n, labels)",
        ),
        (
            "bce",
            "np.ones((n, 2)) / 2",
            None,
            "labels go from 0.5 to 0.5; expected zeros and ones with loss 'bce'",
        ),
        ("next-token", "np.arange(n)", None, "int64 of shape (40,); expected token ids (n, length) of"),
        ("next-token", "np.full((n, 3), -100)", None, "train labels are all -100, of which none counts"),
        (
            "next-token",
            "np.full((n, 3), 2) - 3 * (np.arange(n)[:, None] == 0)",
            None,
            "labels go from -1 to 2; expected 0 to 2",
        ),
        (
            "theirs:loss",
            "np.ones((n, 2))",
            "'two'",
            "classes is \"'two'\"; expected a whole number above zero",
        ),
        (
            "cross-entropy",
            "np.ones((n, 2), int)",
            None,
            "int64 of shape (40, 2); expected integers of shape (n,)",
        ),
    ],
)
def test_labels_that_a_loss_cannot_use_are_refused(loss: str, labels: str, count: object, words: str) -> None:
    with pytest.raises(DataError, match=r"^task\.data\.factory: .*" + re.escape(words)):
        given_parts("of", loss, labels=labels, **({} if count is None else {"count": count}))


def test_labels_of_another_shape_than_those_trained_on_are_refused() -> None:
    with pytest.raises(DataError, match=r"test labels are float32 of shape \(12, 12\), train labels float32"):
        given_parts("of", "mse", labels="np.ones((n, n))")
