"""Residual networks for small images.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2.
Shapes: n images, c channels, h height, w width.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BasicBlock", "ResNet"]


@final
class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, and the input added before the last ReLU.

    Where the shape changes the input goes through a 1×1 convolution with batch norm: the paper's
    option B. Its option A (subsample, pad with zeros) has no parameters, but ties channels of one stage
    to those of the next by position, so that none could be cut.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels_out
            else nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        )

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """Return maps (n, channels_out, h / stride, w / stride)."""
        hidden = functional.relu(self.norm1(self.conv1(maps_nchw)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(maps_nchw))


@final
class ResNet(nn.Module):
    """A 3×3 convolution, three stages of n = (depth − 2) / 6 blocks, the mean over positions, a linear head.

    Stages have w, 2w and 4w channels; the second and the third halve the size. Convolutions are drawn as
    in He et al. 2015 (arXiv:1502.01852), eq. 14. Parameters with c input channels and k classes:
    9cw + 2w + w²·(378n − 80) + 28nw + 12w + (4w + 1)k: 272,474 for depth 20, w = 16, c = 3, k = 10.
    """

    def __init__(self, channels: int, depth: int, width: int, classes: int) -> None:
        super().__init__()
        blocks_per_stage = (depth - 2) // 6
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential()
        channels = width
        for stage in range(3):
            blocks = nn.Sequential()
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
            self.stages.append(blocks)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return scores (n, classes)."""
        maps = self.stages(functional.relu(self.norm(self.conv(images_nchw))))
        scores: Tensor = self.head(maps.mean((2, 3)))
        return scores
