"""Layers that compute their weight on every call become plain ones, and can then be pruned."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import tpsprune
from tests.unchanged import unchanged
from tpsprune.errors import PruneError
from tpsprune.models.libraries import help_torchvision, import_torchvision
from tpsprune.pruning import carry_state, check_ticket, replay
from tpsprune.pruning.opening import open_layers, open_what_computes_alike, opened_shapes
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.plain_layers import is_computed, plain_layer

IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions and a classifier, made by a function of a layer."""

    def __init__(self, make: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.first = make(nn.Conv2d(3, 12, 3, padding=1))
        self.second = make(nn.Conv2d(12, 16, 3, stride=2))
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


def standardised(same: bool, scaled: bool) -> Callable[[nn.Module], nn.Module]:
    """Return what turns a convolution into a weight-standardised one of timm, and draws its gain."""

    def make(layer: nn.Module) -> nn.Module:
        import_torchvision()
        timm: Any = importlib.import_module("timm.layers")
        old: Any = layer
        kind = getattr(timm, f"{'Scaled' if scaled else ''}StdConv2d{'Same' if same else ''}")
        made: nn.Module = kind(old.in_channels, old.out_channels, 3, stride=old.stride[0], bias=True)
        if scaled:
            nn.init.uniform_(made.get_parameter("gain"), 0.5, 1.5)
        return made

    return make


def weight_normed(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer)


def spectrally_normed(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(layer)


MAKERS = {
    "weight norm": weight_normed,
    "spectral norm": spectrally_normed,
    "standardised": standardised(same=False, scaled=False),
    "standardised, same": standardised(same=True, scaled=False),
    "scaled": standardised(same=False, scaled=True),
    "scaled, same": standardised(same=True, scaled=True),
}


def net(name: str) -> Net:
    torch.manual_seed(0)
    return Net(MAKERS[name]).eval()


@pytest.mark.parametrize("name", MAKERS)
def test_the_plain_net_computes_what_the_net_computes_and_has_the_shapes_foretold(name: str) -> None:
    model = net(name)
    with unchanged(model):
        opened, names = open_layers(model)
    assert names == ("first", "second")
    assert not is_computed(opened.first)
    assert {key.rpartition(".")[2] for key, _ in opened.named_parameters()} == {"weight", "bias"}
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), opened(IMAGES), atol=1e-5)
    copy.deepcopy(opened)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert opened_shapes(shapes, names) == {
        key: tuple(value.shape) for key, value in opened.state_dict().items()
    }


@pytest.mark.parametrize("name", MAKERS)
def test_such_a_net_is_pruned_to_the_target_and_its_plan_replays(name: str) -> None:
    model = net(name)
    found = tpsprune.extract(model, [IMAGES], tpsprune.Macs(0.5), quality="fast")
    assert 0.3 < found.macs_share <= 0.5
    assert {each.name for each in found.unpruned} == {"last"}
    assert found.plan.opened == ("first", "second")
    again = replay(model, found.plan)
    for ticket in (found.ticket, again):
        check_ticket(ticket, found.plan)
    assert output_error(found.ticket, model, [IMAGES]) < output_error(again, model, [IMAGES])
    assert any("computes the weight on every call" in note for note in found.notes)


def test_adapters_are_pruned_along_with_what_they_adapt_and_saved_as_adapters(tmp_path: Path) -> None:
    help_torchvision()
    peft: Any = importlib.import_module("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["0", "2"]))
    x = torch.randn(128, 8)
    ticket: Any = tpsprune.extract(model, x, tpsprune.Macs(0.5), quality="fast").ticket
    adapter = ticket.base_model.model[0]
    assert adapter.base_layer.out_features == adapter.lora_B["default"].out_features < 24
    ticket.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size > 500


def test_state_of_what_a_weight_was_computed_from_is_left_behind_and_that_of_a_bias_kept() -> None:
    model = net("weight norm")
    found = tpsprune.extract(model, [IMAGES], tpsprune.Macs(0.6), quality="fast")
    state = {key: {"exp_avg": value.detach().clone()} for key, value in model.named_parameters()}
    carried = carry_state(state, found.plan)
    assert set(carried) == {"first.bias", "second.bias", "last.weight", "last.bias"}
    kept = dict(replay(model, found.plan).named_parameters())
    assert torch.equal(carried["first.bias"]["exp_avg"], kept["first.bias"])


class Loud(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * self._conv_forward(x, self.weight.tanh(), self.bias)


class Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self._conv_forward(x, self.weight.tanh(), None)


class Moody(nn.Conv2d):
    """Its weight depends on what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * torch.sigmoid(5 * x.mean()), self.bias)


class OfTwo(nn.Linear):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x) * scale


def made(kind: type[nn.Conv2d]) -> Callable[[nn.Module], nn.Module]:
    def make(layer: nn.Module) -> nn.Module:
        old: Any = layer
        return kind(old.in_channels, old.out_channels, 3, padding=1)

    return make


def closed(model: nn.Module, batch: Any = IMAGES[:2]) -> dict[str, str]:
    return open_what_computes_alike(model, batch)[2]


def test_a_layer_that_does_more_than_multiply_stays_as_it_is_with_the_reason() -> None:
    model = Net(made(Loud)).eval()
    assert open_layers(model)[1] == ()
    assert set(closed(model).values()) == {"it computes more than a product with its weight"}
    assert not is_computed(Net(made(Twice)).first)
    hooked = net("weight norm")
    hooked.first.register_forward_hook(lambda *_: None)
    assert closed(hooked) == {"first": "hooks are attached to it"}
    with pytest.raises(PruneError, match="'first' cannot be opened: hooks are attached to it"):
        open_layers(hooked, ["first"])


def test_a_weight_that_depends_on_what_the_layer_is_given_is_not_made_constant() -> None:
    torch.manual_seed(0)
    model = Net(made(Moody)).eval()
    assert set(closed(model).values()) == {"it computes more than a product with its weight"}
    found = tpsprune.extract(model, [IMAGES], tpsprune.Params(0.95), quality="fast", min_width=1)
    assert output_error(found.ticket, model, [IMAGES]) < 0.5


def test_what_is_found_only_with_the_whole_model_closes_that_module_alone() -> None:
    class Around(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.second.parametrizations.weight.original1.mean()

    torch.manual_seed(0)
    model = Around(weight_normed).eval()
    opened, names, reasons_of = open_what_computes_alike(model, IMAGES[:2])
    assert names == ("first",)
    assert reasons_of == {"second": "with it opened the model gives something else"}
    opened(IMAGES)


def test_layers_of_unusual_code_or_parametrisation_stay_closed_and_break_nothing() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    biased = nn.Linear(4, 3)
    parametrize.register_parametrization(biased, "bias", Doubled())
    x = torch.randn(5, 4)
    opened, names = open_layers(nn.Sequential(biased))
    assert names == ("0",)
    assert torch.allclose(opened(x), biased(x))
    pair = nn.Module()
    pair.layer = parametrizations.weight_norm(OfTwo(4, 3))
    assert open_layers(pair)[1] == ()
    scaled = nn.Linear(4, 3)
    scaled.scale = nn.Parameter(torch.ones(2))
    parametrize.register_parametrization(scaled, "scale", Doubled())
    assert open_layers(nn.Sequential(scaled))[1] == ()


def test_a_layer_under_several_names_stays_closed_and_an_inner_one_is_opened_first() -> None:
    shared = net("weight norm")
    shared.again = shared.first
    assert closed(shared) == {"first": "the model holds it under several names"}
    attention = nn.Module()
    attention.m = nn.MultiheadAttention(8, 2, batch_first=True)
    parametrizations.weight_norm(attention.m.out_proj)
    opened, names = open_layers(attention)
    assert names == ("m", "m.out_proj")
    assert not parametrize.is_parametrized(opened.get_submodule("m.out_proj"))
    shapes = {key: tuple(value.shape) for key, value in attention.state_dict().items()}
    assert opened_shapes(shapes, names) == {key: tuple(v.shape) for key, v in opened.state_dict().items()}


@pytest.mark.parametrize("name", MAKERS)
def test_a_shell_without_values_is_opened_as_the_plan_says(name: str) -> None:
    model = net(name)
    found = tpsprune.extract(model, [IMAGES], tpsprune.Macs(0.6), quality="fast")
    for shell in (copy.deepcopy(model).to("meta"), copy.deepcopy(model)):
        with torch.no_grad():
            for parameter in shell.parameters():
                parameter.zero_()
        check_ticket(replay(shell, found.plan), found.plan)


def test_flags_and_modes_are_those_of_the_layer() -> None:
    layer = weight_normed(nn.Linear(4, 3))
    assert all(each.requires_grad for each in plain_layer(layer).parameters())
    plain = plain_layer(layer.requires_grad_(False).double().train())
    assert plain.training
    assert not any(each.requires_grad for each in plain.parameters())
    assert type(plain) is nn.Linear
    assert plain.weight.dtype is torch.float64


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoders_padded_places_do_not_keep_its_attention_closed() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)
            self.last = weight_normed(nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            padding = torch.arange(x.shape[1]) >= 3
            given = self.encoder(x, src_key_padding_mask=padding.expand(len(x), -1))
            return torch.nn.functional.pad(self.last(given), (0, 0, 0, x.shape[1] - given.shape[1]))

    torch.manual_seed(0)
    _, names, reasons_of = open_what_computes_alike(Tokens().eval(), torch.randn(2, 5, 8))
    assert names == ("encoder.layers.0.self_attn", "last")
    assert reasons_of == {}
