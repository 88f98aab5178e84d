from __future__ import annotations

from math import cos, pi, sin

import pytest
import torch
from torch import Tensor, nn

from tpsprune.numerics.coherence import triadic_force
from tpsprune.tps.neurons import Neurons, leading_plane


def fan(angles: list[float], lengths: list[float] | None = None) -> nn.Linear:
    """Return a layer whose units lie in one plane of three dimensions at these angles."""
    lengths = lengths or [1.0] * len(angles)
    layer = nn.Linear(3, len(angles), dtype=torch.float64)
    rows = [[0.0, r * cos(a), r * sin(a)] for a, r in zip(angles, lengths, strict=True)]
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    return layer


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_the_plane_is_that_of_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    weight_nd = torch.randn(shape, dtype=torch.float64)
    plane_d2 = leading_plane(weight_nd)
    leading = torch.linalg.svd(weight_nd, full_matrices=False).Vh[:2].T
    torch.testing.assert_close(plane_d2 @ plane_d2.T, leading @ leading.T)
    torch.testing.assert_close((plane_d2 * leading).sum(0).abs(), torch.ones(2, dtype=torch.float64))
    assert plane_d2.is_contiguous()


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_the_largest_entry_of_each_axis_is_positive(shape: tuple[int, int]) -> None:
    for _ in range(10):
        plane_d2 = leading_plane(torch.randn(shape, dtype=torch.float64))
        assert bool((plane_d2.amax(0) == plane_d2.abs().amax(0)).all())


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


def test_units_in_a_row_have_no_energy() -> None:
    layer = fan([0.7, 0.7, 0.7, 0.7], [1.0, 2.0, 3.0, 0.1])
    assert float(Neurons(layer, refresh_steps=10).energy().detach()) == pytest.approx(0.0, abs=1e-12)


def test_evenly_spread_units_have_energy_one() -> None:
    layer = fan([2.0 * pi * k / 5 for k in range(5)])
    assert float(Neurons(layer, refresh_steps=10).energy().detach()) == pytest.approx(1.0)


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


def test_moves_bring_the_energy_down() -> None:
    layer = nn.Linear(9, 7, dtype=torch.float64)
    variant = Neurons(layer, refresh_steps=10)
    before = float(variant.energy().detach())
    for _ in range(20):
        variant.move([0.05])
    assert float(variant.energy().detach()) < 0.9 * before


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
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "two_units": nn.Linear(4, 2),
            "one_input": nn.Linear(1, 8),
            "convolution": nn.Conv2d(2, 3, 3),
        }
    )
    assert [(group.name, group.oscillators) for group in Neurons(model, refresh_steps=1).groups] == [
        ("convolution", 3)
    ]


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
