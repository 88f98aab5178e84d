"""The study's two pure functions: what is to be trained, and what the trainings show."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest

from tests.studies.conftest import MACHINE, longer, made, played, played_pairs
from tpsprune_studies.speed_up import conclude
from tpsprune_studies.tuned_comparison import ArmTrial, TunedSetup

PAIRS = [(3000, 375), (3200, 400)]


def test_ratios_are_those_of_the_pairs_and_the_pilot_is_in_none(tiny: TunedSetup) -> None:
    setup = longer(tiny)
    trainings = played_pairs(setup, [(3000, 300), (1600, 400)])
    found = conclude(setup, trainings, MACHINE)
    steps, seconds = (quantity.measured for quantity in found.quantities)
    assert steps.mean == pytest.approx(sqrt(10 * 4))
    assert seconds.mean == pytest.approx(sqrt(10 * 4) / 1.5)
    slow_pilot = [replace(t, cpu_seconds=99.0) if t.trial.stage == "pilot" else t for t in trainings]
    assert conclude(setup, slow_pilot, MACHINE).quantities == found.quantities


@pytest.mark.parametrize(
    ("pairs", "ruling", "words"),
    [
        ([(3000, 375), (3200, 400)], "confirmed", "takes 8.00 times"),
        ([(500, 400), (520, 400)], "refuted", "takes 1.27 times"),
        ([(3000, 375), (500, 400)], "undecided", "takes 3.16 times"),
        ([(-3000, 375), (3200, 400)], "confirmed", "at least 8.00 times"),
        ([(-500, 400), (-520, 400)], "undecided", "2 of 2 trainings of `none` never got there"),
        ([(500, -400), (520, 400)], "refuted", "at most 1.27 times"),
        ([(3000, -375), (3200, 400)], "undecided", "1 of 2 trainings of `labels` never got there"),
    ],
)
def test_the_ruling_and_its_sentence(
    tiny: TunedSetup, pairs: list[tuple[int, int]], ruling: str, words: str
) -> None:
    found = conclude(longer(tiny), played_pairs(longer(tiny), pairs), MACHINE)
    assert found.ruling == ruling
    assert words in found.sentence


def test_trainings_of_more_seeds_than_asked_for_are_left_aside(tiny: TunedSetup) -> None:
    setup = longer(tiny)
    trainings = played_pairs(setup, PAIRS)
    more = made(replace(trainings[-1].trial, seed=3), 10)
    assert conclude(setup, [*trainings, more], MACHINE) == conclude(setup, trainings, MACHINE)


def test_the_best_without_tps_is_the_opponent_and_the_best_with_it_is_judged(tiny: TunedSetup) -> None:
    none, labels = tiny.experiments[0].arms
    arms = (
        none,
        replace(none, name="grokfast", grokfast=True),
        labels,
        replace(labels, name="moments", variant="moments"),
    )
    setup = longer(replace(tiny, experiments=(replace(tiny.experiments[0], arms=arms),)))
    pilots = {"none": 3000, "grokfast": 1000, "labels": 400, "moments": 300}
    # What wins on the pilot seed loses on the others: no pair has a say in who is judged.
    others = {"none": 800, "grokfast": 900, "labels": 200, "moments": 450}

    def outcome(trial: ArmTrial) -> int:
        return (pilots if trial.stage == "pilot" else others)[trial.name] + trial.seed

    found = conclude(setup, played(setup, outcome), MACHINE)
    assert "(`grokfast`) takes 2.00 times the optimiser steps of TPS `moments`" in found.sentence
    assert found.to_json()["measure"] == "ratio grokfast / arm"
    names = [(quantity.name, bool(quantity.predicted)) for quantity in found.quantities]
    assert names == [
        ("none: optimiser steps", False),
        ("none: CPU-seconds", False),
        ("labels: optimiser steps", False),
        ("labels: CPU-seconds", False),
        ("moments: optimiser steps", True),
        ("moments: CPU-seconds", True),
    ]


def test_the_page_holds_every_pair_every_setting_and_its_edges(tiny: TunedSetup) -> None:
    setup = longer(tiny)
    text = conclude(setup, played_pairs(setup, [(-3025, 375), (3210, 410)]), MACHINE).render_page()
    assert "| none | > 3,025 | 3,210 | 31.2 |  |" in text
    assert "| labels | 375 | 410 | 5.89 | 33% |" in text
    assert "| none | 0.01 | 1 |  | 2 | 3,000 | learning rate |" in text
    assert "| labels | 0.01 | 1 | 1 | 2 | 400 | strength |" in text
    assert text.splitlines()[0] == "# Study `speed-up`: confirmed"
