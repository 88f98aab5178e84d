"""How much an error at a layer costs at the end: in closed form, and against errors that were made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.pruning import nets_structure as zoo
from tests.pruning.observed import noise
from tests.unchanged import unchanged
from tpsprune.numerics.forward import sound_backward
from tpsprune.pruning.calibration import measure_sensitivities
from tpsprune.pruning.layers import channels_first


def averaged(model: nn.Module, batch: Tensor, names: list[str], seeds: int) -> dict[str, Tensor]:
    drawn = [measure_sensitivities(model, [batch], names, seed=seed) for seed in range(seeds)]
    return {name: torch.stack([each[name] for each in drawn]).mean(0) for name in drawn[0]}


def spread_of(outputs: Tensor) -> float:
    return float(outputs.detach().double().std(correction=0))


def test_of_a_linear_network_with_one_output_it_is_the_squared_weights_over_the_spread() -> None:
    torch.manual_seed(0)
    first, second, last = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 1)
    model, batch = nn.Sequential(first, second, last).double(), noise(8, 3, dtype=torch.float64)
    found = measure_sensitivities(model, [batch], ["0", "1", "2"])
    variance = spread_of(model(batch)) ** 2
    torch.testing.assert_close(found["2"], torch.ones(1).double() / variance)
    torch.testing.assert_close(found["1"], last.weight[0].detach().square() / variance)
    torch.testing.assert_close(found["0"], (last.weight @ second.weight)[0].detach().square() / variance)


def test_of_several_outputs_it_is_the_mean_over_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)).double()
    batch = noise(8, 3, dtype=torch.float64)
    expected = model[1].weight.detach().square().sum(0) / spread_of(model(batch)) ** 2 / 5
    torch.testing.assert_close(averaged(model, batch, ["0"], 300)["0"], expected, rtol=0.15, atol=0)


def test_an_output_in_other_units_changes_nothing_and_a_layer_in_other_units_all_of_its_own() -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)).double(), noise(8, 3).double()
    before = measure_sensitivities(model, [batch], ["0", "2"])
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter.mul_(10.0)
    after = measure_sensitivities(model, [batch], ["0", "2"])
    torch.testing.assert_close(after["0"], before["0"])
    torch.testing.assert_close(after["2"], before["2"] / 100.0)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(10.0)
        model[2].weight.div_(10.0)
    torch.testing.assert_close(measure_sensitivities(model, [batch], ["0"])["0"], before["0"] / 100.0)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mlp", ["0", "2"]),
        ("cnn", ["body.0", "body.3", "head"]),
        ("residual", ["stem", "blocks.1.conv1"]),
        ("transformer", ["v", "mlp_in", "mlp_out"]),
    ],
)
def test_a_small_error_at_a_layer_costs_what_was_predicted(name: str, layers: list[str]) -> None:
    """An error of one unit at a time, at all its places, independent of one another."""
    model, batch = zoo.case(name)
    model, batch = model.eval(), batch[:8]
    if batch.is_floating_point():
        model, batch = model.double(), batch.double()
    predicted = averaged(model, batch, layers, 40)
    with torch.no_grad():
        outputs = model(batch)
    epsilon, generator = 1e-4, torch.Generator().manual_seed(0)
    for layer in layers:
        module = model.get_submodule(layer)
        axis = 1 if channels_first(module) else -1
        costs = []
        for unit in range(len(predicted[layer])):

            def disturb(_m: nn.Module, _a: object, out: Tensor, unit: int = unit, axis: int = axis) -> Tensor:
                error = torch.zeros_like(out)
                view = error.movedim(axis, 0)
                view[unit] = epsilon * torch.randn(view[unit].shape, generator=generator).to(out)
                return out + error

            handle = module.register_forward_hook(disturb)
            with torch.no_grad():
                errors = [(model(batch) - outputs).double().square().mean() for _ in range(40)]
            handle.remove()
            costs.append(float(torch.stack(errors).mean()) / epsilon**2 / spread_of(outputs) ** 2)
        ratios = torch.tensor(costs) / predicted[layer].float()
        assert float(ratios[predicted[layer] > 0].log().abs().mean()) < 0.25
        assert sum(costs) == pytest.approx(float(predicted[layer].sum()), rel=0.2)


def test_a_layer_called_twice_costs_what_its_two_errors_do() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, 1)

        def forward(self, x_bd: Tensor) -> Tensor:
            return self.last(self.again(self.again(x_bd)))

    torch.manual_seed(0)
    model, batch = Loop().double(), noise(8, 3, dtype=torch.float64)
    found = measure_sensitivities(model, [batch], ["again"])["again"]
    last, again = model.last.weight[0].detach(), model.again.weight.detach()
    expected = (last.square() + (last @ again).square()) / spread_of(model(batch)) ** 2
    torch.testing.assert_close(found, expected)


class Aside(nn.Module):
    """A layer whose output is unused, one that is never called, one read through a whole number only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.unused, self.never, self.choice = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x_bd: Tensor) -> Tensor:
        self.unused(x_bd)
        return self.stem(x_bd) + self.choice(x_bd).argmax(1, keepdim=True)


def test_a_layer_without_a_gradient_is_left_out_and_one_of_zero_gradient_costs_nothing() -> None:
    names = ["stem", "unused", "never", "choice"]
    assert set(measure_sensitivities(Aside(), [noise(8, 3)], names)) == {"stem"}
    blind = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.init.zeros_(blind[1].weight)
    zero = measure_sensitivities(blind, [noise(8, 3)], ["0", "1"])
    assert not zero["0"].any()
    assert zero["1"].all()


def test_frozen_layers_are_measured_too_and_flags_modes_and_gradients_are_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    batch = noise(8, 3)
    thawed = measure_sensitivities(model, [batch], ["0", "3"])
    model[0].requires_grad_(False)
    model[3].weight.requires_grad_(False)
    model[1].eval()
    with unchanged(model), torch.no_grad():
        found = measure_sensitivities(model, [batch], ["0", "3"])
    assert not torch.is_inference_mode_enabled()
    for name, sensitivity_q in found.items():
        torch.testing.assert_close(sensitivity_q, thawed[name])
    broken = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4)).requires_grad_(False)
    with unchanged(broken), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure_sensitivities(broken, [noise(8, 3)], ["0"])


def test_it_is_a_mean_over_items_and_the_same_for_the_same_seed() -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), noise(8, 3)
    once = measure_sensitivities(model, [batch], ["0"])["0"]
    assert torch.equal(once, measure_sensitivities(model, [batch], ["0"])["0"])
    torch.testing.assert_close(measure_sensitivities(model, [batch] * 4, ["0"])["0"], once)
    state = torch.get_rng_state()
    measure_sensitivities(model, [batch], ["0"], seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("capability", "inputs", "uses_onednn"), [("AVX2", 4, False), ("AVX2", 8, True), ("AVX512", 4, True)]
)
def test_a_strided_pointwise_convolution_of_few_channels_corrupts_no_memory(
    capability: str, inputs: int, uses_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel of oneDNN for its weight's gradient writes beyond its buffer where there is no AVX-512.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    seen = []
    model = nn.Conv2d(inputs, 8, 1, stride=2)
    model.register_forward_hook(lambda *_: seen.append(torch._C._get_mkldnn_enabled()))
    with sound_backward(model):
        model(torch.zeros(2, inputs, 8, 8))
    assert seen == [uses_onednn]
    assert torch._C._get_mkldnn_enabled()
