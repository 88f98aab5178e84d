"""Small networks of every kind that is cut here, and some that must be left alone."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional


class Cnn(nn.Module):
    """Convolutions without biases, batch norm, pooling, then a flatten into a linear layer."""

    def __init__(self, widths: tuple[int, ...] = (6, 8), classes: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 2
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers, nn.MaxPool2d(2))
        self.head = nn.Linear(before * 9, classes)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.head(self.body(x_bchw).flatten(1))


class Block(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(before, width, 1, bias=False) if before != width else nn.Identity()

    def forward(self, x_bchw: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x_bchw)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x_bchw))


class Residual(nn.Module):
    """Two stages, the second behind a 1x1 projection."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, width), Block(width, 2 * width), Block(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bchw = self.blocks(functional.relu(self.bn(self.stem(x_bchw))))
        return self.head(functional.adaptive_avg_pool2d(x_bchw, 1).flatten(1))


class Mixed(nn.Module):
    """A squeeze-and-excite gate, a depthwise convolution, a concatenation and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 6, 3, padding=1)
        self.right = nn.Conv2d(2, 5, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze = nn.Linear(6, 4)
        self.excite = nn.Linear(4, 6)
        self.slope = nn.PReLU(5)
        self.merge = nn.Conv2d(11, 7, 1)
        self.up = nn.ConvTranspose2d(7, 5, 2, stride=2)
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        left = functional.relu(self.depthwise(functional.relu(self.left(x_bchw))))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(left.mean((2, 3))))))
        right = self.slope(self.right(x_bchw))
        merged = functional.relu(self.merge(torch.cat([left * gate[:, :, None, None], right], dim=1)))
        return self.head(functional.relu(self.up(merged)))


class TokenMlp(nn.Module):
    """One table for two tokens, their embeddings side by side."""

    def __init__(self, vocabulary: int = 7, width: int = 4, hidden: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(2 * width, hidden)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens_b2: Tensor) -> Tensor:
        return self.head(functional.relu(self.hidden(self.embedding(tokens_b2).flatten(1))))


class Transformer(nn.Module):
    """One layer with separate projections; ``norm`` puts a layer norm before the attention."""

    def __init__(self, vocabulary: int = 7, width: int = 8, heads: int = 2, *, norm: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(3, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.unembed = nn.Linear(width, vocabulary, bias=False)
        self.heads = heads

    def forward(self, tokens_bt: Tensor) -> Tensor:
        items, length = tokens_bt.shape
        x_btd = self.embedding(tokens_bt) + self.positions(torch.arange(length, device=tokens_bt.device))
        normed = self.norm(x_btd)
        q, k, v = (
            layer(normed).reshape(items, length, self.heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_btd = x_btd + self.o(mixed.transpose(1, 2).reshape(items, length, -1))
        x_btd = x_btd + self.mlp_out(functional.relu(self.mlp_in(x_btd)))
        return self.unembed(x_btd[:, -1])


def mlp(widths: tuple[int, ...] = (5, 9, 7, 3)) -> nn.Sequential:
    """A perceptron of these widths, the input's first and the classes' last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def images(items: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(items, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def vectors(items: int = 64, width: int = 5) -> Tensor:
    return torch.randn(items, width, generator=torch.Generator().manual_seed(0))


def tokens(items: int = 32, length: int = 2) -> Tensor:
    return torch.randint(7, (items, length), generator=torch.Generator().manual_seed(0))


def case(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model and a batch for it, by name."""
    torch.manual_seed(0)
    return {
        "cnn": lambda: (Cnn(), images()),
        "residual": lambda: (Residual(), images()),
        "mixed": lambda: (Mixed(), images()),
        "mlp": lambda: (mlp(), vectors()),
        "token-mlp": lambda: (TokenMlp(), tokens()),
        "transformer": lambda: (Transformer(), tokens(length=3)),
    }[name]()


@pytest.fixture(scope="session")
def zoo() -> SimpleNamespace:
    """Every class and batch above, and ``case``."""
    return SimpleNamespace(**globals())
