"""Models whose blocks repeat, as recipes of the tests name them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block with a batch norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.rise = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.fall = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fall(torch.relu(self.norm(self.rise(x))))


class Residual(nn.Module):
    """Flattened images through equal blocks; ``shift`` is a buffer that no state dict has."""

    def __init__(self, width: int = 24, hidden: int = 33, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        self.register_buffer("shift", torch.full((64,), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.shift, Tensor)
        x = self.stem(x.flatten(1) + self.shift)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


RECIPE = """
name = "residual"
[task.data]
kind = "digits"
[task.model]
kind = "custom"
factory = "tests.scale.nets:Residual"
[train]
epochs = 2
batch_size = 64
learning_rate = 3e-3
threads = 1
shards = 2
checkpoint_seconds = 0
[watch]
signals = ["d_eff", "norm", "spectral_edge"]
calibration_items = 64
h1_points = 16
edge_window = 4
every_steps = 8
[stop.draw]
rule = "epoch"
epoch = 1.0
[prune]
calibration_items = 128
target = { macs = 0.5 }
[energy]
meter = "fake"
"""


def wide() -> Residual:
    """Return a net with weights that a cut on disk has in files."""
    return Residual(96, 384, 2)


def shared() -> Residual:
    """Return a net two of whose blocks have one weight."""
    net = Residual()
    for block in net.blocks:
        assert isinstance(block, Block)
        assert isinstance(net.blocks[0], Block)
        block.rise.weight = net.blocks[0].rise.weight
    return net


class Tied(Residual):
    """The same, with a layer behind the stem that has the stem's weight."""

    def __init__(self) -> None:
        super().__init__(width=64)
        self.back = nn.Linear(64, 64, bias=False)
        self.back.weight = self.stem.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.back(x.flatten(1)))
