from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.data import Dataset, load
from tpsprune.data.permutations import all_permutations, composition_table
from tpsprune.errors import DataError
from tpsprune.recipe.task import PermutationsData

E, SWAP_12, SWAP_01, TURN, TURN_BACK, SWAP_02 = range(6)
BY_HAND = [
    [E, SWAP_12, SWAP_01, TURN, TURN_BACK, SWAP_02],
    [SWAP_12, E, TURN_BACK, SWAP_02, SWAP_01, TURN],
    [SWAP_01, TURN, E, SWAP_12, SWAP_02, TURN_BACK],
    [TURN, SWAP_01, SWAP_02, TURN_BACK, E, SWAP_12],
    [TURN_BACK, SWAP_02, SWAP_12, E, TURN, SWAP_01],
    [SWAP_02, TURN_BACK, TURN, SWAP_01, SWAP_12, E],
]


def everything(data: Dataset) -> list[tuple[int, int, int]]:
    return [
        (*pair, label)
        for split in (data.train, data.validation, data.test)
        for pair, label in zip(split.inputs.tolist(), split.labels.tolist(), strict=True)
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
    data = load(PermutationsData(degree=degree, split_seed=seed, train_share=share, relabel=relabel))
    elements = len(composition_table(degree))
    assert sorted((a, b) for a, b, _ in everything(data)) == list(product(range(elements), repeat=2))
    assert len(data.train) == round(share * elements**2)


def test_five_things_make_120_tokens_and_classes_in_no_cyclic_order() -> None:
    data = load(PermutationsData())
    assert (len(data.train), len(data.validation), len(data.test)) == (7200, 3600, 3600)
    assert (data.facts.vocabulary, data.facts.classes, data.facts.cyclic) == (120, 120, False)
    assert data.name == "permutations-5"


def test_renamed_permutations_are_the_same_group_under_other_names() -> None:
    plain, renamed = (load(PermutationsData(degree=4, relabel=relabel)) for relabel in (False, True))
    tokens: dict[int, int] = {}
    names: dict[int, int] = {}
    for (a, b, c), (x, y, z) in zip(everything(plain), everything(renamed), strict=True):
        assert tokens.setdefault(a, x) == x
        assert tokens.setdefault(b, y) == y
        assert names.setdefault(c, z) == z
    assert sorted(tokens.values()) == sorted(names.values()) == list(range(24))
    assert tokens != names
    assert any(old != new for old, new in tokens.items())
    assert renamed.name == "permutations-4-relabelled"


def test_pairs_are_drawn_by_the_split_seed_alone() -> None:
    torch.manual_seed(1)
    first = load(PermutationsData(degree=4))
    torch.manual_seed(2)
    again, other = load(PermutationsData(degree=4)), load(PermutationsData(degree=4, split_seed=1))
    assert everything(first) == everything(again)
    assert set(everything(first)) == set(everything(other))
    assert everything(first) != everything(other)


def test_a_share_that_leaves_nothing_to_train_on_is_refused() -> None:
    words = r"task\.data\.train_share: 0\.01 of 36 items is 0; a share that leaves items on both sides"
    with pytest.raises(DataError, match=words):
        load(PermutationsData(degree=3, train_share=0.01))
