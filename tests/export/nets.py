"""Models that are called in different ways, and one whose batch is fixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolutions(nn.Module):
    """An image in, a tensor of scores out; a batch norm, which must stay as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(functional.relu(self.norm(self.conv(images))).mean((2, 3)))
        return scores


class Pair(nn.Module):
    """Two tensors in by position, scores and something else out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 3), nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(left) + self.right(right), left


class Named(nn.Module):
    """Tokens and a mask in by name, a mapping out, attention within."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.layer(self.embedding(ids), src_key_padding_mask=mask)
        return {"logits": self.head(hidden[:, 0]), "hidden": hidden}


class Fixed(nn.Module):
    """A model that takes its batch for four items."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, vectors: Tensor) -> Tensor:
        scores: Tensor = self.head(vectors.reshape(4, 5))
        return scores


class Loud(nn.Module):
    """A model with a branch that hangs on its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, vectors: Tensor) -> Tensor:
        scores: Tensor = self.head(vectors)
        return scores if bool(scores.sum() > 0) else -scores


def batch_for(name: str, items: int) -> Any:
    generator = torch.Generator().manual_seed(items)

    def draw(*shape: int) -> Tensor:
        return torch.randn(items, *shape, generator=generator)

    if name == "Convolutions":
        return draw(1, 6, 6)
    if name == "Pair":
        return draw(5), draw(4)
    ids = torch.randint(11, (items, 6), generator=generator)
    return {"ids": ids, "mask": torch.arange(6).expand(items, 6) > 4}


CALLED = {"Convolutions": Convolutions, "Pair": Pair, "Named": Named}


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = CALLED[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()
