"""The optimiser with Grokfast's filter, and the learning rate as a closed form of the step."""

from __future__ import annotations

from typing import Literal, TypeAlias

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tpsprune.recipe.train import Train
from tpsprune.training import load_state_by_name, make_optimizer, state_by_name
from tpsprune.training.optimizers import learning_rate_at

Name: TypeAlias = Literal["adamw", "sgd", "muon"]


def net() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(3, 2)


def deep() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def settings(optimizer: Name = "sgd", gain: float = 2.0, memory: float = 0.9) -> Train:
    return Train(
        epochs=1,
        optimizer=optimizer,
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.0,
        grokfast_gain=gain,
        grokfast_memory=memory,
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: float) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def test_a_constant_gradient_is_amplified_up_to_one_plus_the_gain() -> None:
    model = net()
    optimizer = make_optimizer(model, settings())
    moved = []
    for _ in range(200):
        before = model.weight.detach().clone()
        step(model, optimizer, 1.0)
        moved.append(float((before - model.weight.detach()).mean()) / 0.1)
    # h after k steps of g = 1 is 1 - 0.9^k.
    assert moved[0] == pytest.approx(1 + 2 * 0.1, rel=1e-4)
    assert moved[1] == pytest.approx(1 + 2 * 0.19, rel=1e-4)
    assert moved[-1] == pytest.approx(3.0, rel=1e-3)


def test_without_gain_nothing_is_filtered() -> None:
    unfiltered, filtered = net(), net()
    for model, gain in ((unfiltered, 0.0), (filtered, 1e-12)):
        optimizer = make_optimizer(model, settings("adamw", gain))
        for gradient in (1.0, -2.0, 0.5):
            step(model, optimizer, gradient)
        assert ("slow_grad" in optimizer.state[model.weight]) is (gain > 0)
    torch.testing.assert_close(unfiltered.weight, filtered.weight)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_saved_by_name_and_loaded_it_resumes_bit_for_bit(name: Name) -> None:
    whole, broken = deep(), deep()
    optimizers = [make_optimizer(model, settings(name)) for model in (whole, broken)]
    for gradient in (1.0, -2.0, 0.5):
        for model, optimizer in zip((whole, broken), optimizers, strict=True):
            step(model, optimizer, gradient)
    resumed = deep()
    resumed.load_state_dict(broken.state_dict())
    again = make_optimizer(resumed, settings(name))
    load_state_by_name(again, resumed, state_by_name(optimizers[1], broken))
    for gradient in (0.3, 0.7):
        step(whole, optimizers[0], gradient)
        step(resumed, again, gradient)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_weight_decay_leaves_biases_alone() -> None:
    optimizer = make_optimizer(net(), Train(epochs=1, weight_decay=0.5))
    groups = [
        (parameter.ndim, group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert groups == [(2, 0.5), (1, 0.0)]


def rates(schedule: str, total: int, warmup: float = 0.0) -> list[float]:
    settings = Train(epochs=1, schedule=schedule, learning_rate=2.0, warmup_share=warmup)  # type: ignore[arg-type]
    return [learning_rate_at(step, total, settings) for step in range(total)]


def test_cosine_without_warm_up_agrees_with_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    theirs = []
    for _ in range(50):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates("cosine", 50) == pytest.approx(theirs)


def test_constant_remains_at_its_peak_after_the_warm_up() -> None:
    values = rates("constant", 100, warmup=0.1)
    assert values[:10] == pytest.approx([2.0 * (k + 1) / 11 for k in range(10)])
    assert set(values[10:]) == {2.0}


def test_one_cycle_rises_to_its_peak_and_falls_to_nearly_nothing() -> None:
    values = rates("one-cycle", 1000, warmup=0.3)
    assert values[0] == pytest.approx(2.0 / 25, rel=1e-3)
    assert max(values) == values[300] == 2.0
    assert values[-1] < 1e-4


@given(
    schedule=st.sampled_from(["one-cycle", "cosine", "constant"]),
    total=st.integers(1, 300),
    warmup=st.floats(0, 1),
)
def test_every_rate_is_positive_and_at_most_the_peak(schedule: str, total: int, warmup: float) -> None:
    assert all(0.0 < value <= 2.0 for value in rates(schedule, total, warmup))
