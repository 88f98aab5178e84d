from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tpsprune.pruning import Consumer
from tpsprune.pruning.fold import fold_in, interpolation, takes_intercept
from tpsprune.pruning.statistics import call_order, pair_moments


def linear_pair(x_rn: Tensor, y_rn: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    """Two models that feed the linear layer ``1`` with x and y, of which the input picks rows."""
    tables = [nn.Embedding.from_pretrained(values) for values in (x_rn, y_rn)]
    head = nn.Linear(x_rn.shape[1], 2).double()
    cut, dense = (nn.Sequential(table, head) for table in tables)
    return cut, dense, torch.arange(len(x_rn))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), intercept=st.booleans())
def test_without_ridge_the_map_is_ordinary_least_squares(seed: int, intercept: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_rn = torch.randn(40, 6, generator=generator, dtype=torch.float64) + 2
    y_rn = x_rn @ torch.randn(6, 6, generator=generator, dtype=torch.float64) + 1
    cut, dense, batch = linear_pair(x_rn, y_rn)
    consumer = Consumer("1", 0, 1)
    moments = pair_moments(dense, cut, batch.split(9), {consumer: 6})[consumer]
    kept = (0, 2, 5)
    map_nk, intercept_n = interpolation(moments, kept, intercept=intercept, ridge=0.0)
    design = x_rn[:, kept]
    if intercept:
        design = torch.cat([design, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(design, y_rn).solution
    torch.testing.assert_close(map_nk.T, expected[:3])
    torch.testing.assert_close(intercept_n, expected[3] if intercept else torch.zeros_like(intercept_n))


@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1.0, 1e4])
def test_the_fold_is_never_worse_than_the_plain_cut_and_tends_to_it(ridge: float) -> None:
    x_rn = torch.randn(60, 5, dtype=torch.float64)
    y_rn = x_rn + 0.1 * torch.randn(60, 5, dtype=torch.float64)
    cut, dense, batch = linear_pair(x_rn, y_rn)
    consumer = Consumer("1", 0, 1)
    moments = pair_moments(dense, cut, [batch], {consumer: 5})[consumer]
    map_nk, intercept_n = interpolation(moments, (1, 3), intercept=True, ridge=ridge)
    plain_nk = torch.zeros(5, 2, dtype=torch.float64)
    plain_nk[1, 0] = plain_nk[3, 1] = 1.0
    folded = (y_rn - x_rn[:, [1, 3]] @ map_nk.T - intercept_n).square().mean()
    plain = (y_rn - x_rn[:, [1, 3]] @ plain_nk.T).square().mean()
    assert folded <= plain
    if ridge == 1e4:
        torch.testing.assert_close(map_nk, plain_nk, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["linear", "convolution", "transposed", "flattened", "offset"])
def test_a_folded_layer_says_of_the_kept_units_what_it_would_of_their_estimates(name: str) -> None:
    torch.manual_seed(0)
    layer, consumer, given = {
        "linear": (nn.Linear(4, 3), Consumer("", 0, 1), torch.randn(5, 4)),
        "convolution": (nn.Conv2d(4, 3, 3), Consumer("", 0, 1), torch.randn(5, 4, 6, 6)),
        "transposed": (nn.ConvTranspose2d(4, 3, 2, stride=2), Consumer("", 0, 1), torch.randn(5, 4, 6, 6)),
        "flattened": (nn.Linear(8, 3), Consumer("", 0, 2), torch.randn(5, 8)),
        "offset": (nn.Conv2d(7, 3, 3), Consumer("", 2, 1), torch.randn(5, 7, 6, 6)),
    }[name]
    layer, given = layer.double(), given.double()
    map_nk = torch.randn(4, 2, dtype=torch.float64)
    intercept_n = torch.randn(4, dtype=torch.float64) * takes_intercept(layer)
    kept = (1, 3)
    offset, block = consumer.offset, consumer.block
    units = given[:, offset : offset + 4 * block].unflatten(1, (4, block))
    estimate = torch.einsum("nk,bk...->bn...", map_nk, units[:, kept])
    estimate = estimate + intercept_n.reshape(1, 4, *[1] * (estimate.ndim - 2))
    estimated = given.clone()
    estimated[:, offset : offset + 4 * block] = estimate.flatten(1, 2)
    folded = copy.deepcopy(layer)
    fold_in(folded, layer, consumer, kept, map_nk, intercept_n)
    torch.testing.assert_close(folded(given), layer(estimated))


@pytest.mark.parametrize("name", ["cnn", "mixed", "transformer"])
def test_streamed_moments_are_those_of_all_activations_kept(zoo: SimpleNamespace, name: str) -> None:
    dense, batch = zoo.case(name)
    dense = dense.double().eval()
    batch = batch.double() if batch.is_floating_point() else batch
    module, consumer, width = {
        "cnn": ("head", Consumer("head", 0, 9), 8),
        "mixed": ("merge", Consumer("merge", 6, 1), 5),
        "transformer": ("q", Consumer("q", 0, 1), 8),
    }[name]
    cut = copy.deepcopy(dense)
    for parameter in cut.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    rows = []
    for model in (cut, dense):
        kept: list[Tensor] = []
        handle = model.get_submodule(module).register_forward_pre_hook(
            lambda _, args, kept=kept: kept.append(args[0])
        )
        model(batch)
        handle.remove()
        fed = kept[0].detach()
        if name == "cnn":
            fed = fed.unflatten(1, (8, 9)).transpose(1, 2)
        elif name == "mixed":
            fed = fed[:, 6:11].movedim(1, -1)
        rows.append(fed.reshape(-1, width))
    moments = pair_moments(dense, cut, batch.split(5), {consumer: width})[consumer]
    expected = torch.cov(torch.cat(rows, dim=1).T, correction=0)
    assert moments.rows == len(rows[0])
    torch.testing.assert_close(moments.xx_nn, expected[:width, :width])
    torch.testing.assert_close(moments.xy_nn, expected[:width, width:])
    torch.testing.assert_close(moments.yy_nn, expected[width:, width:])
    torch.testing.assert_close(moments.mean_x_n, rows[0].mean(0))
    torch.testing.assert_close(moments.mean_y_n, rows[1].mean(0))


def test_consumers_come_in_the_order_of_the_forward_pass(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mixed")
    consumers = tuple(Consumer(name, 0, 1) for name in ("head", "up", "merge", "squeeze", "excite"))
    ordered = call_order(model, batch, (*consumers, Consumer("merge", 6, 1)))
    assert [each.module for each in ordered] == ["squeeze", "excite", "merge", "merge", "up", "head"]
    assert [each.offset for each in ordered if each.module == "merge"] == [0, 6]
