"""Oscillators with phases of their own: weights, and units in a layer's leading plane."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin

import pytest
import torch
from torch import Tensor, nn

from tpsprune.numerics.coherence import triadic_force
from tpsprune.tps.phases import Neurons, PhaseVariant, Weights, leading_plane


def test_groups_are_the_weight_tensors_of_linear_convolution_and_embedding_layers_shared_ones_once() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "convolution": nn.Conv2d(2, 3, 3)})
    model.update({"norm": nn.LayerNorm(4), "head": nn.Linear(4, 2), "tied": nn.Linear(4, 5)})
    model["tied"].weight = model["embedding"].weight
    found = {group.name: group.oscillators for group in Weights(model).groups}
    assert found == {"embedding": 20, "convolution": 54, "head": 8}


def test_a_move_adds_step_times_force_times_the_root_mean_square() -> None:
    model = nn.Linear(7, 6, dtype=torch.float64)
    before = model.weight.detach().clone()
    rms = before.square().mean().sqrt()
    Weights(model).move([0.1])
    expected = before + 0.1 * triadic_force((before / rms).flatten()).view_as(before) * rms
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "kind", [Weights, lambda layer: Neurons(layer, refresh_steps=10)], ids=["weights", "neurons"]
)
def test_moves_bring_the_energy_down(kind: Callable[[nn.Module], PhaseVariant]) -> None:
    variant = kind(nn.Linear(9, 7, dtype=torch.float64))
    before = float(variant.energy().detach())
    for _ in range(20):
        variant.move([0.05])
    assert float(variant.energy().detach()) < 0.9 * before


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


def fan(angles: list[float], lengths: list[float] | None = None) -> nn.Linear:
    """Return a layer whose units lie in one plane of three dimensions at these angles."""
    lengths = lengths or [1.0] * len(angles)
    layer = nn.Linear(3, len(angles), dtype=torch.float64)
    rows = [[0.0, r * cos(a), r * sin(a)] for a, r in zip(angles, lengths, strict=True)]
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    return layer


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)] * 4)
def test_the_plane_is_that_of_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    weight_nd = torch.randn(shape, dtype=torch.float64)
    plane_d2 = leading_plane(weight_nd)
    leading = torch.linalg.svd(weight_nd, full_matrices=False).Vh[:2].T
    torch.testing.assert_close(plane_d2 @ plane_d2.T, leading @ leading.T)
    torch.testing.assert_close((plane_d2 * leading).sum(0).abs(), torch.ones(2, dtype=torch.float64))
    assert plane_d2.is_contiguous()
    assert bool((plane_d2.amax(0) == plane_d2.abs().amax(0)).all()), "each axis's largest entry is positive"


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_plane_is_orthonormal_whatever_the_rank(shape: tuple[int, int]) -> None:
    for weight_nd in (torch.zeros(shape), torch.ones(shape)):
        plane_d2 = leading_plane(weight_nd)
        torch.testing.assert_close(plane_d2.T @ plane_d2, torch.eye(2), rtol=0, atol=1e-5)


def test_phases_are_the_units_angles_up_to_a_turn_or_a_reflection() -> None:
    angles = [0.1, 0.5, 1.9, 2.4]
    (phases_n,) = Neurons(fan(angles, [1.0, 2.0, 0.5, 3.0]), refresh_steps=10).phases()
    gaps_nn = torch.cos(phases_n[:, None] - phases_n[None, :]).detach()
    angles_n = torch.tensor(angles, dtype=torch.float64)
    torch.testing.assert_close(gaps_nn, torch.cos(angles_n[:, None] - angles_n[None, :]))


@pytest.mark.parametrize(
    ("angles", "energy"),
    [([0.7] * 4, 0.0), ([2.0 * pi * k / 5 for k in range(5)], 1.0)],
    ids=["a row", "a fan"],
)
def test_units_in_a_row_have_no_energy_and_evenly_spread_ones_have_one(
    angles: list[float], energy: float
) -> None:
    lengths = None if energy else [1.0, 2.0, 3.0, 0.1]
    found = Neurons(fan(angles, lengths), refresh_steps=10).energy()
    assert float(found.detach()) == pytest.approx(energy, abs=1e-12)


def test_a_move_turns_each_angle_by_step_times_force_and_keeps_everything_else() -> None:
    layer = nn.Linear(9, 7, dtype=torch.float64)
    variant = Neurons(layer, refresh_steps=10)
    before, lengths = layer.weight.detach().clone(), layer.weight.detach().norm(dim=1)
    plane_d2 = variant.state()["plane.model"]
    (phases_n,) = (phases.detach() for phases in variant.phases())
    variant.move([0.1])
    (moved_n,) = (phases.detach() for phases in variant.phases())
    turned_n = torch.remainder(moved_n - phases_n + pi, 2.0 * pi) - pi
    torch.testing.assert_close(turned_n, 0.1 * triadic_force(phases_n))
    torch.testing.assert_close(layer.weight.detach().norm(dim=1), lengths)
    outside = torch.eye(9, dtype=torch.float64) - plane_d2 @ plane_d2.T
    torch.testing.assert_close(layer.weight.detach() @ outside, before @ outside)


@pytest.mark.parametrize("change", ["swap", "flip"])
def test_energy_and_motion_do_not_depend_on_the_planes_signs_or_order(change: str) -> None:
    one, other = nn.Linear(9, 7, dtype=torch.float64), nn.Linear(9, 7, dtype=torch.float64)
    other.load_state_dict(one.state_dict())
    first, second = Neurons(one, refresh_steps=10), Neurons(other, refresh_steps=10)
    plane_d2 = first.state()["plane.model"]
    changed_d2 = plane_d2.flip(1) if change == "swap" else plane_d2 * torch.tensor([-1.0, 1.0])
    second.load_state({"plane.model": changed_d2})
    torch.testing.assert_close(second.energy(), first.energy())
    for variant in (first, second):
        variant.move([0.2])
    torch.testing.assert_close(other.weight.detach(), one.weight.detach())


def test_the_plane_is_fitted_anew_only_every_so_many_steps() -> None:
    layer = nn.Linear(9, 7)
    variant = Neurons(layer, refresh_steps=5)
    old = variant.state()["plane.model"]
    nn.init.normal_(layer.weight)
    variant.refresh(4)
    assert torch.equal(variant.state()["plane.model"], old)
    variant.refresh(10)
    torch.testing.assert_close(variant.state()["plane.model"], leading_plane(layer.weight.detach()))


def test_layers_too_small_for_a_plane_and_embeddings_have_no_group() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "two_units": nn.Linear(4, 2)})
    model.update({"one_input": nn.Linear(1, 8), "convolution": nn.Conv2d(2, 3, 3)})
    groups = [(group.name, group.oscillators) for group in Neurons(model, refresh_steps=1).groups]
    assert groups == [("convolution", 3)]


def test_a_dead_unit_stays_put_and_its_gradient_is_finite() -> None:
    layer = nn.Linear(9, 7)
    layer.weight.data[2] = 0.0
    variant = Neurons(layer, refresh_steps=5)
    variant.energy().backward()
    gradient: Tensor | None = layer.weight.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    variant.move([0.5])
    assert not bool(layer.weight.detach()[2].any())


def test_autocast_does_not_reach_the_phases() -> None:
    variant = Neurons(nn.Linear(9, 7), refresh_steps=5)
    plain = variant.energy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(variant.energy(), plain)
