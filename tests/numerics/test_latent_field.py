"""Orbits of maps that are known: fixed points, eigenvalues, and the same seen from the codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tpsprune.numerics.latent_field import (
    attractors_of,
    basins_of,
    compare_fields,
    iterate,
    mean_radius,
    output_error,
    shake_to,
    spectral_radius,
)


def linear(matrix: Tensor) -> nn.Linear:
    layer = nn.Linear(len(matrix), len(matrix))
    with torch.no_grad():
        layer.weight.copy_(matrix)
        layer.bias.fill_(1.0)
    return layer


def test_a_contraction_runs_to_its_fixed_point_whose_radius_is_its_largest_eigenvalue() -> None:
    model = linear(torch.diag(torch.tensor([0.5, -0.8, 0.1])))
    with torch.no_grad():
        ends = iterate(model, torch.randn(5, 3), 200)
    found = attractors_of(ends, 1e-3)
    places = found.attractors_a
    assert found.attractor_n.tolist() == [0] * 5
    assert torch.allclose(places[0], torch.tensor([2.0, 1 / 1.8, 1 / 0.9]), atol=1e-4)
    assert spectral_radius(model, places[0]) == pytest.approx(0.8, rel=1e-3)


def test_a_rotation_gives_the_modulus_of_its_complex_eigenvalues() -> None:
    turn = 0.7 * torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert spectral_radius(linear(turn), torch.zeros(2)) == pytest.approx(0.7, rel=1e-4)


def test_two_basins_have_two_attractors() -> None:
    class Signs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(3 * x)

    with torch.no_grad():
        ends = iterate(Signs(), torch.tensor([[0.2], [-0.4], [0.9]]), 50)
    found = attractors_of(ends, 0.1)
    assert found.attractor_n.tolist() == [0, 1, 0]
    assert float(found.attractors_a[0]) == pytest.approx(-float(found.attractors_a[1]))


def test_outputs_and_codes_have_the_same_spectral_radius() -> None:
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(9, 3), nn.Linear(3, 9)
    codes = nn.Sequential(decoder, encoder)
    wanted = float(torch.linalg.eigvals(encoder.weight.detach() @ decoder.weight.detach()).abs().max())
    assert spectral_radius(codes, torch.zeros(3)) == pytest.approx(wanted, rel=1e-3)
    assert spectral_radius(nn.Sequential(encoder, decoder), torch.zeros(9)) == pytest.approx(wanted, rel=1e-3)


def test_of_images_a_map_does_as_that_of_their_pixels() -> None:
    torch.manual_seed(0)
    flat = linear(0.4 * torch.linalg.qr(torch.randn(8, 8))[0])
    images = nn.Sequential(nn.Flatten(), flat, nn.Unflatten(1, (2, 2, 2)))
    with torch.no_grad():
        inputs = torch.randn(20, 2, 2, 2)
        ours, theirs = basins_of(images, inputs), basins_of(flat, inputs.flatten(1))
    assert ours.attractor_n.tolist() == theirs.attractor_n.tolist()
    assert torch.equal(ours.attractors_a.flatten(1), theirs.attractors_a)
    assert mean_radius(images, ours) == pytest.approx(0.4, rel=1e-3)


def test_drift_of_a_contraction_is_that_of_its_closed_form() -> None:
    """x → a x and x → a x + b: after k iterations they are b (1 − aᵏ) / (1 − a) apart."""
    ours, theirs = linear(0.5 * torch.eye(2)), linear(0.5 * torch.eye(2))
    with torch.no_grad():
        theirs.bias += torch.tensor([3e-3, 4e-3])
        inputs = torch.randn(50, 2)
        basins = basins_of(ours, inputs)
        moved = compare_fields(ours, theirs, inputs, basins)
    spread = 0.5 * float((inputs - inputs.mean(0)).square().sum(1).mean().sqrt())
    for times in (1, 10, 100):
        apart = 5e-3 * (1 - 0.5**times) / 0.5
        assert moved.drift[f"{times}"] == pytest.approx(apart / spread, rel=1e-3)
    assert moved.error == pytest.approx((5e-3**2 / 2) ** 0.5, rel=1e-3)
    assert (moved.basins, moved.shaken_basins) == (1.0, 1.0)


def test_a_model_beside_itself_does_not_move_and_nor_do_weights_shaken_to_no_error() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 4)), torch.randn(30, 4)
    with torch.no_grad():
        moved = compare_fields(model, model, inputs, basins_of(model, inputs))
    assert moved.error == 0.0
    assert set(moved.drift.values()) == {0.0}
    assert max(moved.shaken_drift.values()) < 1e-3


@pytest.mark.parametrize("error", [0.02, 5.0])
def test_weights_are_shaken_to_the_error_asked_for(error: float) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 6)), torch.randn(200, 6)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with torch.no_grad():
        shaken = shake_to(model, inputs, error)
        assert output_error(model, shaken, inputs) == pytest.approx(error, rel=0.01)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_outputs_that_are_bounded_cannot_err_without_bound() -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="no shaking"):
        shake_to(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), torch.randn(20, 3), 2.0)
