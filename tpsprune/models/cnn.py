"""A plain convolutional network for images of any size.

Shapes: n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

__all__ = ["Cnn", "ConvBlock"]

SMALLEST_SIDE = 4


@final
class ConvBlock(nn.Module):
    """3×3 convolution without bias, batch norm, ReLU, and a 2×2 maximum where ``pool`` says so.

    Weights are drawn as in He et al. 2015, "Delving Deep into Rectifiers" (arXiv:1502.01852), eq. 14.
    """

    def __init__(self, channels_in: int, channels_out: int, *, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return maps of as many channels as the block has, half the size where it pools."""
        maps: Tensor = self.pool(self.relu(self.norm(self.conv(images_nchw))))
        return maps


@final
class Cnn(nn.Module):
    """One ``ConvBlock`` per width, the mean over positions, and a linear head.

    Size is halved after every ``pool_every`` blocks as long as four pixels a side remain. Parameters:
    Σ (9 · wᵢ₋₁ · wᵢ + 2 wᵢ) + (w_last + 1) · classes, w₀ = channels.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], widths: Sequence[int], pool_every: int, classes: int
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        side = min(height, width)
        self.blocks = nn.Sequential()
        for number, block_width in enumerate(widths, start=1):
            pool = number % pool_every == 0 and side // 2 >= SMALLEST_SIDE
            self.blocks.append(ConvBlock(channels, block_width, pool=pool))
            channels = block_width
            side = side // 2 if pool else side
        self.head = nn.Linear(channels, classes)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return scores (n, classes)."""
        scores: Tensor = self.head(self.blocks(images_nchw).mean((2, 3)))
        return scores
