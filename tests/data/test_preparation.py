from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.data import Preparation
from tpsprune.data.dataset import augment_images, channel_statistics
from tpsprune.recipe.task import Augment


def some_images(count: int = 40, side: int = 20, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, side, side)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def test_images_are_standardised_by_the_given_mean_and_deviation() -> None:
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


def test_a_channel_that_never_varies_stays_finite() -> None:
    images = torch.full((5, 1, 8, 8), 77, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    assert std.tolist() == [1.0]
    torch.testing.assert_close(Preparation(mean, std)(images), torch.zeros(5, 1, 8, 8))


def test_the_order_of_images_does_not_change_their_statistics() -> None:
    images = some_images(700)
    for one, other in zip(channel_statistics(images), channel_statistics(images.flip(0)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("inputs", [torch.tensor([[1, 2], [3, 4]]), torch.randn(3, 7)])
def test_tokens_and_floats_pass_as_they_are(inputs: Tensor, generator: torch.Generator) -> None:
    assert Preparation()(inputs, generator) is inputs


@pytest.mark.parametrize("augment", ["crop", "flip", "crop-flip"])
def test_images_are_augmented_only_with_a_generator(augment: Augment, generator: torch.Generator) -> None:
    images = some_images()
    plain = Preparation(torch.zeros(2), torch.ones(2))
    lively = Preparation(torch.zeros(2), torch.ones(2), augment)
    assert torch.equal(lively(images), plain(images))
    assert torch.equal(plain(images, generator), plain(images))
    assert not torch.equal(lively(images, generator), plain(images))


def test_preparing_leaves_the_stored_images_alone(generator: torch.Generator) -> None:
    images = some_images()
    before = images.clone()
    Preparation(torch.zeros(2), torch.ones(2), "crop-flip")(images, generator)
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
    out = augment_images(images, augment, torch.Generator().manual_seed(seed))
    for image, result in zip(images, out, strict=True):
        padded = torch.zeros(2, side + 2 * padding, side + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + side, padding : padding + side] = image
        windows = [padded[:, top : top + side, left : left + side] for top in shifts for left in shifts]
        mirrored = [window.flip(-1) for window in windows] if "flip" in augment else []
        assert any(torch.equal(result, candidate) for candidate in windows + mirrored)


def test_every_shift_and_both_mirrors_come_about_equally_often(generator: torch.Generator) -> None:
    marked = torch.zeros(9000, 1, 8, 8, dtype=torch.uint8)
    marked[:, 0, 3, 2] = 255
    out = augment_images(marked, "crop-flip", generator)
    places = out.flatten(1).argmax(1)
    counts = places.bincount()
    # Nine shifts by one pixel, of which the mirror makes eighteen places.
    assert int((counts > 0).sum()) == 18
    assert counts[counts > 0].min() > 400
    assert counts.max() < 600


def test_equal_generators_give_equal_pictures_and_one_generator_goes_on() -> None:
    images = some_images()
    first, again = (torch.Generator().manual_seed(1) for _ in range(2))
    once = augment_images(images, "crop-flip", first)
    assert torch.equal(once, augment_images(images, "crop-flip", again))
    assert not torch.equal(once, augment_images(images, "crop-flip", first))


def test_statistics_go_along_to_another_device() -> None:
    moved = Preparation(torch.zeros(2), torch.ones(2), "flip").to("meta")
    assert moved.mean is not None
    assert moved.mean.device.type == "meta"
    assert moved.augment == "flip"
    assert Preparation().to("meta").mean is None
