from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.unchanged import unchanged
from tpsprune.models import ResNet, Transformer
from tpsprune.numerics.macs import count_macs


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


@pytest.mark.parametrize("most_for_real", [0, 10**12])
def test_a_model_the_meta_device_refuses_is_counted_for_real(
    most_for_real: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpsprune.numerics.macs.MOST_FOR_REAL", most_for_real)
    assert count_macs(OnlyForReal(), torch.ones(2, 3)).total == 15


def test_batches_are_passed_by_name_or_by_position() -> None:
    features = torch.ones(2, 3)
    assert count_macs(NamedInputs(), {"features": features, "scale": 2.0}).total == 15
    assert count_macs(NamedInputs(), (features, 2.0)).total == 15


def test_the_model_keeps_its_mode_its_statistics_and_its_device() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    model[1].eval()
    with unchanged(model):
        count_macs(model, torch.randn(2, 1, 4, 4))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_a_batch_without_items_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        count_macs(nn.Linear(2, 2), torch.zeros(0, 2))


class Experts(nn.Module):
    """Rows 0 and 1 meet the first matrix, row 2 the second, all others the third."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_gkn = nn.Parameter(torch.zeros(3, 8, 16, dtype=torch.bfloat16))

    def forward(self, x_mk: Tensor) -> Tensor:
        ends_g = torch.tensor([2, 3, len(x_mk)], dtype=torch.int32, device=x_mk.device)
        return torch._grouped_mm(x_mk.bfloat16(), self.weight_gkn, offs=ends_g)


class SparseGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.register_buffer("adjacency", torch.eye(5).to_sparse())

    def forward(self, x_nd: Tensor) -> Tensor:
        return torch.sparse.mm(self.adjacency, self.layer(x_nd))


@pytest.mark.parametrize("most_for_real", [0, 10**12])
def test_experts_cost_what_their_rows_meet(most_for_real: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpsprune.numerics.macs.MOST_FOR_REAL", most_for_real)
    assert count_macs(Experts(), torch.zeros(6, 8)).total == 8 * 16


def test_a_sparse_matrix_costs_its_elements_that_are_not_zero() -> None:
    assert count_macs(SparseGraph(), torch.zeros(5, 4)).total == 4 * 6 + 6


@torch.library.custom_op("tpsprune_tests::scaled", mutates_args=())
def scaled(x: Tensor, y: Tensor) -> Tensor:
    return x * y


class OwnKernel(nn.Module):
    def forward(self, x_bd: Tensor) -> Tensor:
        return scaled(x_bd, x_bd)


def test_a_kernel_from_elsewhere_is_named_and_not_counted() -> None:
    count = count_macs(nn.Sequential(nn.Linear(4, 4), OwnKernel()), torch.zeros(2, 4))
    assert (count.total, count.uncounted) == (16, ("tpsprune_tests.scaled in 1",))


def test_products_are_listed_with_their_lengths_and_the_innermost_module() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    products = count_macs(model, torch.zeros(2, 1, 4, 4)).products
    assert [(each.module, each.lengths) for each in products] == [
        ("0", (2, 2, 2, 4, 1, 3, 3)),
        ("1.1", (2, 16, 3)),
    ]


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    images, tokens = torch.zeros(2, 3, 16, 16), torch.zeros(2, 5, 12)
    return {
        "residual": (ResNet(3, 8, 4, 10), images),
        "dilated, grouped, transposed": (
            nn.Sequential(nn.Conv2d(3, 6, 3, dilation=2, groups=3), nn.ConvTranspose2d(6, 4, 2, stride=2)),
            images,
        ),
        "transformer": (Transformer(7, 8, 2, 16, 7, layers=2), torch.zeros(2, 2, dtype=torch.int64)),
        "torch's attention": (nn.TransformerEncoderLayer(12, 3, 24, batch_first=True), tokens),
        "branches": (Branches(), tokens),
        "recurrent": (nn.Sequential(nn.LSTM(12, 4, batch_first=True), Picked()), tokens),
        "bilinear": (Outer(), tokens),
        "shared": (nn.Sequential(layer := nn.Linear(12, 12), nn.ReLU(), layer), tokens),
    }


class Picked(nn.Module):
    def forward(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        return outputs[0] @ outputs[0].mT


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, x_btd: Tensor) -> Tensor:
        positive = x_btd.sum() > 0
        return torch.cond(positive, self.layer, lambda x: self.layer(x) + self.layer(2 * x), (x_btd,))


class Outer(nn.Module):
    def forward(self, x_btd: Tensor) -> Tensor:
        return torch.einsum("btd,bsd->bts", x_btd, torch.baddbmm(x_btd, x_btd @ x_btd.mT, x_btd))


@pytest.mark.parametrize("most_for_real", [0, 10**12])
@pytest.mark.parametrize("name", networks())
def test_it_counts_as_the_counter_of_torch_does_module_by_module(
    name: str, most_for_real: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpsprune.numerics.macs.MOST_FOR_REAL", most_for_real)
    model, batch = networks()[name]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta").eval()(batch.to("meta"))
    found = {key: sum(each.values()) for key, each in counter.get_flop_counts().items()}
    count, prefix = count_macs(model, batch), f"{type(model).__name__}."
    assert count.total == found["Global"] // 4 > 0
    assert count.by_module == {
        key.removeprefix(prefix): flops // 4 for key, flops in found.items() if key.startswith(prefix)
    }
