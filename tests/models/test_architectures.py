from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tpsprune.models import Cnn, Mlp, ResNet, TokenMlp, Transformer


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_cnn_has_as_many_parameters_as_its_formula_says() -> None:
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
def test_a_resnet_has_as_many_parameters_as_its_formula_says(
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


def test_a_resnet_block_that_says_nothing_passes_its_input_on() -> None:
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


def test_an_mlp_has_as_many_parameters_as_its_formula_says() -> None:
    assert size_of(Mlp(64, (32, 16), 10)) == 65 * 32 + 33 * 16 + 17 * 10
    assert size_of(TokenMlp(59, 2, 24, (256,), 59)) == 59 * 24 + 49 * 256 + 257 * 59


def test_an_mlp_flattens_images() -> None:
    model = Mlp(64, (32,), 10)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(images), model(images.flatten(1)))
    assert model(images).shape == (3, 10)


def test_a_token_mlp_tells_the_first_token_from_the_second() -> None:
    model = TokenMlp(5, 2, 4, (8,), 5)
    assert model(torch.tensor([[1, 2]])).shape == (1, 5)
    assert not torch.allclose(model(torch.tensor([[1, 2]])), model(torch.tensor([[2, 1]])))


@pytest.mark.parametrize(("length", "layers"), [(2, 1), (2, 3), (9, 2)])
def test_a_transformer_has_as_many_parameters_as_its_formula_says(length: int, layers: int) -> None:
    p, d, m, c = 59, 32, 80, 61
    model = Transformer(p, d, 4, m, c, length=length, layers=layers)
    assert size_of(model) == (p + length + 2) * d + layers * (4 * d * d + 2 * d * m + m + d) + d * c


@pytest.mark.parametrize(("length", "layers"), [(2, 1), (2, 2), (6, 1), (5, 3)])
def test_a_transformer_answers_as_one_that_computes_every_position_under_a_causal_mask(
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
