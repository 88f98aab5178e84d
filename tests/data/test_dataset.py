"""Splits share out every item once, and preparation standardises by the training split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.data import Preparation, Split
from tpsprune.data.dataset import (
    augment_images,
    channel_statistics,
    draw_augmentation,
    require_every_class,
    split_off,
    stratified_order,
)
from tpsprune.data.images import image_dataset
from tpsprune.errors import DataError
from tpsprune.recipe.task import Augment, IdxData


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


def test_equal_classes_are_split_evenly() -> None:
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
    words = rf"here: {share} of 20 items is {drawn}; expected a share that leaves items on both sides"
    with pytest.raises(DataError, match=words):
        split_off(split, torch.arange(20), share, "here")


def test_a_part_that_lacks_a_class_is_refused_by_name() -> None:
    whole = Split(torch.zeros(5, 1), torch.tensor([0, 0, 1, 3, 3]))
    part = Split(torch.zeros(2, 1), torch.tensor([0, 1]))
    words = "here: leaves the test split of 2 items without class 3, which has 2 in all; use another share"
    with pytest.raises(DataError, match=words):
        require_every_class(part, "test", whole, "here")
    require_every_class(Split(torch.zeros(3, 1), torch.tensor([0, 1, 3])), "test", whole, "here")


def _image_split(labels: torch.Tensor) -> Split:
    images = torch.randint(0, 256, (labels.shape[0], 1, 8, 8), dtype=torch.uint8)
    return Split(images, labels)


def test_statistics_come_from_the_training_split_alone(generator: torch.Generator) -> None:
    pool, test = _image_split(torch.arange(40) % 2), _image_split(torch.arange(10) % 2)
    settings_of_data = IdxData(folder="", validation_share=0.25, train_limit=20)
    data = image_dataset(settings_of_data, "noise", pool, test, 2, generator)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    pixels = data.train.inputs.double() / 255
    assert data.prepare.mean is not None
    torch.testing.assert_close(data.prepare.mean.double(), pixels.mean().view(1), rtol=1e-6, atol=0)
    moved = data.to("meta")
    assert {split.inputs.device.type for split in (moved.train, moved.validation, moved.test)} == {"meta"}


@pytest.mark.parametrize(
    ("labels", "limit", "words"),
    [
        (torch.full((20,), 3), None, r"task\.data: noise holds only one class; expected two classes or more"),
        (torch.arange(40) % 2, 21, r"train_limit: is 21 images, 20 are left after validation; leave"),
    ],
)
def test_what_there_is_too_little_of_is_refused(
    labels: torch.Tensor, limit: int | None, words: str, generator: torch.Generator
) -> None:
    split = _image_split(labels)
    settings_of_data = IdxData(folder="", validation_share=0.5, train_limit=limit)
    with pytest.raises(DataError, match=words):
        image_dataset(settings_of_data, "noise", split, split, 4, generator)


def test_a_limit_keeps_classes_in_proportion(generator: torch.Generator) -> None:
    pool = _image_split(torch.arange(200) % 5)
    settings_of_data = IdxData(folder="", validation_share=0.5, train_limit=10)
    data = image_dataset(settings_of_data, "noise", pool, pool, 5, generator)
    assert data.train.labels.bincount().tolist() == [2] * 5


def some_images(count: int = 40, side: int = 20, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, side, side)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def test_images_are_standardised_by_the_mean_and_deviation() -> None:
    images = some_images()
    mean, std = torch.tensor([0.3, 0.6]), torch.tensor([0.2, 0.5])
    expected = (images.double() / 255 - mean.double().view(-1, 1, 1)) / std.double().view(-1, 1, 1)
    prepared = Preparation(mean, std)(images)
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared.double(), expected, rtol=1e-5, atol=1e-6)


def test_prepared_training_images_have_mean_zero_and_deviation_one() -> None:
    images = some_images(600)  # more than one chunk
    prepared = Preparation(*channel_statistics(images))(images).double()
    torch.testing.assert_close(prepared.mean((0, 2, 3)), torch.zeros(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        prepared.std((0, 2, 3), correction=0), torch.ones(2).double(), atol=1e-6, rtol=0
    )


def test_a_channel_that_never_varies_is_finite() -> None:
    images = torch.full((5, 1, 8, 8), 77, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    assert std.tolist() == [1.0]
    torch.testing.assert_close(Preparation(mean, std)(images), torch.zeros(5, 1, 8, 8))


def test_the_order_of_images_does_not_change_their_statistics() -> None:
    images = some_images(700)
    for one, other in zip(channel_statistics(images), channel_statistics(images.flip(0)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("inputs", [torch.tensor([[1, 2], [3, 4]]), torch.randn(3, 7)])
def test_tokens_and_floats_pass_as_they_are(inputs: Tensor) -> None:
    assert Preparation()(inputs, torch.zeros(len(inputs), 3, dtype=torch.int64)) is inputs


@pytest.mark.parametrize("augment", ["crop", "flip", "crop-flip"])
def test_images_are_augmented_only_with_what_was_drawn(augment: Augment, generator: torch.Generator) -> None:
    images = some_images()
    draws = draw_augmentation(len(images), 8, generator)
    unaugmented = Preparation(torch.zeros(2), torch.ones(2))
    lively = Preparation(torch.zeros(2), torch.ones(2), augment)
    assert torch.equal(lively(images), unaugmented(images))
    assert torch.equal(unaugmented(images, draws), unaugmented(images))
    assert not torch.equal(lively(images, draws), unaugmented(images))


def test_preparing_leaves_the_stored_images_alone(generator: torch.Generator) -> None:
    images = some_images()
    before = images.clone()
    draws = draw_augmentation(len(images), 8, generator)
    Preparation(torch.zeros(2), torch.ones(2), "crop-flip")(images, draws)
    assert torch.equal(images, before)


@settings(max_examples=25, deadline=None)
@given(
    side=st.integers(8, 20),
    augment=st.sampled_from(["none", "crop", "flip", "crop-flip"]),
    seed=st.integers(0, 1000),
)
def test_each_augmented_image_is_a_shift_or_mirror_of_its_own(side: int, augment: Augment, seed: int) -> None:
    images = some_images(6, side)
    padding = 1 if side < 16 else 4
    shifts = range(2 * padding + 1) if "crop" in augment else [padding]
    draws = draw_augmentation(6, side, torch.Generator().manual_seed(seed))
    out = augment_images(images, augment, draws)
    for image, result in zip(images, out, strict=True):
        padded = torch.zeros(2, side + 2 * padding, side + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + side, padding : padding + side] = image
        windows = [padded[:, top : top + side, left : left + side] for top in shifts for left in shifts]
        mirrored = [window.flip(-1) for window in windows] if "flip" in augment else []
        assert any(torch.equal(result, candidate) for candidate in windows + mirrored)


def test_every_shift_and_both_mirrors_come_about_equally_often(generator: torch.Generator) -> None:
    marked = torch.zeros(9000, 1, 8, 8, dtype=torch.uint8)
    marked[:, 0, 3, 2] = 255
    out = augment_images(marked, "crop-flip", draw_augmentation(9000, 8, generator))
    places = out.flatten(1).argmax(1)
    counts = places.bincount()
    # Nine shifts by one pixel, of which the mirror makes eighteen places.
    assert int((counts > 0).sum()) == 18
    assert counts[counts > 0].min() > 400
    assert counts.max() < 600


def test_equal_generators_draw_equal_numbers_and_one_generator_goes_on() -> None:
    images, prepare = some_images(), Preparation(torch.zeros(2), torch.ones(2), "crop-flip")
    first, again = (torch.Generator().manual_seed(1) for _ in range(2))
    once = prepare.draw(images, first)
    assert once is not None
    assert once.shape == (len(images), 3)
    assert torch.equal(once, prepare.draw(images, again))
    assert not torch.equal(once, prepare.draw(images, first))


def test_where_nothing_is_augmented_nothing_is_drawn(generator: torch.Generator) -> None:
    before = generator.get_state()
    assert Preparation(torch.zeros(2), torch.ones(2)).draw(some_images(), generator) is None
    assert Preparation().draw({"tokens": torch.zeros(3)}, generator) is None
    assert torch.equal(generator.get_state(), before)


def test_statistics_go_along_to_another_device() -> None:
    moved = Preparation(torch.zeros(2), torch.ones(2), "flip").to("meta")
    assert moved.mean is not None
    assert moved.mean.device.type == "meta"
    assert moved.augment == "flip"
    assert Preparation().to("meta").mean is None
