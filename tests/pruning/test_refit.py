"""The refit: moments against a plain unfold, the solution against plain least squares, and what it mends."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.pruning.patches import patch_moments
from tpsprune.pruning.refit import refit, refit_fault


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everything(layer: nn.Module) -> Tensor:
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return torch.ones(inputs, dtype=torch.bool)


def disturbed(layer: nn.Module, seed: int = 5) -> nn.Module:
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(noise(*parameter.shape, seed=seed), alpha=0.1)
    return other


def covariance(a_rp: Tensor, b_rq: Tensor) -> Tensor:
    return (a_rp - a_rp.mean(0)).T @ (b_rq - b_rq.mean(0)) / len(a_rp)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0)),
        nn.Conv2d(3, 4, 3, dilation=2, padding="same"),
    ],
    ids=["plain", "strided", "dilated"],
)
def test_the_moments_are_those_of_a_plain_unfold(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    batches = [noise(5, 3, 7, 7), noise(4, 3, 7, 7, seed=1)]
    model = nn.Sequential(layer)
    whole = patch_moments(model, model, batches, {"0": everything(layer)})["0"].whole
    images = torch.cat(batches)
    padding = 2 if layer.padding == "same" else layer.padding
    x_rp = functional.unfold(images, layer.kernel_size, layer.dilation, padding, layer.stride)
    x_rp = x_rp.transpose(1, 2).flatten(0, 1).double()
    y_rq = layer(images).flatten(2).transpose(1, 2).flatten(0, 1).double()
    assert whole.rows == len(x_rp)
    torch.testing.assert_close(whole.mean_x_gp[0], x_rp.mean(0))
    torch.testing.assert_close(whole.xx_gpp[0], covariance(x_rp, x_rp))
    torch.testing.assert_close(whole.xy_gpq[0], covariance(x_rp, y_rq))
    torch.testing.assert_close(whole.yy_gq[0], covariance(y_rq, y_rq).diagonal())


def test_tokens_are_rows_of_a_linear_layer() -> None:
    layer = nn.Linear(3, 2)
    tokens = noise(8, 5, 3)
    model = nn.Sequential(layer)
    whole = patch_moments(model, model, [tokens], {"0": everything(layer)})["0"].whole
    rows = tokens.flatten(0, 1).double()
    torch.testing.assert_close(whole.xx_gpp[0], covariance(rows, rows))


@pytest.mark.parametrize(
    ("layer", "given"),
    [
        (nn.Linear(6, 3), noise(400, 6)),
        (nn.Conv2d(4, 3, 3, padding=1), noise(60, 4, 6, 6)),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), noise(60, 4, 6, 6)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), noise(60, 4, 6, 6)),
        (nn.Conv1d(4, 3, 5, stride=2), noise(60, 4, 15)),
        (nn.Conv3d(2, 3, 2), noise(30, 2, 4, 4, 4)),
        (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect", bias=False), noise(60, 4, 6, 6)),
    ],
    ids=["linear", "conv", "grouped", "depthwise", "conv1d", "conv3d", "reflect"],
)
def test_a_layer_whose_weights_were_disturbed_comes_back(layer: nn.Module, given: Tensor) -> None:
    dense, cut = nn.Sequential(layer), nn.Sequential(disturbed(layer))
    alive = everything(layer)
    done = refit(cut[0], patch_moments(dense, cut, [given], {"0": alive})["0"], alive)
    assert done.before_share > 1e-3
    assert done.after_share < 1e-6
    torch.testing.assert_close(cut(given), dense(given), rtol=0, atol=2e-3)


def test_the_solution_is_that_of_ridge_regression_towards_the_weights_as_they_are() -> None:
    dense, cut = nn.Sequential(nn.Linear(5, 3)), nn.Sequential(disturbed(nn.Linear(5, 3)))
    given = noise(3, 5)  # Too few items to hold any out: the middle ridge.
    old = cut[0].weight.detach().double().clone()
    alive = everything(cut[0])
    done = refit(cut[0], patch_moments(dense, cut, [given], {"0": alive})["0"], alive)
    assert done.ridge == 1e-2
    x, y = given.double(), dense(given).detach().double()
    centred = x - x.mean(0)
    ridge = 1e-2 * centred.square().mean()
    scaled = torch.cat([centred / len(x) ** 0.5, ridge.sqrt() * torch.eye(5, dtype=torch.float64)])
    aims = torch.cat([(y - y.mean(0)) / len(x) ** 0.5, ridge.sqrt() * old.T])
    expected = torch.linalg.lstsq(scaled, aims).solution.T
    torch.testing.assert_close(cut[0].weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cut(given).mean(0).double(), y.mean(0), rtol=1e-5, atol=1e-6)


def test_a_unit_that_is_another_one_pixel_on_is_replaced_which_no_channel_map_can_do() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            other = functional.pad(image, (1, 0))[..., :-1]
            return self.conv(torch.cat([image, other], dim=1))

    torch.manual_seed(0)
    dense = Shifted()
    with torch.no_grad():
        dense.conv.weight[:, 1, :, 0] = 0.0  # What would be out of reach of the other's kernel.
        dense.conv.weight[:, 1, :, :2].zero_()
    cut = copy.deepcopy(dense)
    with torch.no_grad():
        cut.conv.weight[:, 1] = 0.0
    given = noise(200, 1, 8, 8)
    alive = torch.tensor([True, False])
    done = refit(cut.conv, patch_moments(dense, cut, [given], {"conv": alive})["conv"], alive)
    assert done.before_share > 0.2
    # The column at the rim, which the shift pushes out of the image, is all that is lost.
    assert done.after_share < 0.05
    assert not cut.conv.weight[:, 1].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_inputs_that_are_gone_keep_weights_of_zero(groups: int) -> None:
    dense = nn.Sequential(nn.Conv2d(4, 4, 3, groups=groups))
    cut = copy.deepcopy(dense)
    alive = torch.tensor([True, False, True, True])
    with torch.no_grad():
        per_group = cut[0].weight.unflatten(0, (groups, -1))
        per_group.swapaxes(1, 2).flatten(0, 1)[1] = 0.0
    before = cut[0].weight == 0
    given = noise(60, 4, 6, 6)
    given[:, 1] = given[:, 0] - given[:, 2]
    done = refit(cut[0], patch_moments(dense, cut, [given], {"0": alive})["0"], alive)
    assert done.ridge is not None
    assert torch.equal(cut[0].weight == 0, before)


def test_no_layer_does_worse_on_the_probe_than_it_did() -> None:
    for seed in range(6):
        dense, cut = nn.Sequential(nn.Linear(12, 4)), nn.Sequential(nn.Linear(12, 4))
        alive = noise(12, seed=seed) > -0.5
        with torch.no_grad():
            cut[0].weight[:, ~alive] = 0.0
        moments = patch_moments(dense, cut, [noise(16, 12, seed=seed)], {"0": alive})["0"]
        done = refit(cut[0], moments, alive)
        assert done.after_share <= done.before_share


def test_where_a_fit_would_only_learn_by_heart_the_layer_stays_as_it_is() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(40, 1))
    cut = copy.deepcopy(dense)
    alive = torch.arange(40) < 20  # Of inputs that say nothing about those that are gone.
    with torch.no_grad():
        cut[0].weight[:, ~alive] = 0.0
    before = cut[0].weight.clone()
    done = refit(cut[0], patch_moments(dense, cut, [noise(24, 40)], {"0": alive})["0"], alive)
    assert done.ridge is None
    assert done.after_share == done.before_share
    assert torch.equal(cut[0].weight, before)


def test_a_layer_without_a_bias_is_fitted_through_zero() -> None:
    dense = nn.Sequential(nn.Linear(3, 2, bias=False))
    cut = nn.Sequential(disturbed(dense[0]))
    given = noise(300, 3) + 2.0
    moments = patch_moments(dense, cut, [given], {"0": everything(dense[0])})["0"]
    assert refit(cut[0], moments, everything(dense[0])).after_share < 1e-6
    torch.testing.assert_close(cut[0].weight, dense[0].weight, rtol=0, atol=1e-2)


def test_positions_are_drawn_by_the_seed_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    batches = [noise(16, 1, 40, 40)]
    alive = {"0": everything(model[0])}
    state = torch.get_rng_state()
    first = patch_moments(model, model, batches, alive)["0"].whole
    assert torch.equal(torch.get_rng_state(), state)
    again = patch_moments(model, model, batches, alive)["0"].whole
    other = patch_moments(model, model, batches, alive, seed=1)["0"].whole
    assert first.rows == 8192
    assert torch.equal(first.xx_gpp, again.xx_gpp)
    assert not torch.equal(first.xx_gpp, other.xx_gpp)


def test_modes_come_back_and_the_dense_model_is_not_touched() -> None:
    dense = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)).train()
    cut = copy.deepcopy(dense)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    moments = patch_moments(dense, cut, [noise(8, 2, 5, 5)], {"0": everything(dense[0])})["0"]
    refit(cut[0], moments, everything(dense[0]))
    assert dense.training
    assert cut[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_what_cannot_be_refitted_says_why() -> None:
    assert "different parts of its kernel" in refit_fault(nn.ConvTranspose2d(2, 2, 2), torch.ones(2))
    assert "does not mix units" in refit_fault(nn.BatchNorm1d(2), torch.ones(2))
    assert "4617 features are more than 4608" in refit_fault(nn.Conv2d(600, 1, 3), torch.arange(600) < 513)
    assert not refit_fault(nn.Conv2d(600, 1, 3), torch.arange(600) < 512)
    assert not refit_fault(nn.Conv2d(600, 600, 3, groups=600), torch.ones(600))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert "parametrised" in refit_fault(normed, torch.ones(2))
