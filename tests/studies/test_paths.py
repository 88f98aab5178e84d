"""Barriers made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import paths
from tpsprune_studies.finding import Ruling
from tpsprune_studies.paths import MATCHED, RAW, TICKET, PathTraining, PathTrial


@pytest.mark.parametrize(
    ("barrier", "ruling"), [(0.2, Ruling.CONFIRMED), (0.01, Ruling.REFUTED), (0.03, Ruling.UNDECIDED)]
)
def test_the_ruling_is_on_nets_whose_units_are_matched(barrier: float, ruling: Ruling) -> None:
    setup = paths.make_setup(small_recipe(), 3, None)
    done = [
        PathTraining(
            trial=PathTrial(seed=seed),
            errors=(0.02, 0.03),
            error_barriers={RAW: 0.3, MATCHED: barrier * (0.9 + 0.1 * seed - 0.1), TICKET: 0.0},
            loss_barriers={RAW: 1.0, MATCHED: 0.1, TICKET: 0.0},
        )
        for seed in (1, 2, 3)
    ]
    found = paths.conclude(setup, done, {})
    assert found.ruling is ruling
    assert "0.300 (0.300 to 0.300) for two seeds, as they are" in found.sentence
    assert "differ by 0.010" in found.sentence


def test_a_fork_ends_nearer_than_another_seed(conducted: Callable[[str], Conducted]) -> None:
    trainings = [each for each in conducted("paths").finding.trainings if isinstance(each, PathTraining)]
    assert len(trainings) == 2
    for each in trainings:
        assert each.loss_barriers[paths._fork(1)] < each.loss_barriers[RAW]
        assert each.loss_barriers[MATCHED] < each.loss_barriers[RAW]
        assert all(value >= 0 for value in each.error_barriers.values())
