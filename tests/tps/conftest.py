from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tpsprune.records import TaskFacts

MODULUS = 11


class PairNet(nn.Module):
    """Two tokens embedded, concatenated, one hidden layer: the network of the modular tasks, small."""

    has_unit_triplets = True
    triplets_from_weights = True

    def __init__(self, embedding: int = 6, units: int = 9) -> None:
        super().__init__()
        self.embedding = nn.Embedding(MODULUS, embedding)
        self.hidden = nn.Linear(2 * embedding, units)
        self.head = nn.Linear(units, MODULUS)

    def forward(self, tokens_i2: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.hidden(self.embedding(tokens_i2).flatten(1))))
        return scores

    def unit_triplets(self, tokens_i2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = self.hidden.weight.chunk(2, dim=1)
        tokens = self.embedding.weight
        return tokens @ first.T, tokens @ second.T, self.head.weight.T


@pytest.fixture
def pair_net() -> PairNet:
    return PairNet()


@pytest.fixture
def addition() -> tuple[Tensor, Tensor]:
    tokens_i2 = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    kept_i = torch.randperm(len(tokens_i2))[:60]
    return tokens_i2[kept_i], (tokens_i2.sum(1) % MODULUS)[kept_i]


@pytest.fixture
def cyclic_facts() -> TaskFacts:
    return TaskFacts(input_kind="tokens", input_shape=(2,), classes=MODULUS, vocabulary=MODULUS, cyclic=True)


@pytest.fixture
def image_facts() -> TaskFacts:
    return TaskFacts(input_kind="image", input_shape=(1, 8, 8), classes=5)


@pytest.fixture
def image_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 5)
    )
