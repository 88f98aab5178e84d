"""The study of the latent field: its ruling, and a size small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import latent_field
from tpsprune_studies.finding import Ruling
from tpsprune_studies.latent_field import Cut, FieldTraining, FieldTrial


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
