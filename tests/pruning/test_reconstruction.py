"""A layer's refit against least squares; copies merged without loss, masks, order, flags and types kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tpsprune
from tests.pruning import nets_structure as zoo
from tests.pruning.nets_structure import Tied, conv1d
from tests.pruning.observed import disturbed, moments_of_windows, noise
from tpsprune.pruning import Extraction, extract
from tpsprune.pruning.layers import channels_first
from tpsprune.pruning.layers import update_sizes as remember_sizes
from tpsprune.pruning.observations import JointSums, SplitMoments, read_outputs, read_windows
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.reconstruction import _solve_system, _try_ridges, refit_layer, refusal_to_refit
from tpsprune.recipe.prune import Macs, Prune, Widths


@torch.no_grad()
def error_share(layer: nn.Module, dense: nn.Module, inputs: Tensor) -> float:
    """Return the mean square error of a layer's outputs over their variance."""
    found, wanted = layer(inputs).double(), dense(inputs).double()
    channel = 1 if channels_first(dense) else -1
    rest = [axis for axis in range(wanted.ndim) if axis != channel % wanted.ndim]
    return float((found - wanted).square().sum() / (wanted - wanted.mean(rest, keepdim=True)).square().sum())


@pytest.mark.parametrize(
    ("layer", "inputs"),
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
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-7), (torch.float64, 1e-12)])
def test_a_layer_whose_weights_were_disturbed_comes_back(
    layer: nn.Module, inputs: Tensor, dtype: torch.dtype, most: float
) -> None:
    layer, inputs = copy.deepcopy(layer).to(dtype), inputs.to(dtype)
    pruned = disturbed(layer)
    assert error_share(pruned, layer, inputs) > 1e-3
    refit_layer(pruned, moments_of_windows(layer, pruned, [inputs]))
    assert error_share(pruned, layer, inputs) < most
    torch.testing.assert_close(pruned(inputs), layer(inputs), rtol=0, atol=5 * most**0.5)


def test_the_solution_is_that_of_ridge_regression_towards_the_weights_as_they_are() -> None:
    dense, pruned = nn.Linear(5, 3).double(), disturbed(nn.Linear(5, 3)).double()
    x = noise(3, 5).double()  # Too few items to hold any out: the middle ridge.
    old = pruned.weight.detach().clone()
    assert refit_layer(pruned, moments_of_windows(dense, pruned, [x])) == 1e-2
    y = dense(x).detach()
    centred = x - x.mean(0)
    ridge = 1e-2 * centred.square().mean()
    scaled = torch.cat([centred / len(x) ** 0.5, ridge.sqrt() * torch.eye(5, dtype=torch.float64)])
    aims = torch.cat([(y - y.mean(0)) / len(x) ** 0.5, ridge.sqrt() * old.T])
    expected = torch.linalg.lstsq(scaled, aims).solution.T
    torch.testing.assert_close(pruned.weight.detach(), expected)
    torch.testing.assert_close(pruned(x).detach().mean(0), y.mean(0))


def test_a_signal_that_varies_by_rounding_alone_explains_nothing() -> None:
    sums = JointSums()
    x_bsgp = torch.full((64, 1, 1, 1), 0.3) * (1 + 1e-7 * noise(64, 1, 1, 1))
    sums.add(x_bsgp, noise(64, 1, 1, 2, seed=1))
    moments = sums.moments()
    for part in (moments.whole, moments.fit, moments.held):
        assert not part.xx_gpp.any()
        assert not part.xy_gpq.any()
    layer = nn.Linear(1, 2)
    before = layer.weight.clone()
    refit_layer(layer, moments)
    assert torch.equal(layer.weight, before)


def test_ridges_are_tried_downhill_from_the_last_but_one() -> None:
    ridges = (1e-6, 1e-4, 1e-2, 1.0)
    for least, tried in ((0, 4 - 1), (1, 3), (2, 3), (3, 3)):
        errors = _try_ridges(lambda ridge, least=least: abs(ridges.index(ridge) - least), ridges)
        assert min(errors, key=errors.get) == ridges[least]
        assert len(errors) == tried
    assert _try_ridges(lambda _: math.nan, (0.06, 1.0)) == {0.06: math.inf, 1.0: math.inf}
    assert _try_ridges(lambda _: 1.0, (1.0,)) == {1.0: 1.0}


def test_a_system_factored_in_single_precision_is_solved_as_in_double() -> None:
    x_rp = noise(400, 30, dtype=torch.float64)
    matrix_gpp = (x_rp.T @ x_rp / 400 + 1e-4 * torch.eye(30, dtype=torch.float64))[None]
    right_gpq = noise(1, 30, 3, dtype=torch.float64)
    expected = torch.linalg.solve(matrix_gpp, right_gpq)
    torch.testing.assert_close(
        _solve_system(matrix_gpp, right_gpq, single=True), expected, rtol=0, atol=1e-10
    )
    # Where single precision does not reach, double does.
    matrix_gpp[0, 0, 0] += 1e12
    matrix_gpp[0, 1] = matrix_gpp[0, :, 1] = 0.0
    matrix_gpp[0, 1, 1] = 1e-46
    found = _solve_system(matrix_gpp, right_gpq, single=True)
    torch.testing.assert_close(found[0, 1], right_gpq[0, 1] * 1e46)


def test_a_unit_that_is_another_one_pixel_on_is_replaced_which_no_channel_map_can_do() -> None:
    torch.manual_seed(0)
    dense, pruned = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1)
    with torch.no_grad():
        dense.weight[:, 1, :, :2].zero_()  # What would be out of reach of the other's kernel.
        pruned.weight.copy_(dense.weight[:, :1])
        pruned.bias.copy_(dense.bias)
    image = noise(200, 1, 8, 8)
    inputs = torch.cat([image, functional.pad(image, (1, 0))[..., :-1]], dim=1)
    wanted = dense(inputs).detach()

    @torch.no_grad()
    def error() -> float:
        return float((pruned(image) - wanted).square().mean() / wanted.var())

    assert error() > 0.15
    places = torch.arange(64)
    sums = JointSums()
    sums.add(read_windows(pruned, image, places), read_outputs(dense, wanted, places)[:, :, None])
    refit_layer(pruned, sums.moments())
    # The column at the rim, which the shift pushes out of the image, is all that is lost.
    assert error() < 0.05


def sliced_inputs(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    """Return a layer that reads some of another's inputs."""
    pruned = nn.Linear(int(kept.sum()), layer.out_features)
    with torch.no_grad():
        pruned.weight.copy_(layer.weight[:, kept])
        pruned.bias.copy_(layer.bias)
    return pruned


def moments_of_parts(pruned: nn.Linear, dense: nn.Linear, kept: Tensor, inputs: Tensor) -> SplitMoments:
    sums = JointSums()
    sums.add(inputs[:, None, kept][:, :, None], dense(inputs).detach()[:, None, None])
    return sums.moments()


def test_no_layer_does_worse_on_the_calibration_data_than_it_did() -> None:
    for seed in range(6):
        dense, inputs = nn.Linear(12, 4), noise(16, 12, seed=seed)
        kept = noise(12, seed=seed) > -0.5
        pruned = sliced_inputs(nn.Linear(12, 4), kept)

        @torch.no_grad()
        def error(
            pruned: nn.Linear = pruned, dense: nn.Linear = dense, x: Tensor = inputs, kept: Tensor = kept
        ) -> float:
            return float((pruned(x[:, kept]) - dense(x)).square().mean())

        before = error()
        refit_layer(pruned, moments_of_parts(pruned, dense, kept, inputs))
        assert error() <= before


def test_where_a_fit_would_only_overfit_the_layer_is_kept_as_it_is() -> None:
    torch.manual_seed(0)
    dense, kept = nn.Linear(40, 1), torch.arange(40) < 20
    pruned = sliced_inputs(dense, kept)  # The kept inputs do not determine those that are pruned.
    before = pruned.weight.clone()
    assert refit_layer(pruned, moments_of_parts(pruned, dense, kept, noise(24, 40))) is None
    assert torch.equal(pruned.weight, before)


def test_a_layer_without_a_bias_is_fitted_through_zero() -> None:
    dense = nn.Linear(3, 2, bias=False)
    pruned = disturbed(dense)
    inputs = noise(300, 3) + 2.0
    refit_layer(pruned, moments_of_windows(dense, pruned, [inputs]))
    torch.testing.assert_close(pruned.weight, dense.weight, rtol=0, atol=1e-4)
    # The weights do not make up for a missing bias: they are those of least squares through zero.
    shifted = nn.Linear(3, 2)
    refit_layer(pruned, moments_of_windows(shifted, pruned, [inputs]))
    expected = torch.linalg.lstsq(inputs, shifted(inputs)).solution.T
    torch.testing.assert_close(pruned.weight, expected, rtol=0, atol=2e-3)


def test_what_cannot_be_refitted_has_its_reason() -> None:
    assert "different parts of its kernel" in refusal_to_refit(nn.ConvTranspose2d(2, 2, 2))
    assert "does not mix units" in refusal_to_refit(nn.BatchNorm1d(2))
    assert "4617 features are more than 4608" in refusal_to_refit(nn.Conv2d(513, 1, 3))
    assert not refusal_to_refit(nn.Conv2d(512, 1, 3))
    assert not refusal_to_refit(nn.Conv2d(600, 600, 3, groups=600))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert "parametrised" in refusal_to_refit(normed)


def concatenate_copies(layer: nn.Module, axis: int, *scales: Tensor) -> None:
    """Append scaled copies of a layer's elements along an axis, in place."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if axis and name == "bias":
            continue
        shape = [1] * parameter.ndim
        shape[axis] = -1
        tensors = [parameter.detach() * scale.reshape(shape) for scale in scales]
        setattr(layer, name, nn.Parameter(torch.cat(tensors, dim=axis)))
    remember_sizes(layer)


def doubled(model: nn.Sequential, first: int, second: int, scale: Tensor) -> None:
    """Double the units of layer ``first``: scaled copies, of which ``second`` reads random shares."""
    share = torch.rand(len(scale), dtype=torch.float64, generator=torch.Generator().manual_seed(first))
    alike = torch.ones_like(scale)
    norm = model[first + 1]
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean, norm.running_var = norm.running_mean.repeat(2), norm.running_var.repeat(2)
        concatenate_copies(model[first], 0, alike, alike)
        concatenate_copies(norm, 0, alike, scale)
    else:
        concatenate_copies(model[first], 0, alike, scale)
    concatenate_copies(model[second], 1, 1 - share, share / scale)


def perceptron(activation: nn.Module) -> nn.Sequential:
    between = nn.Identity(), activation
    return nn.Sequential(nn.Linear(5, 6), *between, nn.Linear(6, 4), *between, nn.Linear(4, 3))


def convolutions(activation: nn.Module) -> nn.Sequential:
    between = nn.Identity(), activation
    first, second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, stride=2)
    return nn.Sequential(first, *between, second, *between, nn.Conv2d(4, 3, 2))


def normed(activation: nn.Module) -> nn.Sequential:
    model = convolutions(activation)
    model[1], model[4] = nn.BatchNorm2d(6), nn.BatchNorm2d(4)
    with torch.no_grad():
        for _ in range(20):
            model(noise(32, 2, 8, 8) + 0.3)
    return model.eval()


ACTIVATIONS: dict[str, tuple[nn.Module, Callable[[int], Tensor]]] = {
    "scaled under relu": (nn.ReLU(), lambda n: 0.5 + torch.rand(n, dtype=torch.float64)),
    "copied under gelu": (nn.GELU(), lambda n: torch.ones(n, dtype=torch.float64)),
    "copied under sigmoid": (nn.Sigmoid(), lambda n: torch.ones(n, dtype=torch.float64)),
    "negated under tanh": (nn.Tanh(), lambda n: 1 - 2 * (torch.arange(n) % 2).double()),
}


@pytest.mark.parametrize(
    ("dtype", "refit"),
    [(torch.float64, True), (torch.float32, True), (torch.float64, False)],
    ids=["double", "single", "compensation alone"],
)
@pytest.mark.parametrize("kind", [perceptron, convolutions, normed])
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_copies_are_merged_without_loss(
    case: str, kind: Callable[[nn.Module], nn.Sequential], dtype: torch.dtype, refit: bool
) -> None:
    """Both hidden layers have twice their units; the network of the original widths has equal outputs."""
    torch.manual_seed(0)
    activation, scale_of = ACTIVATIONS[case]
    small = kind(activation).double()
    model = copy.deepcopy(small)
    doubled(model, 0, 3, scale_of(6))
    doubled(model, 3, 6, scale_of(4))
    model, small = model.to(dtype), small.to(dtype)
    batch = (noise(160, 5) if kind is perceptron else noise(48, 2, 8, 8)).to(dtype)
    torch.testing.assert_close(model(batch), small(batch), rtol=1e-4, atol=1e-5)
    found = extract(model, batch.split(80), Prune(target=Widths({"0": 6, "3": 4}), reconstruct=refit))
    for pruned, width in zip(found.plan.groups, (6, 4), strict=True):
        assert {unit % width for unit in pruned.kept} == set(range(width))
    if dtype == torch.float64:
        assert [each.residual_share for each in found.changes] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert output_error(found.ticket, model, [batch]) ** 0.5 < 1e-5
    error, size = (each.detach().norm() for each in (found.ticket(batch) - small(batch), small(batch)))
    assert float(error / size) < 1e-5


def kept_by(found: Extraction) -> list[tuple[int, ...]]:
    return [pruned.kept for pruned in found.plan.groups]


@pytest.mark.parametrize("share", [0.4, 0.8])
@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "mlp", "token-mlp", "transformer"])
def test_compensation_never_does_worse_than_none_on_the_calibration_data(name: str, share: float) -> None:
    """Of the same units: what is compared is the fit and not the choice."""
    model, batch = zoo.case(name)
    model.eval()
    settings = {"target": Macs(share), "units": "pivoted-cholesky", "recalibrate": False}
    removal = extract(model, [batch], Prune(compensate=False, **settings))
    for refit in (True, False):
        fitted = extract(model, [batch], Prune(reconstruct=refit, **settings))
        assert kept_by(fitted) == kept_by(removal)
        errors = [output_error(each.ticket, model, [batch]) for each in (fitted, removal)]
        assert errors[0] <= errors[1]


@pytest.mark.parametrize("units", ["interpolation", "pivoted-cholesky", "magnitude"])
@pytest.mark.parametrize("compensate", [True, False])
def test_units_in_another_order_are_kept_under_their_new_numbers(units: str, compensate: bool) -> None:
    torch.manual_seed(0)
    model, batch = zoo.mlp((5, 9, 7, 3)).double(), zoo.vectors(80).double()
    order = torch.randperm(9)
    permuted = copy.deepcopy(model)
    with torch.no_grad():
        permuted[0].weight.copy_(model[0].weight[order])
        permuted[0].bias.copy_(model[0].bias[order])
        permuted[2].weight.copy_(model[2].weight[:, order])
    settings = Prune(target=Macs(0.5), units=units, compensate=compensate)
    found, again = (extract(each, [batch], settings) for each in (model, permuted))
    first, second = again.plan.groups
    assert {int(order[unit]) for unit in first.kept} == set(found.plan.groups[0].kept)
    assert second.kept == found.plan.groups[1].kept
    torch.testing.assert_close(again.ticket(batch), found.ticket(batch), rtol=1e-6, atol=1e-8)


class Recurrent(nn.Module):
    """One layer called three times, its units those of the stream, and a perceptron called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.again = nn.Linear(5, 8), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x_bd: Tensor) -> Tensor:
        x_bd = torch.tanh(self.embed(x_bd))
        for _ in range(3):
            x_bd = torch.tanh(self.again(x_bd))
        for _ in range(2):
            x_bd = x_bd + self.down(torch.relu(self.up(x_bd)))
        return self.head(x_bd)


@pytest.mark.parametrize("refit", [True, False], ids=["refit", "compensation alone"])
def test_a_layer_called_several_times_is_fitted_to_all_its_calls(refit: bool) -> None:
    torch.manual_seed(0)
    model, batch = Recurrent(), zoo.vectors(128)
    settings = {"target": Macs(0.7), "units": "pivoted-cholesky"}
    fitted, removal = (
        extract(model, batch.split(32), Prune(compensate=compensate, reconstruct=refit, **settings))
        for compensate in (True, False)
    )
    assert {change.group for change in fitted.changes} == {"embed", "up"}
    assert output_error(fitted.ticket, model, [batch]) < output_error(removal.ticket, model, [batch])


@pytest.mark.parametrize(
    ("dtype", "training"), [(torch.float64, True), (torch.float32, False), (torch.bfloat16, True)]
)
def test_modes_flags_number_types_and_memory_formats_are_kept(dtype: torch.dtype, training: bool) -> None:
    model, batch = zoo.case("cnn")
    model.to(dtype, memory_format=torch.channels_last).train(training)
    model.body[1].eval()
    model.body[0].requires_grad_(False)
    model.body[3].weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    found = extract(model, [batch.to(dtype)], Prune(target=Macs(0.5)))
    for name, module in found.ticket.named_modules():
        assert module.training == model.get_submodule(name).training
    assert found.plan.new_biases == ("body.3",)
    assert found.ticket.body[3].weight.is_contiguous(memory_format=torch.channels_last)
    flags = {name: (each.dtype, each.requires_grad) for name, each in model.named_parameters()}
    for name, each in found.ticket.named_parameters():
        added = name in {f"{module}.bias" for module in found.plan.new_biases}
        owner = f"{name.rpartition('.')[0]}.weight" if added else name
        assert (each.dtype, each.requires_grad) == flags[owner]
    assert extract(model.requires_grad_(False), [batch.to(dtype)], Prune(target=Macs(0.4))).macs_share <= 0.4


def test_tied_weights_remain_tied_and_are_not_refitted() -> None:
    torch.manual_seed(0)
    model = Tied()
    found = extract(model, [zoo.tokens(64)], Prune(target=Macs(0.7)))
    assert found.ticket.head.weight is found.ticket.embedding.weight
    assert torch.equal(found.ticket.head.weight, model.head.weight)
    assert [change.group for change in found.changes if change.width_after < change.width_before] == ["up"]


def test_a_frozen_layer_that_loses_nothing_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model, batch = zoo.mlp((5, 9, 7, 6, 3)), zoo.vectors(800)
    model[4].requires_grad_(False)
    found = extract(model, [batch], Prune(target=Widths({"0": 5})))
    assert torch.equal(found.ticket[4].weight, model[4].weight)
    assert torch.equal(found.ticket[0].weight, model[0].weight[list(found.plan.groups[0].kept)])
    assert not torch.equal(found.ticket[2].weight, model[2].weight[:, list(found.plan.groups[0].kept)])
    # What pruning has changed is fitted where that is allowed.
    assert not torch.equal(found.ticket[6].weight, model[6].weight)


def test_many_small_batches_prove_as_much_as_one_large_one() -> None:
    model, batch = zoo.mlp((5, 9, 7, 3)), zoo.vectors(256)
    at_once, in_parts = (
        extract(model, batches, Prune(target=Macs(0.5))) for batches in ([batch], batch.split(4))
    )
    assert in_parts.macs_share <= 0.5
    assert [*map(len, kept_by(in_parts))] == [*map(len, kept_by(at_once))]


class Iterated(nn.Module):
    """A small layer that reads its own outputs, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.update = nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, z: Tensor) -> Tensor:
        for _ in range(12):
            z = z + self.update(self.look(z).relu())
        return z


def test_a_layer_that_reads_its_own_outputs_is_not_made_worse_by_its_fit() -> None:
    worse = []
    for seed in range(6):
        torch.manual_seed(seed)
        model, inputs = Iterated(), torch.randn(64, 6)
        with torch.no_grad():
            model.update.weight.mul_(1.5)
        settings = {"quality": "fast", "round_to": 1}
        fitted = tpsprune.extract(model, inputs, tpsprune.Macs(0.4), **settings)
        plain = tpsprune.replay(model, fitted.plan)
        error = output_error(fitted.ticket, model, [inputs])
        assert error <= output_error(plain, model, [inputs]) * (1 + 1e-6)
        worse += [note for note in fitted.notes if "several times in a pass" in note]
    assert worse, "in one of the nets what is fitted errs more, and the note says so"
