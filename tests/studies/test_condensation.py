"""Students made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import condensation
from tpsprune_studies.condensation import LARGE, SMALL, StudentTraining, StudentTrial
from tpsprune_studies.finding import Ruling


def make(small: int, large: int) -> list[StudentTraining]:
    trials = condensation.plan(condensation.make_setup(small_recipe(), 3, None), []).trials
    found = []
    for trial in trials:
        assert isinstance(trial, StudentTrial)
        width = {SMALL: small, LARGE: large}.get(trial.scale or 0.0, 20)
        widths = {"0.01": 3, "0.001": width + trial.seed % 2, "1e-05": 30}
        errors = dict.fromkeys(widths, 1e-3)
        found.append(
            StudentTraining(
                trial=trial, error_share=1e-4, condensed=0.5, widths=widths, cut_error_shares=errors
            )
        )
    return found


@pytest.mark.parametrize(
    ("small", "large", "ruling"),
    [(3, 10, Ruling.CONFIRMED), (8, 8, Ruling.REFUTED), (12, 30, Ruling.REFUTED), (5, 10, Ruling.UNDECIDED)],
)
def test_small_weights_must_need_fewer_units_and_few(small: int, large: int, ruling: Ruling) -> None:
    setup = condensation.make_setup(small_recipe(), 3, None)
    assert condensation.conclude(setup, make(small, large), {}).ruling is ruling


def test_random_features_are_a_linear_model_and_a_student_learns_more(
    conducted: Callable[[str], Conducted],
) -> None:
    found = [
        each for each in conducted("condensation").finding.trainings if isinstance(each, StudentTraining)
    ]
    assert len(found) == 8
    fixed = [each for each in found if each.trial.scale is None]
    assert all(0 < each.error_share < 1 for each in fixed)
    assert all(list(each.widths.values()) == sorted(each.widths.values()) for each in found), (
        "a tighter tolerance keeps more units"
    )
