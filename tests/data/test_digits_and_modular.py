from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpsprune.data import Dataset, load
from tpsprune.data.images import digits
from tpsprune.data.modular import all_pairs, results_of
from tpsprune.errors import DataError
from tpsprune.recipe.task import DigitsData, ModularData, Operation

OPERATIONS: dict[Operation, object] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "a2+b2": lambda a, b: a**2 + b**2,
    "a2+ab+b2": lambda a, b: a**2 + a * b + b**2,
    "a3+ab": lambda a, b: a**3 + a * b,
}


def pairs_of(data: Dataset) -> list[tuple[int, int, int]]:
    return [
        (*pair, label)
        for split in (data.train, data.validation, data.test)
        for pair, label in zip(split.inputs.tolist(), split.labels.tolist(), strict=True)
    ]


def test_the_digits_are_those_of_scikit_learn_with_no_shade_lost() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ours = digits()
    assert ours.inputs.shape == (1797, 1, 8, 8)
    assert ours.inputs.dtype == torch.uint8
    assert (ours.inputs.flatten(1).double() / 15).numpy() == pytest.approx(theirs.data)
    assert (ours.labels.numpy() == theirs.target).all()
    assert ours.inputs.unique().tolist() == [15 * shade for shade in range(17)]


def test_digits_are_shared_out_by_class_and_every_one_once() -> None:
    data = load(DigitsData())
    assert (len(data.train), len(data.validation), len(data.test)) == (1078, 270, 449)
    assert data.facts.input_shape == (1, 8, 8)
    assert data.facts.classes == 10
    for split in (data.train, data.validation, data.test):
        shares = split.labels.bincount() / len(split)
        assert float((shares - digits().labels.bincount() / 1797).abs().max()) < 0.01
    together = torch.cat([split.inputs for split in (data.train, data.validation, data.test)])
    assert sorted(map(tuple, together.flatten(1).tolist())) == sorted(
        map(tuple, digits().inputs.flatten(1).tolist())
    )


def test_digits_are_split_by_the_split_seed_alone() -> None:
    torch.manual_seed(1)
    first = load(DigitsData())
    torch.manual_seed(2)
    again, other = load(DigitsData()), load(DigitsData(split_seed=1))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.labels, other.train.labels)


def test_digit_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    words = (
        "validation_share 0.5 and test_share 0.5 leave nothing to train on; "
        "expected shares that sum to less than 1"
    )
    with pytest.raises(DataError, match=words):
        load(DigitsData(validation_share=0.5, test_share=0.5))


def test_a_test_share_too_small_for_every_class_is_refused() -> None:
    words = (
        r"task\.data\.test_share: leaves the test split of 5 items without class \d, which has 1\d\d in all"
    )
    with pytest.raises(DataError, match=words):
        load(DigitsData(test_share=0.003))


@settings(max_examples=30, deadline=None)
@given(
    operation=st.sampled_from(list(OPERATIONS)),
    modulus=st.integers(5, 13),
    seed=st.integers(0, 50),
)
def test_modular_data_hold_every_pair_once_with_its_label(
    operation: Operation, modulus: int, seed: int
) -> None:
    data = load(ModularData(operation=operation, modulus=modulus, split_seed=seed))
    rule = OPERATIONS[operation]
    expected = {(a, b, rule(a, b) % modulus) for a in range(modulus) for b in range(modulus)}
    found = pairs_of(data)
    assert len(found) == modulus**2
    assert set(found) == expected
    assert data.facts.vocabulary == data.facts.classes == modulus


def test_modular_pairs_are_shared_out_by_the_recipes_share() -> None:
    data = load(ModularData(modulus=59, train_share=0.3, validation_share=0.25))
    assert (len(data.train), len(data.validation), len(data.test)) == (1044, 609, 1828)
    assert data.name == "modular-add-59"


def test_relabelling_renames_tokens_by_one_permutation_and_labels_by_another() -> None:
    unnamed = load(ModularData(operation="subtract", modulus=11))
    renamed = load(ModularData(operation="subtract", modulus=11, relabel=True))
    tokens: dict[int, int] = {}
    names: dict[int, int] = {}
    for (a, b, c), (x, y, z) in zip(pairs_of(unnamed), pairs_of(renamed), strict=True):
        assert tokens.setdefault(a, x) == x
        assert tokens.setdefault(b, y) == y
        assert names.setdefault(c, z) == z
    for permutation in (tokens, names):
        assert sorted(permutation.values()) == list(range(11))
        assert any(old != new for old, new in permutation.items())
    assert tokens != names
    assert renamed.name == "modular-subtract-11-relabelled"


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_only_sums_and_differences_under_their_own_names_are_cyclic(operation: Operation) -> None:
    facts = load(ModularData(operation=operation, modulus=7)).facts
    assert facts.cyclic == (operation in {"add", "subtract"})
    assert not load(ModularData(operation=operation, modulus=7, relabel=True)).facts.cyclic


def test_the_same_pairs_are_drawn_and_renamed_as_ever() -> None:
    dice = torch.Generator().manual_seed(4)
    pairs, order = all_pairs(11), torch.randperm(121, generator=dice)
    tokens, names = torch.randperm(11, generator=dice), torch.randperm(11, generator=dice)
    inputs, labels = tokens[pairs][order], names[results_of(pairs, "multiply", 11)][order]
    data = load(ModularData(operation="multiply", modulus=11, relabel=True, split_seed=4))
    for split, (first, last) in ((data.train, (0, 60)), (data.validation, (60, 90)), (data.test, (90, 121))):
        assert torch.equal(split.inputs, inputs[first:last])
        assert torch.equal(split.labels, labels[first:last])


def test_labels_of_large_residues_do_not_overflow() -> None:
    modulus = 2_000_003
    pair = torch.tensor([[modulus - 1, modulus - 2]])
    expected = ((modulus - 1) ** 3 + (modulus - 1) * (modulus - 2)) % modulus
    assert results_of(pair, "a3+ab", modulus).item() == expected


@pytest.mark.parametrize(
    ("settings_of", "words"),
    [
        ({"train_share": 0.05}, r"task\.data\.train_share: 0\.05 of 9 items is 0; expected a share"),
        ({"train_share": 0.95}, r"task\.data\.train_share: 0\.95 of 9 items is 9; expected a share"),
        (
            {"validation_share": 0.01},
            r"task\.data\.validation_share: 0\.01 of 5 items is 0; expected a share that",
        ),
    ],
)
def test_modular_shares_that_leave_a_split_empty_are_refused(
    settings_of: dict[str, float], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        load(ModularData(modulus=3, **settings_of))


def test_all_pairs_come_in_order() -> None:
    assert all_pairs(3).tolist() == [[a, b] for a in range(3) for b in range(3)]
