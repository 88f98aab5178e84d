"""Moments made up, and a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import collapse
from tpsprune_studies.collapse import CollapseTraining, CollapseTrial, Moment
from tpsprune_studies.finding import Ruling


def make(costs_when_collapsed: float, costs_else: float) -> list[CollapseTraining]:
    found = []
    for trial in collapse.plan(collapse.make_setup(small_recipe(), 3, None), []).trials:
        assert isinstance(trial, CollapseTrial)
        moments = tuple(
            Moment(
                step=step,
                nc1=1.0 / step,
                nc4=0.5 if step < 60 else 0.01,
                d_eff=0.3,
                validation_accuracy=0.5 if step < 60 else 0.97,
                cost=costs_else if step < 60 else costs_when_collapsed,
            )
            for step in collapse.STEPS
        )
        found.append(CollapseTraining(trial=trial, moments=moments))
    return found


@pytest.mark.parametrize(
    ("collapsed", "others", "ruling"),
    [(0.0, 0.1, Ruling.CONFIRMED), (0.0, 0.0, Ruling.REFUTED), (0.1, 0.1, Ruling.REFUTED)],
)
def test_collapse_must_tell_free_cuts_from_others(collapsed: float, others: float, ruling: Ruling) -> None:
    found = collapse.conclude(collapse.make_setup(small_recipe(), 3, None), make(collapsed, others), {})
    assert found.ruling is ruling
    if ruling is Ruling.CONFIRMED:
        assert (
            "where NC4 is below 0.05 a cut was free in 18 of 18 moments, elsewhere in 0 of 24"
            in found.sentence
        )
        assert "`d_eff` by +0.00" in found.sentence


def test_a_small_study_reads_on_the_way(conducted: Callable[[str], Conducted]) -> None:
    found = conducted("collapse").finding.trainings
    trainings = [each for each in found if isinstance(each, CollapseTraining)]
    assert {each.trial.model for each in trainings} == set(collapse.MODELS)
    for each in trainings:
        assert [moment.step for moment in each.moments] == [6, 13]
        assert all(
            0 <= moment.nc4 <= 1 and moment.nc1 > 0 and 0 < moment.d_eff <= 1 for moment in each.moments
        )
