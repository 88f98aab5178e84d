"""The networks that recipes name: parameters, shapes, and the triplets of their units."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tpsprune
from tpsprune.errors import ModelError
from tpsprune.models import Cnn, Mlp, ResNet, TokenMlp, Transformer
from tpsprune.models.architectures import Gated, _attention
from tpsprune.recipe.task import AttentionForm
from tpsprune.records import TaskFacts
from tpsprune.tps.triplets import Labels


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_cnn_has_as_many_parameters_as_by_its_formula() -> None:
    model = Cnn((3, 32, 32), (16, 32, 48), 1, 10)
    convolutions = 9 * (3 * 16 + 16 * 32 + 32 * 48)
    norms = 2 * (16 + 32 + 48)
    assert size_of(model) == convolutions + norms + 49 * 10


@pytest.mark.parametrize(
    ("side", "pool_every", "expected"),
    [(32, 1, [16, 8, 4, 4]), (28, 1, [14, 7, 7, 7]), (8, 1, [4, 4, 4, 4]), (32, 2, [32, 16, 16, 8])],
)
def test_a_cnn_halves_its_maps_while_four_pixels_remain(
    side: int, pool_every: int, expected: list[int]
) -> None:
    model = Cnn((1, side, side), (4, 4, 4, 4), pool_every, 3)
    maps = torch.randn(2, 1, side, side)
    sides = []
    for block in model.blocks:
        maps = block(maps)
        sides.append(maps.shape[-1])
    assert sides == expected


@settings(max_examples=15, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(8, 20),
    width=st.integers(8, 20),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    pool_every=st.integers(1, 3),
)
def test_a_cnn_takes_images_of_any_shape(
    channels: int, height: int, width: int, widths: list[int], pool_every: int
) -> None:
    model = Cnn((channels, height, width), widths, pool_every, 5)
    assert model(torch.randn(2, channels, height, width)).shape == (2, 5)


@pytest.mark.parametrize("depth", [8, 20, 56])
@pytest.mark.parametrize(("channels", "width", "classes"), [(3, 16, 10), (1, 5, 7)])
def test_a_resnet_has_as_many_parameters_as_by_its_formula(
    depth: int, channels: int, width: int, classes: int
) -> None:
    n = (depth - 2) // 6
    expected = (
        9 * channels * width
        + 2 * width
        + width**2 * (378 * n - 80)
        + 28 * n * width
        + 12 * width
        + (4 * width + 1) * classes
    )
    assert size_of(ResNet(channels, depth, width, classes)) == expected


def test_resnet_20_has_0_27_million_parameters() -> None:
    assert size_of(ResNet(3, 20, 16, 10)) == 272_474


def test_a_resnet_doubles_channels_and_halves_size_from_stage_to_stage() -> None:
    model = ResNet(3, 20, 16, 10)
    maps = model.conv(torch.randn(2, 3, 32, 32))
    shapes = []
    for stage in model.stages:
        maps = stage(maps)
        shapes.append(tuple(maps.shape))
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 1 == 20 + 2  # the head; two projections are not counted in the depth


def test_a_resnet_block_of_zeros_passes_its_input_on() -> None:
    block = ResNet(3, 8, 4, 2).stages[0][0].eval()
    block.norm2.weight.data.zero_()
    maps = torch.rand(1, 4, 8, 8)
    torch.testing.assert_close(block(maps), maps)


def test_convolutions_are_drawn_with_the_deviation_of_he_et_al() -> None:
    model = ResNet(3, 20, 32, 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_an_mlp_has_as_many_parameters_as_by_its_formula() -> None:
    assert size_of(Mlp(64, (32, 16), 10)) == 65 * 32 + 33 * 16 + 17 * 10
    assert size_of(TokenMlp(59, 2, 24, (256,), 59)) == 59 * 24 + 49 * 256 + 257 * 59


def test_an_mlp_flattens_images() -> None:
    model = Mlp(64, (32,), 10)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(images), model(images.flatten(1)))
    assert model(images).shape == (3, 10)


def test_a_token_mlp_distinguishes_the_first_token_from_the_second() -> None:
    model = TokenMlp(5, 2, 4, (8,), 5)
    assert model(torch.tensor([[1, 2]])).shape == (1, 5)
    assert not torch.allclose(model(torch.tensor([[1, 2]])), model(torch.tensor([[2, 1]])))


@pytest.mark.parametrize(("length", "layers"), [(2, 1), (2, 3), (9, 2)])
def test_a_transformer_has_as_many_parameters_as_by_its_formula(length: int, layers: int) -> None:
    p, d, m, c = 59, 32, 80, 61
    model = Transformer(p, d, 4, m, c, length=length, layers=layers)
    assert size_of(model) == (p + length + 2) * d + layers * (4 * d * d + 2 * d * m + m + d) + d * c


@pytest.mark.parametrize(("length", "layers"), [(2, 1), (2, 2), (6, 1), (5, 3)])
def test_a_transformer_computes_as_one_that_computes_every_position_under_a_causal_mask(
    length: int, layers: int
) -> None:
    model = Transformer(7, 12, 3, 20, 7, length=length, layers=layers).double()
    tokens = torch.randint(0, 7, (5, length))
    stream = model.embedding(torch.cat((tokens, torch.full((5, 1), 7)), 1)) + model.positions.weight
    for layer in (*model.earlier, model):
        attended = torch.zeros_like(stream)
        for head in range(3):
            columns = slice(4 * head, 4 * head + 4)
            q, k, v = (part(stream)[..., columns] for part in (layer.q, layer.k, layer.v))
            scores = q @ k.transpose(1, 2) / 4**0.5
            scores = scores.masked_fill(torch.ones(length + 1, length + 1).triu(1).bool(), -torch.inf)
            attended += scores.softmax(-1) @ v @ layer.o.weight[:, columns].T
        stream = stream + attended
        stream = stream + layer.mlp_out(layer.mlp_in(stream).relu())
    torch.testing.assert_close(model(tokens), model.unembed(stream)[:, -1])


@pytest.mark.parametrize("layers", [1, 3])
def test_a_transformer_of_another_form_has_its_parameters_and_sees_the_order_of_tokens(layers: int) -> None:
    p, h, d, m, c = 7, 4, 16, 20, 7
    softmax, forgetting, simplicial = (
        Transformer(p, d, h, m, c, length=6, layers=layers, form=form)
        for form in ("softmax", "forgetting", "simplicial")
    )
    assert size_of(forgetting) == size_of(softmax) + layers * h * (d + 1) - 7 * d
    assert size_of(simplicial) == size_of(softmax) + layers * 2 * d * d
    tokens = torch.arange(6)[None]
    for model in (forgetting, simplicial):
        assert not torch.allclose(model(tokens), model(tokens.flip(1)), atol=1e-4)


@pytest.mark.parametrize("form", ["forgetting", "simplicial"])
def test_the_last_layer_computes_what_one_at_every_position_would(form: AttentionForm) -> None:
    model = Transformer(7, 12, 3, 20, 7, length=4, layers=1, form=form).double()
    tokens = torch.randint(0, 7, (5, 4))
    stream = model.embedding(torch.cat((tokens, torch.full((5, 1), 7)), 1))
    stream = stream if model.positions is None else stream + model.positions.weight
    stream = stream + _attention(model, stream, stream, causal=True)
    stream = stream + model.mlp_out(model.mlp_in(stream).relu())
    torch.testing.assert_close(model(tokens), model.unembed(stream)[:, -1])


@pytest.mark.parametrize("form", ["forgetting", "simplicial"])
def test_heads_of_a_transformer_of_another_form_are_pruned(form: AttentionForm) -> None:
    torch.manual_seed(0)
    model = Transformer(11, 32, 4, 48, 11, length=6, layers=2, form=form)
    tokens = torch.randint(0, 11, (256, 6))
    found = tpsprune.extract(model, tokens, tpsprune.Macs(0.5), quality="fast", round_to=1)
    heads = [group for group in found.changes if group.kind == "heads"]
    assert len(heads) == 2
    assert any(group.width_after < group.width_before for group in heads)
    assert found.macs_share == pytest.approx(0.5, abs=0.05)
    assert tpsprune.replay(model, found.plan)(tokens).shape == (256, 11)


def test_transformer_weights_are_drawn_as_by_nanda_et_al() -> None:
    model = Transformer(113, 128, 4, 512, 113)
    assert model.mlp_out.weight.std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert model.unembed.weight.std().item() == pytest.approx(114**-0.5, rel=0.03)
    assert not model.mlp_in.bias.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cnn((1, 8, 8), (4, 8), 1, 3),
        lambda: ResNet(1, 8, 4, 3),
        lambda: Mlp(64, (8,), 3),
        lambda: TokenMlp(5, 2, 4, (8,), 5),
        lambda: TokenMlp(5, 2, 4, (8,), 5, gated=True),
        lambda: Transformer(5, 8, 2, 16, 5),
        lambda: Transformer(5, 8, 2, 16, 5, layers=2),
    ],
    ids=["cnn", "resnet", "mlp", "token-mlp", "gated", "transformer", "two-layers"],
)
def test_equal_seeds_give_equal_weights_and_other_seeds_others(make) -> None:
    torch.manual_seed(3)
    first = make().state_dict()
    torch.manual_seed(3)
    again = make().state_dict()
    other = make().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_rows_of_the_token_embedding_begin_with_length_one() -> None:
    model = TokenMlp(vocabulary=400, length=2, embedding=64, widths=(8,), classes=400)
    assert model.embedding.weight.square().sum(1).mean().item() == pytest.approx(1.0, rel=0.03)


P = 7
QUARTERS = (0.0, 0.25, 0.5, 0.75)
FACTS = TaskFacts(input_kind="tokens", input_shape=(2,), classes=P, vocabulary=P, cyclic=True)


def whole_table() -> Tensor:
    return torch.cartesian_prod(torch.arange(P), torch.arange(P))


def of_characters() -> TokenMlp:
    """A net made by hand that adds mod 7: with x = cos(ka + α) + cos(kb + β), 16 units for each frequency k.

    relu(x) · x at the phases (α, β) and (α + π, β + π) sums to x², which holds 2 cos(ka + α) cos(kb + β).
    Read out by cos(kc + α + β) and summed over all quarter turns of both phases, 4 cos(k(a + b − c)) is all
    that is left.
    """
    units = [
        (2 * torch.pi * k / P, 2 * torch.pi * turn, 2 * torch.pi * other)
        for k, turn, other in product((1, 2, 3), QUARTERS, QUARTERS)
    ]
    model = TokenMlp(P, 2, P, (len(units),), P, gated=True).double()
    ids = torch.arange(P).double()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(P))
        for half in (model.hidden[0].gate, model.hidden[0].up):
            half.bias.zero_()
            for unit, (speed, first, second) in enumerate(units):
                half.weight[unit, :P] = (speed * ids + first).cos()
                half.weight[unit, P:] = (speed * ids + second).cos()
        model.head.bias.zero_()
        for unit, (speed, first, second) in enumerate(units):
            model.head.weight[:, unit] = (speed * ids + first + second).cos()
    return model


def test_a_gated_layer_multiplies_its_open_gates_with_what_they_let_through() -> None:
    layer = Gated(2, 3)
    with torch.no_grad():
        layer.gate.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        layer.gate.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
        layer.up.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))
        layer.up.bias.copy_(torch.tensor([0.0, 0.0, -5.0]))
    assert layer(torch.tensor([[2.0, 3.0]])).tolist() == [[6.0, 0.0, -12.0]]


def test_a_gated_mlp_has_as_many_parameters_as_by_its_formula() -> None:
    size = sum(parameter.numel() for parameter in Mlp(64, (32, 16), 10, gated=True).parameters())
    assert size == 2 * (65 * 32 + 33 * 16) + 17 * 10


def test_a_gated_mlps_output_can_be_rebuilt_from_its_triplets() -> None:
    model = TokenMlp(P, 2, 5, (11,), 6, gated=True).double()
    tokens = torch.randint(0, P, (20, 2))
    u, v, o = model.unit_triplets(tokens)
    assert (u.shape, v.shape, o.shape) == ((P, 22), (P, 22), (22, 6))
    (gate_a, up_a), (up_b, gate_b) = u.chunk(2, dim=1), v.chunk(2, dim=1)
    layer = model.hidden[0]
    gates = gate_a[tokens[:, 0]] + gate_b[tokens[:, 1]] + layer.gate.bias
    ups = up_a[tokens[:, 0]] + up_b[tokens[:, 1]] + layer.up.bias
    rebuilt = (gates.relu() * ups) @ o[:11] + model.head.bias
    torch.testing.assert_close(rebuilt, model(tokens))
    assert torch.equal(o[:11], o[11:])


def test_what_both_tokens_do_together_in_a_linear_unit_is_the_sum_of_its_two_triplets() -> None:
    """Without the ReLU, in the mixed difference over both tokens all else falls away."""
    model = TokenMlp(P, 2, 5, (3,), 4, gated=True).double()
    tokens = whole_table()
    rows = model.embedding(tokens).flatten(1)
    products = (model.hidden[0].gate(rows) * model.hidden[0].up(rows)).view(P, P, 3)
    mixed = products - products[:1] - products[:, :1] + products[:1, :1]
    u, v, _ = model.unit_triplets(tokens)
    both = ((u - u[:1])[:, None] * (v - v[:1])[None]).unflatten(2, (2, 3)).sum(2)
    torch.testing.assert_close(mixed, both)


def test_a_gated_net_of_characters_adds_and_each_of_its_triplets_is_coherent() -> None:
    model, tokens = of_characters(), whole_table()
    labels = tokens.sum(1) % P
    assert torch.equal(model(tokens).argmax(1), labels)
    apart = 2 * torch.pi * (labels[:, None] - torch.arange(P)).double() / P
    torch.testing.assert_close(model(tokens), sum(4 * (k * apart).cos() for k in (1, 2, 3)))
    coherence = Labels(model, FACTS, tokens, labels).coherences()
    torch.testing.assert_close(coherence, torch.ones(2 * 48).double())


def test_triplets_of_characters_cancel_out_on_the_labels_of_another_task() -> None:
    """On a − b a triplet of phases (α, β) has cos 2β: 1, −1, 1 and −1 at the quarter turns."""
    model, tokens = of_characters(), whole_table()
    coherence = Labels(model, FACTS, tokens, (tokens[:, 0] - tokens[:, 1]) % P).coherences()
    torch.testing.assert_close(coherence, torch.tensor([1.0, -1.0]).double().repeat(48))


@pytest.mark.parametrize("factor", [0, 1])
def test_a_unit_whose_gate_sees_the_first_token_alone_has_one_triplet_that_is_nothing(factor: int) -> None:
    model, tokens = of_characters(), whole_table()
    with torch.no_grad():
        model.hidden[0].gate.weight[:, P:] = 0.0
    first, mirrored = model.unit_triplets(tokens)[factor].chunk(2, dim=1)
    assert bool(first.any())
    assert bool(mirrored.any()) == (factor == 0)


def test_what_two_tokens_add_to_an_mlps_unit_is_its_pre_activation() -> None:
    model = TokenMlp(7, 2, 5, (11,), 6).double()
    tokens = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    seen: list[torch.Tensor] = []
    handle = model.hidden[0].register_forward_hook(lambda _, __, output: seen.append(output))
    model(tokens)
    handle.remove()
    u, v, o = model.unit_triplets(tokens)
    assert (u.shape, v.shape, o.shape) == ((7, 11), (7, 11), (11, 6))
    torch.testing.assert_close(u[tokens[:, 0]] + v[tokens[:, 1]] + model.hidden[0].bias, seen[0])


def test_an_mlps_output_can_be_rebuilt_from_its_triplets() -> None:
    model = TokenMlp(7, 2, 5, (11,), 6).double()
    tokens = torch.randint(0, 7, (20, 2))
    u, v, o = model.unit_triplets(tokens)
    units = (u[tokens[:, 0]] + v[tokens[:, 1]] + model.hidden[0].bias).relu()
    torch.testing.assert_close(units @ o + model.head.bias, model(tokens))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_transformers_main_effects_are_group_means_less_the_grand_mean(layers: int) -> None:
    model = Transformer(6, 8, 2, 10, 6, layers=layers).double()
    tokens = torch.randint(0, 5, (30, 2))  # token 5 never occurs
    seen: list[torch.Tensor] = []
    handle = model.mlp_in.register_forward_hook(lambda _, __, output: seen.append(output))
    model(tokens)
    handle.remove()
    for axis, effect in enumerate(model.unit_triplets(tokens)[:2]):
        for token in range(6):
            rows = [seen[0][i] for i in range(30) if int(tokens[i, axis]) == token]
            expected = torch.stack(rows).mean(0) - seen[0].mean(0) if rows else torch.zeros(10).double()
            torch.testing.assert_close(effect[token], expected)


def test_over_all_pairs_a_transformers_main_effects_sum_to_zero() -> None:
    model = Transformer(6, 8, 2, 10, 6).double()
    u, v, _ = model.unit_triplets(torch.cartesian_prod(torch.arange(6), torch.arange(6)))
    torch.testing.assert_close(u.sum(0), torch.zeros(10).double())
    torch.testing.assert_close(v.sum(0), torch.zeros(10).double())


def test_a_transformers_outgoing_weights_are_what_a_unit_adds_to_each_score() -> None:
    model = Transformer(6, 8, 2, 10, 4).double()
    tokens = torch.randint(0, 6, (3, 2))
    outgoing = model.unit_triplets(tokens)[2]
    # A bias on every pre-activation large enough that ReLU is the identity: adding 1 to unit 2 adds o[2].
    model.mlp_in.bias.data += 1000
    before = model(tokens)
    model.mlp_in.bias.data[2] += 1
    torch.testing.assert_close(model(tokens) - before, outgoing[2].expand(3, 4))


@pytest.mark.parametrize(
    "model",
    [
        TokenMlp(5, 2, 4, (8,), 5),
        TokenMlp(5, 2, 4, (8,), 5, gated=True),
        Transformer(5, 8, 2, 8, 5),
        Transformer(5, 8, 2, 8, 5, layers=2),
    ],
    ids=["mlp", "gated", "transformer", "two-layers"],
)
def test_triplets_carry_gradients_to_the_weights(model: TokenMlp | Transformer) -> None:
    assert model.has_unit_triplets
    u, v, o = model.unit_triplets(torch.tensor([[0, 1], [2, 3], [2, 1]]))
    last = model.head if isinstance(model, TokenMlp) else model.unembed
    for part, weight in ((u, model.embedding.weight), (v, model.embedding.weight), (o, last.weight)):
        (gradient,) = torch.autograd.grad(part.square().sum(), [weight], retain_graph=True)
        assert gradient.any()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (TokenMlp(5, 2, 4, (8, 8), 5), "2 hidden layers on 2 tokens are not defined; expected one"),
        (TokenMlp(5, 3, 4, (8,), 5), "1 hidden layers on 3 tokens are not defined; expected one hidden"),
        (
            TokenMlp(5, 2, 4, (8, 8), 5, gated=True),
            "2 hidden layers on 2 tokens are not defined; expected one",
        ),
        (Transformer(5, 8, 2, 8, 5, length=3), "a 'transformer' on 3 tokens are not defined; expected two"),
    ],
    ids=["two-layers", "three-tokens", "two-gated-layers", "three-tokens-transformer"],
)
def test_where_triplets_are_not_defined_the_model_reports_it(
    model: TokenMlp | Transformer, words: str
) -> None:
    assert not model.has_unit_triplets
    with pytest.raises(ModelError, match=words):
        model.unit_triplets(torch.zeros(1, 2, dtype=torch.int64))
