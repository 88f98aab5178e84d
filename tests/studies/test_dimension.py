"""Dimensions made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.studies.conftest import Conducted, tiny_setup
from tpsprune_studies import dimension
from tpsprune_studies.dimension import DimensionTraining, DimensionTrial
from tpsprune_studies.finding import Ruling


def make(share_with: float, share_without: float = 0.5, lost_with: float = 0.1) -> list[DimensionTraining]:
    found = []
    for trial in dimension.plan(tiny_setup(dimension), []).trials:
        assert isinstance(trial, DimensionTrial)
        plain = trial.variant == "none"
        # Seeds differ a little, as seeds do.
        share = (share_without if plain else share_with) * (1 + 0.01 * trial.seed)
        lost = 0.2 if plain else lost_with
        found.append(
            DimensionTraining(
                trial=trial,
                accuracy=0.9,
                shares={"a": 0.5 * share, "b": 1.5 * share},
                cut_accuracies={"0.5": 0.85, "0.25": 0.9 - lost},
                seconds=1.0,
            )
        )
    return found


@pytest.mark.parametrize(
    ("share", "ruling"), [(0.05, Ruling.CONFIRMED), (0.3, Ruling.REFUTED), (0.0985, Ruling.UNDECIDED)]
)
def test_the_ruling_is_on_trainings_with_tps_alone(share: float, ruling: Ruling) -> None:
    assert dimension.conclude(tiny_setup(dimension), make(share), {}).ruling is ruling
    assert dimension.conclude(tiny_setup(dimension), make(share, share_without=0.01), {}).ruling is ruling


def test_one_task_can_refute_and_every_task_must_confirm() -> None:
    for others, share, by_seed, ruling in (
        (0.3, 0.05, 0.001, Ruling.REFUTED),
        (0.05, 0.09, 0.01, Ruling.UNDECIDED),
    ):
        trainings = [
            replace(each, shares={"a": share + by_seed * each.trial.seed})
            if each.trial.task == dimension.PARITY
            else each
            for each in make(others)
        ]
        assert dimension.conclude(tiny_setup(dimension), trainings, {}).ruling is ruling


def test_what_pruning_costs_less_is_paired_by_seed_and_told_in_points() -> None:
    found = dimension.conclude(tiny_setup(dimension), make(0.3, lost_with=0.15), {})
    assert "modular addition `labels` +5.0 points (+5.0 to +5.0)" in found.sentence
    assert "is: modular addition 0.30 (0.30 to 0.31, 8 trainings); digits 0.30" in found.sentence
    assert "Without TPS: modular addition 0.51 " in found.sentence
    page = found.render_page()
    assert "| modular addition, none | 0.900 | 0.850 | 0.700 |" in page
    assert "| modular addition, none | a | 0.254 |" in page
    assert [quantity.predicted for quantity in found.quantities][:2] == ["", "below 0.1"]


def test_every_variant_ends_elsewhere(conducted: Callable[[str], Conducted]) -> None:
    found = conducted("dimension").finding
    trainings = [each for each in found.trainings if isinstance(each, DimensionTraining)]
    assert all(0 < share <= 1 for each in trainings for share in each.shares.values())
    assert all(min(each.cut_accuracies.values()) >= 0 for each in trainings)
    shares = {each.trial.arm: tuple(each.shares.values()) for each in trainings}
    assert len(set(shares.values())) == len(shares), "every variant does something"
