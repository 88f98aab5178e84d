"""From inputs as they are stored to inputs as a model takes them.

Shapes: n items, c channels, h height, w width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from tpsprune.numerics.trees import Tree
from tpsprune.recipe.task import Augment

__all__ = ["Preparation", "augmented", "channel_statistics"]

LARGE_PADDING = 4
SMALL_PADDING = 1
SMALL_SIDE = 16
CHUNK_IMAGES = 256


@final
@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """Stored inputs to model inputs: uint8 images become (x / 255 − mean) / std, all else passes as it is.

    ``mean`` and ``std`` (c,) are those of the training split alone, in units of 0..1, and ``None`` where
    there is nothing to standardise: tokens, floats, which are taken as their owner prepared them, and inputs
    of several parts.
    """

    mean: Tensor | None = None
    std: Tensor | None = None
    augment: Augment = "none"

    def __call__(self, inputs: Tree, generator: torch.Generator | None = None) -> Tree:
        """Return what the model takes; images are augmented only when ``generator`` is given.

        The generator may live on another device than the inputs. One call draws the same numbers
        whatever the images show.
        """
        if self.mean is None or self.std is None:
            return inputs
        if generator is not None:
            inputs = augmented(inputs, self.augment, generator)
        middle_c11 = (self.mean * 255).view(-1, 1, 1)
        scale_c11 = (self.std * 255).reciprocal().view(-1, 1, 1)
        return inputs.to(self.mean.dtype).sub_(middle_c11).mul_(scale_c11)

    def to(self, device: torch.device | str) -> Preparation:
        """Return the same preparation with its statistics on ``device``."""
        if self.mean is None or self.std is None:
            return self
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))


def augmented(images_nchw: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Return the images shifted and mirrored at random, each for itself.

    ``crop``: padded with black, 4 pixels on each side (1 where a side is below 16), and cut back to the
    old size at a place drawn uniformly. ``flip``: mirrored left to right, one time in two.
    """
    count, _, height, width = images_nchw.shape
    device = images_nchw.device
    if "crop" in augment:
        padding = SMALL_PADDING if min(height, width) < SMALL_SIDE else LARGE_PADDING
        corner_2n = torch.randint(
            0, 2 * padding + 1, (2, count), generator=generator, device=generator.device
        ).to(device)
        padded = functional.pad(images_nchw, (padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images_nchw = windows[torch.arange(count, device=device), :, corner_2n[0], corner_2n[1]]
    if "flip" in augment:
        mirrored_n = torch.rand(count, generator=generator, device=generator.device).to(device) < 0.5
        images_nchw = torch.where(mirrored_n[:, None, None, None], images_nchw.flip(-1), images_nchw)
    return images_nchw


def channel_statistics(images_nchw: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel of uint8 images, in units of 0..1, float32.

    Sums are of whole numbers and exact in float64, so no order of the images changes the result. The
    deviation is that of the population; a channel that never varies gets 1, so that dividing is harmless.
    """
    channels = images_nchw.shape[1]
    total_c = torch.zeros(channels, dtype=torch.float64)
    squares_c = torch.zeros(channels, dtype=torch.float64)
    for start in range(0, images_nchw.shape[0], CHUNK_IMAGES):
        values = images_nchw[start : start + CHUNK_IMAGES].double()
        total_c += values.sum((0, 2, 3))
        squares_c += values.square_().sum((0, 2, 3))
    pixels = images_nchw.numel() // channels
    mean_c = total_c / pixels
    variance_c = (squares_c / pixels - mean_c.square()).clamp(min=0.0)
    deviation_c = torch.where(variance_c > 0, variance_c.sqrt() / 255, torch.ones_like(variance_c))
    return (mean_c / 255).float(), deviation_c.float()
