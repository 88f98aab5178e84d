"""Indices made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import morse
from tpsprune_studies.finding import Ruling
from tpsprune_studies.morse import MorseTraining, MorseTrial, Point


def make(shift: int, *, levels: int = 3) -> list[MorseTraining]:
    found = []
    for trial in morse.plan(morse.make_setup(small_recipe(), 3, None), []).trials:
        assert isinstance(trial, MorseTrial)
        moved = shift if trial.variant == "labels" else 0
        points = {
            f"{loss:g}": Point(
                step=10, index=200 + trial.seed + moved, smallest=-0.1, largest=1.0, negative_share=0.3
            )
            for loss in morse.LOSSES[:levels]
        }
        found.append(MorseTraining(trial=trial, parameters=771, accuracy=0.5, points=points))
    return found


@pytest.mark.parametrize(("shift", "ruling"), [(-9, Ruling.CONFIRMED), (5, Ruling.REFUTED)])
def test_the_index_must_fall_at_every_loss(shift: int, ruling: Ruling) -> None:
    found = morse.conclude(morse.make_setup(small_recipe(), 3, None), make(shift), {})
    assert found.ruling is ruling
    assert f"{shift:+.1f} ({shift:+.1f} to {shift:+.1f}) for `labels` at 0.3" in found.sentence


def test_a_level_that_nobody_reached_confirms_nothing() -> None:
    found = morse.conclude(morse.make_setup(small_recipe(), 3, None), make(-9, levels=1), {})
    assert found.ruling is Ruling.UNDECIDED
    assert "at 0.3" not in found.sentence


def test_indices_are_read_on_the_way_down(conducted: Callable[[str], Conducted]) -> None:
    trainings = [each for each in conducted("morse").finding.trainings if isinstance(each, MorseTraining)]
    points = [each.points for each in trainings if each.points]
    assert points
    for each in points:
        assert all(0 < point.index < trainings[0].parameters for point in each.values())
        steps = [point.step for point in each.values()]
        assert steps == sorted(steps)
