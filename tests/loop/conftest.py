"""A small classifier, its data, a training loop; and what a run of a comparison took."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tpsprune

Data = tuple[Tensor, Tensor]


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def small_data(items: int = 48, seed: int = 1) -> Data:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(items, 8, generator=generator), torch.randint(3, (items,), generator=generator)


def trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tps: tpsprune.TPS,
    data: Data,
    steps: int,
    called: Callable[[Tensor], Tensor] | None = None,
) -> list[float]:
    """Train for some steps as a user would; return what was added to the loss at each."""
    x, y = data
    terms = []
    for _ in range(steps):
        with tps.listening():
            loss = cross_entropy((called or model)(x), y)
        term = tps(y, loss)
        (loss + term).backward()
        optimizer.step()
        optimizer.zero_grad()
        terms.append(float(term.detach()))
    return terms


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(weights_of(one), weights_of(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


ARMS = ("dense", "small")


def at_the_wall(joules: float = 100.0) -> tpsprune.EnergyUse:
    return tpsprune.EnergyUse.of_numbers(joules=joules, seconds=10.0, source="wall")


@pytest.fixture
def net() -> nn.Sequential:
    return small_net()


@pytest.fixture
def data() -> Data:
    return small_data()


@pytest.fixture
def single_process(tmp_path: object) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
