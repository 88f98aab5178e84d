"""Slices of tensors, masks at the old shape, and the norms that norm over the units kept."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from tests.pruning import nets_structure as zoo
from tests.pruning.helpers import assert_same
from tests.pruning.nets_attention import NARROWED, narrowed, sequences
from tests.pruning.nets_structure import LayerNorm2d, OwnRmsNorm, Stream
from tests.pruning.observed import disturbed
from tests.unchanged import unchanged
from tpsprune.pruning import PrunedGroup, find_groups
from tpsprune.pruning.layers import MaskedNorm, is_vector_norm, mask_norm, norms_over_units, unmask_norm
from tpsprune.pruning.surgery import (
    hold_scale,
    mask_units,
    pruned_copy,
    shapes_of,
    unmask_norms,
    widened_copy,
)
from tpsprune.pruning.trial import randomised_copy


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed"])
def test_the_slices_are_those_that_torch_pruning_takes(name: str) -> None:
    model, batch = zoo.case(name)
    pruned, twin = [], copy.deepcopy(model)
    for group in find_groups(model, batch[:2]).groups:
        half = PrunedGroup.of(group, range(0, group.width, 2))
        pruned.append(half)
        graph = torch_pruning.DependencyGraph().build_dependency(
            twin,
            batch[:2],
            unwrapped_parameters=[],
            customized_pruners={},
            ignored_layers=[],
            ignored_params=[],
        )
        root = twin.get_submodule(group.name)
        prune = graph.get_pruner_of_module(root).prune_out_channels
        graph.get_pruning_group(root, prune, list(half.removed)).prune()
    assert_same(pruned_copy(model, pruned), twin)


def test_frozen_flags_modes_number_types_and_memory_formats_are_kept() -> None:
    model, batch = zoo.case("cnn")
    model = model.to(memory_format=torch.channels_last)
    model.body[0].weight.requires_grad_(False)
    model.body[1].eval()
    model.head.half()
    group = find_groups(zoo.case("cnn")[0], batch[:2]).groups
    ticket = pruned_copy(model, [PrunedGroup.of(each, range(3)) for each in group])
    assert ticket.body[3].weight.shape == (3, 3, 3, 3)
    assert ticket.body[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not ticket.body[0].weight.requires_grad
    assert ticket.body[3].weight.requires_grad
    assert ticket.head.weight.dtype == torch.float16
    assert [m.training for m in ticket.modules()] == [m.training for m in model.modules()]


def test_pruning_nothing_gives_an_equal_model_with_its_own_tensors() -> None:
    model, batch = zoo.case("residual")
    pruned = [PrunedGroup.of(group, range(group.width)) for group in find_groups(model, batch[:2]).groups]
    ticket = pruned_copy(model, pruned)
    assert_same(ticket, model)
    for name, value in ticket.state_dict().items():
        assert value.data_ptr() != model.state_dict()[name].data_ptr()


def test_layers_know_their_new_sizes() -> None:
    model, batch = zoo.case("mixed")
    pruned = {each.name: PrunedGroup.of(each, range(3)) for each in find_groups(model, batch[:2]).groups}
    ticket = pruned_copy(model, list(pruned.values()))
    assert (ticket.depthwise.groups, ticket.depthwise.in_channels, ticket.depthwise.out_channels) == (3, 3, 3)
    assert (ticket.merge.in_channels, ticket.merge.out_channels) == (6, 3)
    assert (ticket.up.in_channels, ticket.up.out_channels) == (3, 3)
    assert ticket.slope.num_parameters == 3
    assert (ticket.excite.in_features, ticket.excite.out_features) == (3, 3)


class CentredScale(nn.Module):
    """It is shaped like a norm, and divides by nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) * self.weight


@pytest.mark.parametrize(
    ("module", "is_norm"),
    [
        (OwnRmsNorm(6), True),
        (OwnRmsNorm(6, plus_one=True), True),
        (CentredScale(6), False),
        (nn.PReLU(6), False),
        (nn.LayerNorm(6), False),
        (nn.Linear(6, 1), False),
    ],
)
def test_a_norm_of_an_unknown_class_is_recognised_by_its_outputs(module: nn.Module, is_norm: bool) -> None:
    with unchanged(module):
        assert is_vector_norm(module) == is_norm


def test_a_group_norm_is_over_units_only_where_it_is_of_one_group() -> None:
    assert norms_over_units(nn.GroupNorm(1, 6))
    assert not norms_over_units(nn.GroupNorm(2, 6))


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(6), nn.RMSNorm(6), OwnRmsNorm(6), nn.LayerNorm(6, elementwise_affine=False)],
)
def test_a_masked_norm_is_the_norm_of_the_units_kept(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    kept = torch.tensor([0, 2, 5])
    x_bu = torch.randn(4, 6)
    own = mask_norm(norm, 6, torch.tensor([1, 3, 4]))(x_bu)
    centred = x_bu[:, kept]
    centred = centred - centred.mean(1, keepdim=True) if isinstance(norm, nn.LayerNorm) else centred
    expected = centred * (centred.pow(2).mean(1, keepdim=True) + 1e-5).rsqrt()
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    expected = expected if weight is None else expected * weight[kept]
    expected = expected if bias is None else expected + bias[kept]
    torch.testing.assert_close(own[:, kept], expected, rtol=1e-4, atol=1e-4)
    assert not own[:, [1, 3, 4]].any()


def test_a_norm_over_the_channels_of_an_image_is_masked_there_even_if_the_image_is_as_wide() -> None:
    norm = LayerNorm2d(6)
    x_bchw = torch.randn(2, 6, 4, 6)
    own = mask_norm(norm, 6, torch.tensor([1]))(x_bchw)
    assert not own[:, 1].any()
    assert own[:, 0, :, 1].abs().min() > 0


def test_two_masks_add_up_and_the_norm_comes_back_with_its_present_weight() -> None:
    norm = nn.LayerNorm(6)
    twice = mask_norm(mask_norm(norm, 6, torch.tensor([0])), 6, torch.tensor([3]))
    assert twice.kept.tolist() == [False, True, True, False, True, True]
    assert list(twice.state_dict()) == ["weight", "bias"]
    twice.weight = nn.Parameter(torch.full((6,), 2.0))
    assert unmask_norm(twice) is norm
    assert norm.weight.tolist() == [2.0] * 6
    assert twice.normalized_shape == (6,)


NORMS = {
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "own": OwnRmsNorm,
    "own, weight about zero, no width": partial(OwnRmsNorm, remembers=False, plus_one=True),
    "layer without weights": partial(nn.LayerNorm, elementwise_affine=False),
    "rms without weights": partial(nn.RMSNorm, elementwise_affine=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_stream_under_norms_is_pruned_and_equals_the_masked_one(name: str) -> None:
    batch = torch.randn(3, 4, 5)
    model = Stream(NORMS[name])
    stream = find_groups(model, batch).groups[0]
    assert (stream.name, stream.members) == ("embed", ("norms.0", "norms.1", "norm"))
    model, batch = randomised_copy(model).double(), batch.double()
    half = PrunedGroup.of(stream, [1, 4, 6])
    masked = copy.deepcopy(model)
    mask_units(masked, stream, half.removed)
    ticket = pruned_copy(masked, [half])
    torch.testing.assert_close(ticket(batch), masked(batch), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(model(batch), masked(batch))
    assert str(ticket) == str(Stream(NORMS[name], width=3))
    assert not any(isinstance(module, MaskedNorm) for module in ticket.modules())
    assert getattr(ticket.norm, "hidden_size", 3) == 3
    unmask_norms(masked)
    assert str(masked) == str(model)


@pytest.mark.parametrize("name", [*zoo.ZOO, *zoo.STRUCTURES, *(f"attention: {each}" for each in NARROWED)])
def test_a_ticket_of_any_values_is_the_same_at_the_dense_shape_with_units_masked(name: str) -> None:
    attention = name.removeprefix("attention: ")
    model, batch = (narrowed(attention), sequences()) if attention != name else zoo.case(name)
    model = randomised_copy(model).double()
    batch = batch.double() if batch.is_floating_point() else batch
    groups = find_groups(model, batch[:2], head_width=attention != name).groups
    pruned = [PrunedGroup.of(group, range(0, group.width, 2)) for group in groups]
    ticket = pruned_copy(model, pruned)
    for group, each in zip(groups, pruned, strict=True):
        hold_scale(ticket, group, len(each.kept))
    ticket = disturbed(ticket)
    with unchanged(model):
        masked = widened_copy(model, ticket, groups, pruned)
    assert shapes_of(unmasked(masked)) == shapes_of(model)
    torch.testing.assert_close(masked(batch), ticket(batch))


def unmasked(model: nn.Module) -> nn.Module:
    restored = copy.deepcopy(model)
    unmask_norms(restored)
    return restored
