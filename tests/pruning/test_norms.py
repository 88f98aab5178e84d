from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.nets_structure import LayerNorm2d, OwnRmsNorm, Stream
from tpsprune.pruning.groups import PrunedGroup
from tpsprune.pruning.layers import MaskedNorm, is_vector_norm, mask_norm, norms_over_units, unmask_norm
from tpsprune.pruning.prunability import find_groups
from tpsprune.pruning.surgery import mask_units, pruned_copy, unmask_norms
from tpsprune.pruning.trial import randomised_copy


class CentredScale(nn.Module):
    """It looks like a norm, and divides by nothing."""

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
def test_somebodys_own_norm_is_known_by_what_it_does(module: nn.Module, is_norm: bool) -> None:
    before = copy.deepcopy(module.state_dict())
    assert is_vector_norm(module) == is_norm
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_group_norm_is_over_units_only_where_it_is_of_one_group() -> None:
    assert norms_over_units(nn.GroupNorm(1, 6))
    assert not norms_over_units(nn.GroupNorm(2, 6))


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(6), nn.RMSNorm(6), OwnRmsNorm(6), nn.LayerNorm(6, elementwise_affine=False)],
)
def test_a_masked_norm_is_the_norm_of_the_units_that_stay(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    stays = torch.tensor([0, 2, 5])
    x_bu = torch.randn(4, 6)
    own = mask_norm(norm, 6, torch.tensor([1, 3, 4]))(x_bu)
    centred = x_bu[:, stays]
    centred = centred - centred.mean(1, keepdim=True) if isinstance(norm, nn.LayerNorm) else centred
    expected = centred * (centred.pow(2).mean(1, keepdim=True) + 1e-5).rsqrt()
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    expected = expected if weight is None else expected * weight[stays]
    expected = expected if bias is None else expected + bias[stays]
    torch.testing.assert_close(own[:, stays], expected, rtol=1e-4, atol=1e-4)
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
def test_a_stream_under_norms_is_cut_and_equals_the_silenced_one(name: str) -> None:
    batch = torch.randn(3, 4, 5)
    model = Stream(NORMS[name])
    stream = find_groups(model, batch).groups[0]
    assert (stream.name, stream.members) == ("embed", ("norms.0", "norms.1", "norm"))
    model, batch = randomised_copy(model).double(), batch.double()
    cut = PrunedGroup.of(stream, [1, 4, 6])
    silenced = copy.deepcopy(model)
    mask_units(silenced, stream, cut.removed)
    ticket = pruned_copy(silenced, [cut])
    torch.testing.assert_close(ticket(batch), silenced(batch), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(model(batch), silenced(batch))
    assert str(ticket) == str(Stream(NORMS[name], width=3))
    assert not any(isinstance(module, MaskedNorm) for module in ticket.modules())
    assert getattr(ticket.norm, "hidden_size", 3) == 3
    unmask_norms(silenced)
    assert str(silenced) == str(model)
