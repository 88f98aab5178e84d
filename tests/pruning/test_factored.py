"""A layer split in two: exactly, or into the nearest of its rank; to other code it is the layer it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.low_rank_layer import LowRank
from tpsprune.pruning.factored import Factored, factor_layers


class Conv1D(nn.Module):
    """The linear layer with a weight of (in, out) that transformers has."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 9), (5, 12)),
    "linear without a bias": (lambda: nn.Linear(12, 9, bias=False), (5, 7, 12)),
    "transposed": (lambda: Conv1D(9, 12), (5, 12)),
    "one axis": (lambda: nn.Conv1d(4, 9, 3, stride=2, padding=1), (2, 4, 11)),
    "image": (lambda: nn.Conv2d(3, 9, (3, 2), stride=(2, 1), padding=1, dilation=2), (2, 3, 9, 8)),
    "reflected": (lambda: nn.Conv2d(3, 9, 3, padding=1, padding_mode="reflect"), (2, 3, 9, 8)),
    "volume": (lambda: nn.Conv3d(3, 9, 2), (1, 3, 4, 5, 4)),
}


def matrix(layer: nn.Module) -> Tensor:
    weight: Any = layer.weight.detach()
    found: Tensor = weight.T if isinstance(layer, Conv1D) else weight.flatten(1)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_full_rank_is_split_exactly(name: str) -> None:
    make, shape = LAYERS[name]
    model, x = nn.Sequential(make()).double(), torch.randn(shape, dtype=torch.float64)
    wanted = model(x)
    factor_layers(model, [Factored(layer="0", rank=9, turned=isinstance(model[0], Conv1D))])
    assert isinstance(model[0], LowRank)
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_split_into_the_nearest_of_its_rank(name: str) -> None:
    """The distance is the root of the squares of the singular values left out (Eckart and Young)."""
    model = nn.Sequential(LAYERS[name][0]()).double()
    before = matrix(model[0])
    factor_layers(model, [Factored(layer="0", rank=4, turned=isinstance(model[0], Conv1D))])
    after = model[0].weight.detach().flatten(1)
    singular = torch.linalg.svdvals(before)
    assert torch.linalg.matrix_rank(after) == 4
    torch.testing.assert_close((after - before).norm(), singular[4:].square().sum().sqrt())


def test_a_split_layer_has_the_weight_bias_and_sizes_of_a_layer_and_keeps_its_flags() -> None:
    model = nn.Sequential(nn.Linear(12, 9), nn.Conv2d(3, 8, 3)).to(torch.bfloat16).eval()
    model[0].weight.requires_grad_(False)
    bias = model[0].bias
    model[1] = model[1].to(memory_format=torch.channels_last)
    factor_layers(model, [Factored(layer="0", rank=3), Factored(layer="1", rank=4)])
    linear, image = model
    assert (linear.in_features, linear.out_features, linear.weight.shape) == (12, 9, (9, 12))
    assert (image.in_channels, image.out_channels, image.weight.shape) == (3, 8, (8, 3, 3, 3))
    assert linear.bias is bias
    assert not any(part.weight.requires_grad for part in linear)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    assert image.down.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(each.training for each in model.modules())
    with pytest.raises(AttributeError, match="nothing"):
        _ = linear.nothing


def test_a_shell_without_values_is_split_without_values_and_draws_nothing() -> None:
    shells = nn.Linear(12, 9, device="meta"), nn.Linear(12, 9)
    shells[1].weight.data.fill_(math.nan)
    state = torch.random.get_rng_state()
    for shell in shells:
        model = nn.Sequential(shell)
        factor_layers(model, [Factored(layer="0", rank=3)])
        assert [tuple(each.shape) for each in model.parameters()] == [(3, 12), (9, 3), (9,)]
        assert next(model.parameters()).device == shell.weight.device
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("factored", "message"),
    [
        (Factored(layer="nowhere", rank=2), "no such layer"),
        (Factored(layer="0", rank=10), "smaller rank"),
        (Factored(layer="0", rank=2, turned=True), "another layout"),
        (Factored(layer="1", rank=2), "Tanh is not split"),
        (Factored(layer="2", rank=2), "in groups"),
    ],
)
def test_what_cannot_be_split_is_refused(factored: Factored, message: str) -> None:
    model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(PruneError, match=message):
        factor_layers(model, [factored])


def test_a_split_convolution_has_the_numbers_of_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2, padding_mode="reflect"))
    before = {
        name: getattr(model[0], name) for name in ("stride", "padding", "dilation", "kernel_size", "groups")
    }
    factor_layers(model, [Factored(layer="0", rank=4)])
    assert {name: getattr(model[0], name) for name in before} == before
    assert model[0].padding_mode == "reflect"
