"""Orbits of maps that are known, and a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import latent_field
from tpsprune_studies.finding import Ruling
from tpsprune_studies.latent_field import (
    Cut,
    FieldTraining,
    FieldTrial,
    attractors_of,
    iterate,
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
    numbers, places = attractors_of(ends, 1e-3)
    assert numbers.tolist() == [0] * 5
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
    numbers, places = attractors_of(ends, 0.1)
    assert numbers.tolist() == [0, 1, 0]
    assert float(places[0]) == pytest.approx(-float(places[1]))


def test_weights_are_shaken_to_the_error_asked_for() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 6)), torch.randn(200, 6)
    with torch.no_grad():
        shaken = shake_to(model, inputs, 0.02)
        assert latent_field._output_error(model, shaken, inputs) == pytest.approx(0.02, rel=0.01)


def make(radius: float) -> list[FieldTraining]:
    setup = latent_field.make_setup(small_recipe(), 3, None)
    drift = {"1": 0.1, "10": 0.3, "100": 0.5}
    cut = Cut(
        explained=0.8,
        error=0.1,
        drift=drift,
        shaken_drift={**drift, "10": 0.2},
        basins=0.5,
        shaken_basins=0.4,
    )
    return [
        FieldTraining(
            trial=trial,
            explained=0.9,
            radius=radius + 0.001 * trial.seed,
            attractors=3,
            cuts={"0.7": cut, "0.5": cut},
        )
        for trial in latent_field.plan(setup, []).trials
        if isinstance(trial, FieldTrial)
    ]


@pytest.mark.parametrize(("radius", "ruling"), [(0.9, Ruling.CONFIRMED), (1.1, Ruling.REFUTED)])
def test_attractors_must_contract(radius: float, ruling: Ruling) -> None:
    found = latent_field.conclude(latent_field.make_setup(small_recipe(), 3, None), make(radius), {})
    assert found.ruling is ruling
    assert "+0.100 (+0.100 to +0.100) at 0.5, noise 0.6" in found.sentence


def test_a_small_study_cuts_and_follows(conducted: Callable[[str], Conducted]) -> None:
    trainings = [
        each for each in conducted("latent-field").finding.trainings if isinstance(each, FieldTraining)
    ]
    assert len(trainings) == 4
    for each in trainings:
        assert each.attractors >= 1
        assert all(0 <= cut.basins <= 1 for cut in each.cuts.values())
        assert all(set(cut.drift) == {"1", "10", "100"} for cut in each.cuts.values())
