"""Muon against torch's own, and which weights it moves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tpsprune.recipe.train import Train
from tpsprune.training import load_state_by_name, make_optimizer, state_by_name
from tpsprune.training.muon import Muon, hidden_matrices, orthogonalise

SETTINGS = Train(epochs=1, optimizer="muon", learning_rate=0.02, weight_decay=0.1)


def net() -> nn.Sequential:
    """Return tokens of 5 to 3 classes, with every kind of parameter."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Embedding(5, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
    )


def images() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1),
        nn.Linear(5, 2),
    )


def push(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Take a step with gradients of normal noise, the same for equal shapes whatever their layout."""
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=noise)
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    optimizer.step()


def names_of(model: nn.Module) -> list[str]:
    hidden = hidden_matrices(model)
    return [name for name, each in model.named_parameters() if any(each is one for one in hidden)]


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_direction_of_the_update_counts_about_the_same(rows: int, columns: int, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=noise))
    right, _ = torch.linalg.qr(torch.randn(columns, min(rows, columns), generator=noise))
    sigma = torch.rand(min(rows, columns), generator=noise) + 0.2
    found = orthogonalise(left * sigma @ right.T).float()
    sigma_after = torch.linalg.svdvals(found)
    assert 0.66 < sigma_after.min() <= sigma_after.max() < 1.23
    # The singular vectors stay.
    turned = left.T @ found @ right
    assert (turned - turned.diag().diag()).abs().max() < 0.05


def test_nothing_is_made_of_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5, dtype=torch.bfloat16))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 12), (12, 5), (1, 4)])
def test_a_matrix_moves_as_by_torchs_own_to_the_bit(rows: int, columns: int) -> None:
    ours, theirs = (nn.Linear(columns, rows, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    group = {"params": [ours.weight], "weight_decay": 0.1}
    optimizers = (
        Muon([group], lr=0.02, momentum=0.95),
        torch.optim.Muon(
            theirs.parameters(), lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for seed in range(5):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            push(model, optimizer, seed)
        assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_moves_as_its_filters_laid_out_as_rows(layout: torch.memory_format) -> None:
    convolution, flat = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(27, 8, bias=False)
    flat.weight.data = convolution.weight.detach().flatten(1).clone()
    convolution = convolution.to(memory_format=layout)  # type: ignore[call-overload]
    optimizers = [
        Muon([{"params": [each.weight], "weight_decay": 0.1}], lr=0.02, momentum=0.9)
        for each in (convolution, flat)
    ]
    for seed in range(3):
        for model, optimizer in zip((convolution, flat), optimizers, strict=True):
            push(model, optimizer, seed)
    assert torch.equal(convolution.weight.flatten(1), flat.weight)
    assert convolution.weight.is_contiguous(memory_format=layout)


def test_all_but_hidden_matrices_moves_as_under_adamw_to_the_bit() -> None:
    for make in (net, images):
        ours, theirs = make(), make()
        before = copy.deepcopy(ours.state_dict())
        optimizers = [
            make_optimizer(model, Train(epochs=1, optimizer=name, learning_rate=0.02, weight_decay=0.1))
            for model, name in ((ours, "muon"), (theirs, "adamw"))
        ]
        for seed in range(3):
            for model, optimizer in zip((ours, theirs), optimizers, strict=True):
                push(model, optimizer, seed)
        hidden = names_of(ours)
        others = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            assert torch.equal(parameter, others[name]) is (name not in hidden), name
            assert not torch.equal(parameter, before[name])


def test_a_number_moves_about_as_far_as_under_adamw() -> None:
    model = nn.Sequential(nn.Linear(96, 32, bias=False), nn.Linear(32, 2))
    before = model[0].weight.detach().clone()
    push(model, make_optimizer(model, Train(epochs=1, optimizer="muon", weight_decay=0.0)), 0)
    moved = (model[0].weight - before).square().mean().sqrt() / 1e-3
    # A matrix with all 32 singular values 1 has root mean square 1 / sqrt(96).
    assert float(moved.detach()) == pytest.approx(0.2, rel=0.2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.positions_weight = nn.Parameter(torch.zeros(1, 7, 4))
        self.states = nn.Parameter(torch.zeros(4, 3))
        self.attention = nn.MultiheadAttention(4, 2)
        self.recurrent = nn.LSTM(4, 4)
        self.experts_weight = nn.Parameter(torch.zeros(2, 4, 4))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight


@pytest.mark.parametrize(
    ("make", "hidden"),
    [
        (net, ["1.weight", "3.weight"]),
        (images, ["0.weight", "3.weight"]),
        (
            Tied,
            [
                "attention.in_proj_weight",
                "attention.out_proj.weight",
                "recurrent.weight_ih_l0",
                "recurrent.weight_hh_l0",
            ],
        ),
        (lambda: nn.Linear(3, 2), []),
        (lambda: nn.BatchNorm1d(3), []),
    ],
)
def test_which_weights_are_hidden_matrices(make: Any, hidden: list[str]) -> None:
    assert names_of(make()) == hidden


def test_frozen_weights_stay_and_the_last_is_told_among_all() -> None:
    model = net()
    for layer in (model[1], model[4]):
        layer.requires_grad_(requires_grad=False)
    optimizer = make_optimizer(model, SETTINGS)
    held = [each for group in optimizer.param_groups for each in group["params"]]
    assert not any(each is model[1].weight or each is model[4].weight for each in held)
    assert names_of(model) == ["1.weight", "3.weight"]


def test_a_model_without_hidden_matrices_or_without_anything_else_trains() -> None:
    for model in (nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))):
        if isinstance(model, nn.Sequential):
            model[1].requires_grad_(requires_grad=False)
        before = next(model.parameters()).detach().clone()
        push(model, make_optimizer(model, SETTINGS), 0)
        assert not torch.equal(before, next(model.parameters()))


def test_weight_decay_and_rate_of_every_group_are_those_of_the_recipe() -> None:
    optimizer = make_optimizer(net(), SETTINGS)
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert found == [(0.02, 0.1, 2), (0.02, 0.1, 2), (0.02, 0.0, 4)]


def state_of(model: nn.Module, settings: Train) -> dict[str, dict[str, Tensor]]:
    optimizer = make_optimizer(model, settings)
    push(model, optimizer, 0)
    return state_by_name(optimizer, model)


def test_one_moment_is_held_for_a_matrix_and_two_for_the_rest() -> None:
    found = {name: set(entries) for name, entries in state_of(net(), SETTINGS).items()}
    assert found["1.weight"] == {"momentum_buffer"}
    assert found["0.weight"] == found["4.weight"] == found["1.bias"] == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_state_of_the_other_rule_is_not_taken_over(gain: float) -> None:
    state = state_of(net(), Train(epochs=1, optimizer="adamw", grokfast_gain=gain))
    model = net()
    settings = Train(epochs=1, optimizer="muon", grokfast_gain=gain)
    optimizer = make_optimizer(model, settings)
    load_state_by_name(optimizer, model, {**state, "0.weight": {"momentum_buffer": torch.ones(5, 6)}})
    held = state_by_name(optimizer, model)
    assert set(held) == {"1.bias", "2.weight", "2.bias", "4.weight", "4.bias"}
    push(model, optimizer, 1)
    assert "momentum_buffer" in state_by_name(optimizer, model)["1.weight"]


def test_state_loaded_by_torchs_own_method_is_what_the_parts_go_on_with() -> None:
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for step in range(count):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(16, 6)).square().mean().backward()
            optimizer.step()

    settings = Train(epochs=1, optimizer="muon", learning_rate=0.01)
    first = net()
    optimizer = make_optimizer(first, settings)
    steps(first, optimizer, 3)
    second = copy.deepcopy(first)
    loaded = make_optimizer(second, settings)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, each in ((first, optimizer), (second, loaded)):
        steps(model, each, 3)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    for group in loaded.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    before = copy.deepcopy(second.state_dict())
    steps(second, loaded, 1)
    assert all(torch.equal(each, before[name]) for name, each in second.state_dict().items())
