"""The refit: moments against a plain unfold, the solution against least squares, and what it repairs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning.feeds import disturbed, noise, of_patches
from tests.pruning.nets_structure import conv1d
from tpsprune.pruning.layers import length
from tpsprune.pruning.observations import count_windows, read_windows, sample_places
from tpsprune.pruning.reconstruction import refit_layer, refusal_to_refit


def everything(layer: nn.Module) -> Tensor:
    return torch.ones(length(layer, "in"), dtype=torch.bool)


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
    whole = of_patches(layer, layer, batches).whole
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
    whole = of_patches(layer, layer, [tokens]).whole
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
        (conv1d(6, 3), noise(80, 5, 6)),
    ],
    ids=["linear", "conv", "grouped", "depthwise", "conv1d", "conv3d", "reflect", "turned linear"],
)
def test_a_layer_whose_weights_were_disturbed_comes_back(layer: nn.Module, given: Tensor) -> None:
    cut = disturbed(layer)
    done = refit_layer(cut, of_patches(layer, cut, [given]), everything(layer))
    assert done.before_share > 1e-3
    assert done.after_share < 1e-9
    torch.testing.assert_close(cut(given), layer(given), rtol=0, atol=1e-4)


def test_the_solution_is_that_of_ridge_regression_towards_the_weights_as_they_are() -> None:
    dense, cut = nn.Linear(5, 3), disturbed(nn.Linear(5, 3))
    given = noise(3, 5)  # Too few items to hold any out: the middle ridge.
    old = cut.weight.detach().double().clone()
    done = refit_layer(cut, of_patches(dense, cut, [given]), everything(cut))
    assert done.ridge == 1e-2
    x, y = given.double(), dense(given).detach().double()
    centred = x - x.mean(0)
    ridge = 1e-2 * centred.square().mean()
    scaled = torch.cat([centred / len(x) ** 0.5, ridge.sqrt() * torch.eye(5, dtype=torch.float64)])
    aims = torch.cat([(y - y.mean(0)) / len(x) ** 0.5, ridge.sqrt() * old.T])
    expected = torch.linalg.lstsq(scaled, aims).solution.T
    torch.testing.assert_close(cut.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cut(given).mean(0).double(), y.mean(0), rtol=1e-5, atol=1e-6)


def test_a_unit_that_is_another_one_pixel_on_is_replaced_which_no_channel_map_can_do() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(2, 3, 3, padding=1)
    with torch.no_grad():
        dense.weight[:, 1, :, :2].zero_()  # What would be out of reach of the other's kernel.
    cut = copy.deepcopy(dense)
    with torch.no_grad():
        cut.weight[:, 1] = 0.0
    image = noise(200, 1, 8, 8)
    given = torch.cat([image, functional.pad(image, (1, 0))[..., :-1]], dim=1)
    alive = torch.tensor([True, False])
    done = refit_layer(cut, of_patches(dense, cut, [given], alive), alive)
    assert done.before_share > 0.15
    # The column at the rim, which the shift pushes out of the image, is all that is lost.
    assert done.after_share < 0.05
    assert not cut.weight[:, 1].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_inputs_that_are_gone_keep_weights_of_zero(groups: int) -> None:
    dense = nn.Conv2d(4, 4, 3, groups=groups)
    cut = disturbed(dense)
    alive = torch.tensor([True, False, True, True])
    with torch.no_grad():
        cut.weight[: 4 // groups, 1] = 0.0  # The second input is heard by the first group alone.
    before = cut.weight == 0
    given = noise(60, 4, 6, 6)
    given[:, 1] = given[:, 0]
    done = refit_layer(cut, of_patches(dense, cut, [given], alive), alive)
    assert done.ridge is not None
    assert done.after_share < 1e-9
    assert torch.equal(cut.weight == 0, before)
    torch.testing.assert_close(cut(given), dense(given), rtol=0, atol=1e-4)


def test_no_layer_does_worse_on_the_probe_than_it_did() -> None:
    for seed in range(6):
        dense, cut, given = nn.Linear(12, 4), nn.Linear(12, 4), noise(16, 12, seed=seed)
        alive = noise(12, seed=seed) > -0.5
        with torch.no_grad():
            cut.weight[:, ~alive] = 0.0
        before = float((cut(given) - dense(given)).square().mean().detach())
        done = refit_layer(cut, of_patches(dense, cut, [given], alive), alive)
        after = float((cut(given) - dense(given)).square().mean().detach())
        assert after <= before
        assert done.after_share / done.before_share == pytest.approx(after / before, abs=1e-5)


def test_where_a_fit_would_only_learn_by_heart_the_layer_stays_as_it_is() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(40, 1)
    cut = copy.deepcopy(dense)
    alive = torch.arange(40) < 20  # Of inputs that say nothing about those that are gone.
    with torch.no_grad():
        cut.weight[:, ~alive] = 0.0
    before = cut.weight.clone()
    done = refit_layer(cut, of_patches(dense, cut, [noise(24, 40)], alive), alive)
    assert done.ridge is None
    assert done.after_share == done.before_share
    assert torch.equal(cut.weight, before)


def test_a_layer_without_a_bias_is_fitted_through_zero() -> None:
    dense = nn.Linear(3, 2, bias=False)
    cut = disturbed(dense)
    given = noise(300, 3) + 2.0
    assert refit_layer(cut, of_patches(dense, cut, [given]), everything(dense)).after_share < 1e-9
    torch.testing.assert_close(cut.weight, dense.weight, rtol=0, atol=1e-4)
    # What a bias would say is no business of the weights: they are those of least squares through zero.
    shifted = nn.Linear(3, 2)
    refit_layer(cut, of_patches(shifted, cut, [given]), everything(dense))
    expected = torch.linalg.lstsq(given, shifted(given)).solution.T
    torch.testing.assert_close(cut.weight, expected, rtol=0, atol=2e-3)


def test_places_are_drawn_by_the_generator_alone_each_once_and_in_order() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        sample_places(1444, 512, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first) == 512
    assert bool((first.diff() > 0).all())
    assert torch.equal(sample_places(5, 9, torch.Generator()), torch.arange(5))


def test_what_is_seen_at_some_places_is_part_of_what_is_seen_at_all() -> None:
    layer, given = nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1), noise(2, 3, 9, 7)
    assert count_windows(layer, given) == 5 * 4
    alive = torch.tensor([True, False, True])
    some = torch.tensor([0, 3, 19])
    everywhere = read_windows(layer, given, alive, torch.arange(20))
    assert everywhere.shape == (2, 20, 1, 2 * 9)
    assert torch.equal(read_windows(layer, given, alive, some), everywhere[:, some])


def test_what_cannot_be_refitted_says_why() -> None:
    assert "different parts of its kernel" in refusal_to_refit(nn.ConvTranspose2d(2, 2, 2), torch.ones(2))
    assert "does not mix units" in refusal_to_refit(nn.BatchNorm1d(2), torch.ones(2))
    assert "4617 features are more than 4608" in refusal_to_refit(
        nn.Conv2d(600, 1, 3), torch.arange(600) < 513
    )
    assert not refusal_to_refit(nn.Conv2d(600, 1, 3), torch.arange(600) < 512)
    assert not refusal_to_refit(nn.Conv2d(600, 600, 3, groups=600), torch.ones(600))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert "parametrised" in refusal_to_refit(normed, torch.ones(2))
