"""Hidden units matched by their weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tpsprune.numerics.unit_matching import match_units

LAYERS = ("0", "2", "4")


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3, bias=False)
    )


def shuffled(model: nn.Sequential) -> nn.Sequential:
    other = copy.deepcopy(model)
    first, second = torch.randperm(12), torch.randperm(9)
    with torch.no_grad():
        for tensor in (other[0].weight, other[0].bias):
            tensor.copy_(tensor[first].clone())
        other[2].weight.copy_(other[2].weight[second][:, first].clone())
        other[2].bias.copy_(other[2].bias[second].clone())
        other[4].weight.copy_(other[4].weight[:, second].clone())
    return other


def test_of_a_shuffled_copy_the_weights_come_back() -> None:
    torch.manual_seed(0)
    model = net()
    other = shuffled(model)
    assert not torch.allclose(other[2].weight, model[2].weight)
    found = match_units(model, other, LAYERS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_what_comes_back_computes_what_the_second_net_does_and_neither_is_changed() -> None:
    torch.manual_seed(1)
    first, second = net(), net()
    before = [copy.deepcopy(each.state_dict()) for each in (first, second)]
    found = match_units(first, second, LAYERS)
    inputs = torch.randn(20, 5)
    assert torch.allclose(found(inputs), second(inputs), atol=1e-6)
    for model, state in zip((first, second), before, strict=True):
        assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())


def test_matching_brings_the_weights_nearer() -> None:
    torch.manual_seed(2)
    first, second = net(), net()
    found = match_units(first, second, LAYERS)

    def distance(model: nn.Module) -> float:
        pairs = zip(first.parameters(), model.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs)

    assert distance(found) < distance(second)
