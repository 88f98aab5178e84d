from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.forward import count_macs


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.heads = heads

    def forward(self, tokens_btd: Tensor) -> Tensor:
        items, length, width = tokens_btd.shape
        q, k, v = (
            layer(tokens_btd).reshape(items, length, self.heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).reshape(items, length, width))


class OnlyForReal(nn.Module):
    """Reads a value in its forward pass, which the meta device cannot give."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x_bd: Tensor) -> Tensor:
        return self.layer(x_bd) * float(x_bd.sum())


class NamedInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, features: Tensor, scale: float) -> Tensor:
        return self.layer(features) * scale


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_costs_output_positions_times_weight_elements(groups: int) -> None:
    layer = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    assert count_macs(layer, torch.zeros(4, 8, 10, 12)).total == 5 * 6 * 16 * (8 // groups) * 9


def test_a_linear_layer_costs_rows_times_weight_elements() -> None:
    assert count_macs(nn.Linear(7, 11), torch.zeros(3, 5, 7)).total == 5 * 7 * 11


def test_attention_is_counted_with_its_scores_and_its_weighted_sum() -> None:
    count = count_macs(Attention(12, 3), torch.zeros(2, 5, 12))
    assert count.total == 5 * 4 * 12 * 12 + 2 * 5 * 5 * 12
    assert count.by_module == dict.fromkeys("qkvo", 5 * 12 * 12)


def test_modules_are_counted_by_their_names_children_included() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    )
    count = count_macs(model, torch.zeros(2, 1, 4, 4))
    assert count.by_module == {"0": 4 * 9 * 4, "2": 48, "2.1": 48}
    assert count.total == 144 + 48


def test_the_number_of_items_does_not_matter() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    assert count_macs(model, torch.zeros(1, 1, 4, 4)) == count_macs(model, torch.zeros(7, 1, 4, 4))


def test_a_model_the_meta_device_refuses_is_counted_for_real() -> None:
    assert count_macs(OnlyForReal(), torch.ones(2, 3)).total == 15


def test_batches_go_in_by_name_or_by_position() -> None:
    features = torch.ones(2, 3)
    assert count_macs(NamedInputs(), {"features": features, "scale": 2.0}).total == 15
    assert count_macs(NamedInputs(), (features, 2.0)).total == 15


def test_the_model_keeps_its_mode_its_statistics_and_its_device() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    count_macs(model, torch.randn(2, 1, 4, 4))
    assert [module.training for module in model.modules()] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_a_batch_without_items_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        count_macs(nn.Linear(2, 2), torch.zeros(0, 2))
