from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from tpsprune.data import Dataset, load
from tpsprune.errors import DataError, RecipeError
from tpsprune.recipe.task import CustomData

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


def plain():
    return {"train": (vectors(), labels()), "test": (vectors(12), labels(12))}


def pictures():
    return {"train": (images(), labels()), "test": (torch.tensor(images(12)), list(range(4)) * 3)}


def words(**more):
    return {"train": (tokens(), labels()), "test": (tokens(12), labels(12)), **more}


def three_parts():
    return {**plain(), "validation": (torch.tensor(vectors(8)).half(), torch.arange(8) % 4)}


def odd(**more):
    """What `plain` gives, with something exchanged."""
    return {**plain(), **{key: eval(value) for key, value in more.items()}}


def without(key):
    return {name: value for name, value in plain().items() if name != key}


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


def given(name: str, share: float = 0.2, **arguments: object) -> Dataset:
    return load(CustomData(factory=f"their_data:{name}", data_args=arguments, validation_share=share))


def test_vectors_become_float32_and_validation_is_drawn_off_by_class() -> None:
    data = given("plain")
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 8, 12)
    assert data.validation.labels.bincount().tolist() == [2, 2, 2, 2]
    assert data.train.inputs.dtype == torch.float32
    assert data.train.labels.dtype == torch.int64
    assert (data.facts.input_kind, data.facts.input_shape, data.facts.classes) == ("vector", (5,), 4)
    assert data.prepare(data.train.inputs) is data.train.inputs


def test_a_given_validation_split_is_kept() -> None:
    data = given("three_parts")
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 8, 12)
    assert data.validation.inputs.dtype == torch.float32


def test_uint8_images_are_standardised() -> None:
    data = given("pictures")
    assert data.facts.input_kind == "image"
    assert data.facts.input_shape == (3, 8, 8)
    prepared = data.prepare(data.train.inputs)
    torch.testing.assert_close(prepared.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_token_facts_are_counted_or_taken_as_given() -> None:
    facts = given("words").facts
    assert (facts.input_kind, facts.vocabulary, facts.classes, facts.cyclic) == ("tokens", 6, 4, False)
    facts = given("words", vocabulary=9, classes=7, cyclic=True).facts
    assert (facts.vocabulary, facts.classes, facts.cyclic) == (9, 7, True)


def test_a_factory_that_raises_is_a_fault_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"task\.data\.factory: .* raised OSError: the disk is at home$"):
        given("broken")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("a_list", {}, "returned list; a mapping with train=(inputs, labels) and test=(inputs, labels)"),
        ("without", {"key": "train"}, "returned no 'train'; train=(inputs, labels) would do"),
        ("without", {"key": "test"}, "returned no 'test'; test=(inputs, labels) would do"),
        ("odd", {"tset": "1"}, "returned 'tset' (did you mean 'test'?); known are train, validation, test,"),
        ("odd", {"input_kind": "'sound'"}, "input_kind is 'sound'; image, tokens, vector are known"),
        ("odd", {"train": "3"}, "train is int; a pair (inputs, labels) would do"),
        ("odd", {"train": "(['a', 'b'], labels())"}, "train inputs are list, not an array of numbers (can't"),
        ("odd", {"train": "(vectors()[0], labels())"}, "are float64 of shape (5,), from which their kind"),
        ("odd", {"train": "(tokens().astype('u1'), labels())"}, "uint8 of shape (40, 2), from which their"),
        ("odd", {"input_kind": "'image'"}, "are float64 of shape (40, 5); images (n, channels, height,"),
        ("odd", {"input_kind": "'tokens'"}, "are float64 of shape (40, 5); token ids (n, length) of"),
        ("odd", {"train": "(vectors(), labels() / 1)"}, "train labels are float64 of shape (40,); integers"),
        ("odd", {"train": "(vectors(), labels(39))"}, "train has 40 inputs and 39 labels; as many of both,"),
        ("odd", {"test": "(vectors(0), labels(0))"}, "test has 0 inputs and 0 labels; as many of both, and"),
        ("odd", {"test": "(vectors() + 1e300, labels())"}, "test inputs hold nan or inf as float32; finite"),
        ("odd", {"train": "(vectors(), labels() + 2**40)"}, "4194304 at most would do: are the labels ids?"),
        ("odd", {"test": "(vectors() * np.nan, labels())"}, "test inputs hold nan or inf as float32; finite"),
        ("odd", {"test": "(vectors()[:, :4], labels())"}, "test inputs are float32 of shape (40, 4), train"),
        ("odd", {"test": "(vectors(), labels(40, 5))"}, "test labels go from 0 to 4; from 0 to 3 would do"),
        ("odd", {"train": "(vectors(), labels() - 1)"}, "train labels go from -1 to 2; from 0 to 2 would"),
        ("odd", {"classes": "3"}, "train labels go from 0 to 3; from 0 to 2 would do (classes = 3)"),
        ("odd", {"classes": "'four'"}, "classes is 'four'; a whole number above zero would do"),
        ("odd", {"train": "(vectors(), labels() * 0)", "test": "(vectors(), labels() * 0)"}, "only one"),
        ("words", {"vocabulary": 5}, "train inputs go from 0 to 5; from 0 to 4 would do (vocabulary = 5)"),
    ],
)  # fmt: skip
def test_what_a_factory_gets_wrong_is_named_with_what_would_do(
    name: str, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError, match=r"^task\.data\.factory: .*" + re.escape(words)):
        given(name, **arguments)


def test_a_validation_share_too_small_for_every_class_is_refused() -> None:
    words = (
        r"task\.data\.validation_share: leaves the validation split of 2 items without class \d, which has 10"
    )
    with pytest.raises(DataError, match=words):
        given("plain", share=0.05)


def test_tokens_are_drawn_without_regard_to_their_answers() -> None:
    data = given("words", share=0.05)
    assert (len(data.train), len(data.validation)) == (38, 2)
