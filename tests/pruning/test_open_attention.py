from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.observed import noise
from tests.unchanged import unchanged
from tpsprune.errors import PruneError
from tpsprune.pruning.open_attention import OpenAttention, why_attention_stays_closed
from tpsprune.pruning.opening import open_layers, opened_shapes, opened_state


class Holder(nn.Module):
    """An attention module by itself, as a model holds it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(8, **{"num_heads": 2, **settings})
        for parameter in self.attn.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, *inputs: Tensor, **settings: Any) -> tuple[Tensor, Tensor | None]:
        output: tuple[Tensor, Tensor | None] = self.attn(*inputs, **settings)
        return output


def compare(
    dense: nn.Module, opened: nn.Module, inputs: tuple[Tensor, ...], settings: dict[str, Any]
) -> None:
    """Assert equal outputs and equal gradients of the inputs and of the shared output projection."""
    outputs, gradients = [], []
    for model in (dense, opened):
        leaves = [each.clone().requires_grad_() for each in inputs]
        torch.manual_seed(1)
        output, weights = model(*leaves, **settings)
        model.zero_grad()
        (output * noise(*output.shape, seed=5)).sum().backward()
        outputs.append((output, weights))
        gradients.append([leaf.grad for leaf in leaves])
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=1e-6)
    assert (outputs[0][1] is None) == (outputs[1][1] is None)
    if outputs[0][1] is not None:
        assert torch.allclose(outputs[0][1], outputs[1][1], atol=1e-6)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("need_weights", "average"), [(True, True), (True, False), (False, True)])
def test_an_opened_attention_computes_what_the_closed_one_does(
    bias: bool, batch_first: bool, need_weights: bool, average: bool
) -> None:
    dense = Holder(bias=bias, batch_first=batch_first)
    opened, names = open_layers(dense)
    assert names == ("attn",)
    shape = (3, 5, 8) if batch_first else (5, 3, 8)
    x = noise(*shape)
    settings = {"need_weights": need_weights, "average_attn_weights": average}
    compare(dense, opened, (x, x, x), settings)
    packed = dense.attn.in_proj_weight.grad
    split = [opened.get_submodule(f"attn.{name}").weight.grad for name in ("q_proj", "k_proj", "v_proj")]
    assert torch.allclose(packed, torch.cat(split), atol=1e-5)


def masks(kind: str) -> dict[str, Any]:
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 4, [False, False, False, True], [False, True, False, True]])
    floating = noise(4, 4, seed=7)
    return {
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": floating},
        "hint": {"attn_mask": causal, "is_causal": True},
        "per head": {"attn_mask": noise(6, 4, 4, seed=8)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding, "is_causal": True},
        "float padding": {"key_padding_mask": padding.float() * -3.0, "attn_mask": floating},
    }[kind]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float", "hint", "per head", "padding", "both", "float padding"])
def test_masks_of_every_kind_mean_the_same(kind: str, need_weights: bool) -> None:
    dense = Holder(batch_first=True)
    x = noise(3, 4, 8)
    compare(dense, open_layers(dense)[0], (x, x, x), {**masks(kind), "need_weights": need_weights})


@pytest.mark.parametrize("batch_first", [True, False])
def test_keys_and_values_may_have_widths_of_their_own(batch_first: bool) -> None:
    dense = Holder(kdim=5, vdim=6, batch_first=batch_first)
    items = (3, 4) if batch_first else (4, 3)
    sources = (3, 7) if batch_first else (7, 3)
    inputs = (noise(*items, 8), noise(*sources, 5, seed=1), noise(*sources, 6, seed=2))
    compare(dense, open_layers(dense)[0], inputs, {})


def test_one_item_without_a_batch_axis_is_taken_too() -> None:
    dense = Holder()
    x = noise(5, 8)
    for settings in ({}, {"need_weights": False}, {"key_padding_mask": torch.arange(5) > 3}):
        compare(dense, open_layers(dense)[0], (x, x, x), settings)


def test_dropout_takes_the_same_random_numbers() -> None:
    dense = Holder(dropout=0.5, batch_first=True)
    x = noise(3, 5, 8)
    compare(dense, open_layers(dense)[0], (x, x, x), {})


def test_the_causal_hint_without_a_mask_is_refused_as_in_torch() -> None:
    x = noise(3, 5, 8)
    dense = Holder()
    for model in (dense, open_layers(dense)[0]):
        with pytest.raises(RuntimeError, match="attn_mask"):
            model(x, x, x, is_causal=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoders_compute_the_same_on_the_fast_path_and_off_it(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    dense = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    opened, names = open_layers(dense)
    assert names == ("layers.0.self_attn", "layers.1.self_attn")
    x = noise(3, 5, 8)
    padding = torch.arange(5)[None] > torch.tensor([4, 2, 3])[:, None]
    for model in (dense, opened):
        model.eval()
    with torch.no_grad():
        assert torch.allclose(dense(x), opened(x), atol=1e-5)
        padded = dense(x, src_key_padding_mask=padding), opened(x, src_key_padding_mask=padding)
    assert torch.allclose(padded[0][~padding], padded[1][~padding], atol=1e-5)
    for model in (dense, opened):
        model.train()
        torch.manual_seed(3)
        model(x).sum().backward()
    assert opened.layers[0].self_attn.q_proj.weight.grad is not None


def test_decoders_are_opened_at_both_attentions() -> None:
    torch.manual_seed(0)
    dense = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1).eval()
    opened, names = open_layers(dense)
    assert names == ("layers.0.self_attn", "layers.0.multihead_attn")
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    inputs = noise(3, 4, 8), noise(3, 6, 8, seed=1)
    with torch.no_grad():
        expected = dense(*inputs, tgt_mask=causal, tgt_is_causal=True)
        assert torch.allclose(expected, opened(*inputs, tgt_mask=causal, tgt_is_causal=True), atol=1e-5)


def test_the_model_handed_in_is_not_opened_and_flags_types_and_modes_are_kept() -> None:
    dense = Holder().to(torch.bfloat16)
    dense.attn.in_proj_weight.requires_grad_(False)
    dense.train()
    dense.attn.eval()
    with unchanged(dense):
        opened, _ = open_layers(dense)
    assert opened.training
    assert not opened.attn.training
    assert not opened.attn.q_proj.training
    assert opened.attn.k_proj.weight.dtype is torch.bfloat16
    assert [p.requires_grad for p in (opened.attn.q_proj.weight, opened.attn.q_proj.bias)] == [False, True]


def test_a_module_met_at_two_places_stays_closed() -> None:
    model = nn.ModuleDict({"a": Holder()})
    model["b"] = model["a"]
    opened, names = open_layers(model)
    assert names == ()
    assert opened["a"].attn is opened["b"].attn
    with pytest.raises(PruneError, match="the model holds it under several names"):
        open_layers(model, ["a.attn"])


def test_what_cannot_be_opened_is_left_alone_with_the_reason() -> None:
    class Own(nn.MultiheadAttention):
        pass

    hooked = nn.MultiheadAttention(4, 2)
    hooked.register_forward_hook(lambda *_: None)
    bound = nn.MultiheadAttention(4, 2)
    nn.utils.parametrizations.weight_norm(bound, "in_proj_weight")
    for module, reason in (
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), "add_bias_kv"),
        (nn.MultiheadAttention(4, 2, add_zero_attn=True), "add_zero_attn"),
        (Own(4, 2), "Own may compute something of its own"),
        (hooked, "hooks are attached"),
        (bound, "of its own|parametrised"),
    ):
        model = nn.Sequential(module)
        assert why_attention_stays_closed(module) != ""
        opened, names = open_layers(model)
        assert names == ()
        assert not isinstance(opened[0], OpenAttention)
        with pytest.raises(PruneError, match=f"'0' cannot be opened: .*({reason})"):
            open_layers(model, ["0"])
    with pytest.raises(PruneError, match=r"is named 'atn' \(did you mean 'attn'\?\)"):
        open_layers(Holder(), ["atn"])


def test_tied_projections_remain_tied_and_closed() -> None:
    model = nn.ModuleDict({"a": Holder(), "b": Holder()})
    model["b"].attn.in_proj_weight = model["a"].attn.in_proj_weight
    opened, names = open_layers(model)
    assert names == ()
    assert opened["a"].attn.in_proj_weight is opened["b"].attn.in_proj_weight
    with pytest.raises(PruneError, match="'in_proj_weight' is also that of another module"):
        open_layers(model, ["a.attn"])


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 3, "vdim": 5}])
def test_shapes_and_optimizer_state_fall_apart_as_the_weights_do(settings: dict[str, Any]) -> None:
    model = Holder(**settings)
    opened, names = open_layers(model)
    closed = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    shapes = opened_shapes(closed, names)
    assert shapes == {name: tuple(t.shape) for name, t in opened.state_dict().items()}
    state = {
        name: {"exp_avg": value.detach().clone(), "step": torch.tensor(3.0), "momentum_buffer": None}
        for name, value in model.named_parameters()
    }
    split = opened_state(state, names, closed)
    assert set(split) == set(shapes)
    for name, entries in split.items():
        assert torch.equal(entries["exp_avg"], opened.get_parameter(name))
        assert entries["step"] == 3.0
        assert entries["momentum_buffer"] is None
    assert len({id(entries["step"]) for entries in split.values()}) == len(split)
