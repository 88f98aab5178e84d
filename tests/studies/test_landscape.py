"""Surroundings made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import landscape
from tpsprune_studies.finding import Ruling
from tpsprune_studies.landscape import FIGURES, PERSISTENCE, LandscapeTraining, LandscapeTrial, explain


def make(follows: float) -> list[LandscapeTraining]:
    found = []
    setup = landscape.make_setup(small_recipe(), 2, None)
    for rank, trial in enumerate(landscape.plan(setup, []).trials):
        assert isinstance(trial, LandscapeTrial)
        noise = (rank * 7 % 11) / 11
        persistence = follows * rank + (1 - follows) * 40 * noise
        found.append(
            LandscapeTraining(
                trial=trial,
                train_loss=0.0,
                test_loss=float(rank),
                train_accuracy=1.0,
                test_accuracy=1.0 - rank / 100,
                figures={**dict.fromkeys(FIGURES, 1.0), PERSISTENCE: persistence},
            )
        )
    return found


@pytest.mark.parametrize(("follows", "ruling"), [(1.0, Ruling.CONFIRMED), (0.0, Ruling.REFUTED)])
def test_persistence_must_explain_the_gap(follows: float, ruling: Ruling) -> None:
    found = landscape.conclude(landscape.make_setup(small_recipe(), 2, None), make(follows), {})
    assert found.ruling is ruling
    assert "norm of the weights was the same for all" in found.sentence


def test_figures_that_are_all_alike_decide_nothing() -> None:
    assert explain([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]) is None
    same = [replace(each, figures={**each.figures, PERSISTENCE: 0.0}) for each in make(1.0)]
    found = landscape.conclude(landscape.make_setup(small_recipe(), 2, None), same, {})
    assert found.ruling is Ruling.UNDECIDED
    weak = explain([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    assert weak is not None
    assert weak.low == 0.0
    assert 0 < weak.mean < weak.high < 1


def test_a_small_study_reads_every_figure(conducted: Callable[[str], Conducted]) -> None:
    found = conducted("landscape").finding.trainings
    trainings = [each for each in found if isinstance(each, LandscapeTraining)]
    assert len(trainings) == 8
    assert all(set(each.figures) == set(FIGURES) for each in trainings)
    assert all(each.figures["range of the loss"] > 0 for each in trainings)
