"""ResNet-50, for time and memory: 25.6 million parameters, random weights, statistics of real crops.

Source: He et al. 2015 (arXiv:1512.03385), table 1, with the stride in the 3×3 convolution as is usual since.
Shape letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with batch norm; the input added before the last ReLU."""

    def __init__(self, channels_in: int, inner: int, stride: int) -> None:
        super().__init__()
        out = 4 * inner
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Identity()
            if stride == 1 and channels_in == out
            else nn.Sequential(nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """Return the maps of the next block."""
        hidden = functional.relu(self.bn1(self.conv1(maps_nchw)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        return functional.relu(self.bn3(self.conv3(hidden)) + self.downsample(maps_nchw))


@final
class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 bottlenecks; 25,557,032 parameters with 1,000 classes."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels, self.stages = 64, nn.Sequential()
        for stage, repeats in enumerate((3, 4, 6, 3)):
            inner = 64 << stage
            for repeat in range(repeats):
                stride = 2 if stage and repeat == 0 else 1
                self.stages.append(Bottleneck(channels, inner, stride))
                channels = 4 * inner
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return scores (n, classes)."""
        maps = functional.relu(self.bn1(self.conv1(images_nchw)))
        maps = self.stages(functional.max_pool2d(maps, 3, 2, padding=1))
        scores: Tensor = self.fc(maps.mean((2, 3)))
        return scores


def settled(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Return ``model`` in evaluation mode, its batch-norm statistics those of the batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()
