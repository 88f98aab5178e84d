from __future__ import annotations

import torch
from torch import nn

from tpsprune.numerics.coherence import triadic_energy, triadic_force
from tpsprune.tps.weights import Weights


def test_groups_are_the_weight_tensors_of_linear_convolution_and_embedding_layers() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "convolution": nn.Conv2d(2, 3, 3),
            "norm": nn.LayerNorm(4),
            "head": nn.Linear(4, 2),
        }
    )
    assert {group.name: group.oscillators for group in Weights(model).groups} == {
        "embedding": 20,
        "convolution": 54,
        "head": 8,
    }


def test_a_shared_weight_is_one_group() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
    model["head"].weight = model["embedding"].weight
    assert len(Weights(model).groups) == 1


def test_a_move_adds_step_times_force_times_the_root_mean_square() -> None:
    model = nn.Linear(7, 6, dtype=torch.float64)
    before = model.weight.detach().clone()
    rms = before.square().mean().sqrt()
    Weights(model).move([0.1])
    expected = before + 0.1 * triadic_force((before / rms).flatten()).view_as(before) * rms
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-14)


def test_a_small_move_lowers_the_energy() -> None:
    model = nn.Linear(7, 6, dtype=torch.float64)
    variant = Weights(model)
    rms = model.weight.detach().square().mean().sqrt()
    before = variant.energy().detach()
    for _ in range(3):
        variant.move([1e-3])
    assert float(triadic_energy((model.weight.detach() / rms).flatten())) < float(before)


def test_the_energys_gradient_is_minus_the_force_over_n_and_rms() -> None:
    model = nn.Linear(7, 6, dtype=torch.float64)
    Weights(model).energy().backward()
    rms = model.weight.detach().square().mean().sqrt()
    force = triadic_force((model.weight.detach() / rms).flatten()).view(6, 7)
    torch.testing.assert_close(model.weight.grad, -force / (42 * rms), rtol=0, atol=1e-14)


def test_energy_does_not_change_when_a_tensor_is_scaled() -> None:
    model = nn.Linear(7, 6)
    before = Weights(model).energy().detach()
    model.weight.data.mul_(50.0)
    torch.testing.assert_close(Weights(model).energy().detach(), before)


def test_frozen_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    frozen, free = model[0].weight.clone(), model[1].weight.detach().clone()
    variant = Weights(model)
    assert [group.name for group in variant.groups] == ["1"]
    variant.move([0.5])
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[1].weight.detach(), free)


def test_an_all_zero_tensor_stays_zero_and_its_gradient_finite() -> None:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    variant = Weights(model)
    variant.energy().backward()
    assert model.weight.grad is not None
    assert bool(model.weight.grad.isfinite().all())
    variant.move([1.0])
    assert not bool(model.weight.detach().any())


def test_channels_last_weights_move_as_contiguous_ones_do() -> None:
    plain, last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    last.load_state_dict(plain.state_dict())
    last.to(memory_format=torch.channels_last)
    Weights(plain).move([0.3])
    Weights(last).move([0.3])
    torch.testing.assert_close(last.weight.detach(), plain.weight.detach())


def test_half_precision_weights_keep_their_type_and_come_near_the_full_ones() -> None:
    full = nn.Linear(40, 30)
    half = nn.Linear(40, 30, dtype=torch.bfloat16)
    half.load_state_dict(full.state_dict())
    torch.testing.assert_close(
        Weights(half).energy().detach(), Weights(full).energy().detach(), rtol=0, atol=0.01
    )
    Weights(half).move([0.1])
    assert half.weight.dtype is torch.bfloat16
