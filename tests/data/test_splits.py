from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpsprune.data import Split
from tpsprune.data.dataset import require_every_class, split_off, stratified_order
from tpsprune.data.images import image_dataset
from tpsprune.errors import DataError
from tpsprune.recipe.task import IdxData


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 100))
def test_every_prefix_of_a_stratified_order_holds_the_classes_in_proportion(
    labels: list[int], seed: int
) -> None:
    labels_n = torch.tensor(labels)
    order = stratified_order(labels_n, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(len(labels)))
    whole = labels_n.bincount(minlength=5).double()
    for length in range(len(labels) + 1):
        part = labels_n[order[:length]].bincount(minlength=5).double()
        # The keys of a class are evenly spread, so each count strays by less than one item from the
        # cut's own share, and that share by less than half an item per class.
        assert bool(((part - whole * length / len(labels)).abs() <= 1 + 5 / 2).all())


def test_equal_classes_are_cut_evenly() -> None:
    labels = torch.arange(10).repeat(30)
    order = stratified_order(labels, torch.Generator().manual_seed(0))
    assert labels[order[:60]].bincount().tolist() == [6] * 10
    assert labels[order[:65]].bincount().max() == 7


def test_other_seeds_draw_other_items_in_no_order_of_place() -> None:
    labels = torch.arange(3).repeat(100)
    first, second = (stratified_order(labels, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    drawn = first[:150].double()
    assert 120 < float(drawn.mean()) < 180


def test_parting_shares_out_every_item_once(generator: torch.Generator) -> None:
    split = Split(torch.arange(20).view(20, 1), torch.arange(20) % 4)
    rest, drawn = split_off(split, torch.randperm(20, generator=generator), 0.3, "here")
    assert (len(rest), len(drawn)) == (14, 6)
    assert sorted(torch.cat((rest.inputs, drawn.inputs)).flatten().tolist()) == list(range(20))
    assert all(int(i) % 4 == int(label) for i, label in zip(drawn.inputs, drawn.labels, strict=True))


@pytest.mark.parametrize(("share", "drawn"), [(0.01, 0), (0.99, 20)])
def test_a_share_that_leaves_nothing_is_refused(share: float, drawn: int) -> None:
    split = Split(torch.zeros(20, 1), torch.zeros(20, dtype=torch.int64))
    words = rf"here: {share} of 20 items is {drawn}; a share that leaves items on both sides would do"
    with pytest.raises(DataError, match=words):
        split_off(split, torch.arange(20), share, "here")


def test_a_part_that_lacks_a_class_is_refused_by_name() -> None:
    whole = Split(torch.zeros(5, 1), torch.tensor([0, 0, 1, 3, 3]))
    part = Split(torch.zeros(2, 1), torch.tensor([0, 1]))
    words = "here: leaves the test split of 2 items without class 3, which has 2 in all; another share, or"
    with pytest.raises(DataError, match=words):
        require_every_class(part, "test", whole, "here")
    require_every_class(Split(torch.zeros(3, 1), torch.tensor([0, 1, 3])), "test", whole, "here")


def _image_split(labels: torch.Tensor) -> Split:
    images = torch.randint(0, 256, (labels.shape[0], 1, 8, 8), dtype=torch.uint8)
    return Split(images, labels)


def test_statistics_come_from_the_training_split_alone(generator: torch.Generator) -> None:
    pool, test = _image_split(torch.arange(40) % 2), _image_split(torch.arange(10) % 2)
    asked = IdxData(folder="", validation_share=0.25, train_limit=20)
    data = image_dataset(asked, "noise", pool, test, 2, generator)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    pixels = data.train.inputs.double() / 255
    assert data.prepare.mean is not None
    torch.testing.assert_close(data.prepare.mean.double(), pixels.mean().view(1), rtol=1e-6, atol=0)
    moved = data.to("meta")
    assert {split.inputs.device.type for split in (moved.train, moved.validation, moved.test)} == {"meta"}


@pytest.mark.parametrize(
    ("labels", "limit", "words"),
    [
        (torch.full((20,), 3), None, r"task\.data: noise holds only one class; two classes or more would do"),
        (torch.arange(40) % 2, 21, r"train_limit: asks for 21 images, 20 are left beside validation; leave"),
    ],
)
def test_what_there_is_too_little_of_is_refused(
    labels: torch.Tensor, limit: int | None, words: str, generator: torch.Generator
) -> None:
    split = _image_split(labels)
    asked = IdxData(folder="", validation_share=0.5, train_limit=limit)
    with pytest.raises(DataError, match=words):
        image_dataset(asked, "noise", split, split, 4, generator)


def test_a_limit_keeps_classes_in_proportion(generator: torch.Generator) -> None:
    pool = _image_split(torch.arange(200) % 5)
    asked = IdxData(folder="", validation_share=0.5, train_limit=10)
    data = image_dataset(asked, "noise", pool, pool, 5, generator)
    assert data.train.labels.bincount().tolist() == [2] * 5
