from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.recipe.train import Tps
from tpsprune.records import TaskFacts
from tpsprune.tps import Regulariser, build

MODULUS = 11
Addition = tuple[Tensor, Tensor]


def try_build(
    model: nn.Module, facts: TaskFacts, data: Addition | None = None, total_steps: int = 100, **given: Any
) -> Regulariser | None:
    """Build the regulariser of these settings, without warm-up unless they set one."""
    inputs, labels = data or (torch.zeros(4, *facts.input_shape), torch.zeros(4, dtype=torch.int64))
    settings = Tps(**{"warmup_share": 0.0} | given)
    return build(settings, model, facts, train_inputs=inputs, train_labels=labels, total_steps=total_steps)


def built(model: nn.Module, facts: TaskFacts, data: Addition | None = None, **given: Any) -> Regulariser:
    regulariser = try_build(model, facts, data, **given)
    assert regulariser is not None
    return regulariser


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


@dataclass(frozen=True)
class Pairs:
    """The network of two tokens, the facts of its task, and its training data."""

    net: PairNet
    facts: TaskFacts
    data: Addition

    def built(self, **given: Any) -> Regulariser:
        return built(self.net, self.facts, self.data, **given)


@pytest.fixture
def pairs(pair_net: PairNet, cyclic_facts: TaskFacts, addition: Addition) -> Pairs:
    return Pairs(pair_net, cyclic_facts, addition)
