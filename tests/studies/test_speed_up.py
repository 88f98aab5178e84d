"""The study's two pure functions: what is to be trained, and what the trainings say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import pytest

from tests.studies.conftest import made
from tpsprune.studies.page import page
from tpsprune.studies.setup import Setup, machine_kind
from tpsprune.studies.speed_up import finding, plan
from tpsprune.studies.trial import Trained, Trial

Done = Callable[..., list[Trained]]
MACHINE = {"logical_cpus": 2, "torch": "2.13.0"}
PAIRS = [(3000, 375), (3200, 400)]


def test_both_arms_are_tried_at_both_weight_decays_on_a_seed_that_no_pair_has(
    tiny: Setup, done: Done
) -> None:
    first = plan(tiny, [])
    assert [(t.arm, t.weight_decay) for t in first.trials] == [
        ("none", 1.0),
        ("none", 2.0),
        ("labels", 1.0),
        ("labels", 2.0),
    ]
    assert {t.seed for t in first.trials} == {0}
    assert (first.total, first.later_arms) == (8, ("none", "labels", "none", "labels"))
    pairs = plan(tiny, done(tiny, PAIRS)).trials[4:]
    assert [t.seed for t in pairs] == [1, 1, 2, 2]


def test_pairs_begin_only_when_the_whole_pilot_is_done(tiny: Setup, done: Done) -> None:
    pilot = done(tiny, PAIRS)[:4]
    for missing in range(4):
        assert plan(tiny, pilot[:missing] + pilot[missing + 1 :]) == plan(tiny, [])
    assert not plan(tiny, pilot).later_arms


def test_each_arm_is_compared_at_its_own_best(tiny: Setup, done: Done) -> None:
    pairs = plan(tiny, done(tiny, PAIRS)).trials[4:]
    assert {(t.arm, t.weight_decay) for t in pairs} == {("none", 2.0), ("labels", 1.0)}


def test_a_pilot_that_never_got_there_loses_to_one_that_did_and_a_tie_goes_to_accuracy(
    tiny: Setup, done: Done
) -> None:
    pilot = done(tiny, PAIRS)[:4]
    stopped = [
        replace(pilot[0], steps=3000, reached=True),
        replace(pilot[1], steps=3000, reached=False, validation_accuracy=0.5),
    ]
    assert plan(tiny, stopped + pilot[2:]).trials[4].weight_decay == 1.0
    tied = [replace(pilot[0], steps=3000, validation_accuracy=0.97), pilot[1]]
    assert plan(tiny, tied + pilot[2:]).trials[4].weight_decay == 1.0


def test_ratios_are_those_of_the_pairs_and_the_pilot_is_in_none(tiny: Setup, done: Done) -> None:
    trainings = done(tiny, [(3000, 300), (1600, 400)])
    found = finding(tiny, trainings, MACHINE)
    steps, seconds = (quantity.measured for quantity in found.quantities)
    assert steps.mean == pytest.approx(sqrt(10 * 4))
    assert seconds.mean == pytest.approx(sqrt(10 * 4) / 1.5)
    slow_pilot = [replace(t, cpu_seconds=99.0) if t.trial.stage == "pilot" else t for t in trainings]
    assert finding(tiny, slow_pilot, MACHINE).quantities == found.quantities


@pytest.mark.parametrize(
    ("pairs", "ruling", "words"),
    [
        ([(3000, 375), (3200, 400)], "confirmed", "takes 8.00 times"),
        ([(500, 400), (520, 400)], "refuted", "takes 1.27 times"),
        ([(3000, 375), (500, 400)], "undecided", "takes 3.16 times"),
        ([(-3000, 375), (3200, 400)], "confirmed", "at least 8.00 times"),
        ([(-500, 400), (-520, 400)], "undecided", "2 of 2 trainings without TPS never got there"),
        ([(500, -400), (520, 400)], "refuted", "at most 1.27 times"),
        ([(3000, -375), (3200, 400)], "undecided", "1 of 2 trainings with TPS never got there"),
    ],
)
def test_the_ruling_and_its_sentence(
    tiny: Setup, done: Done, pairs: list[tuple[int, int]], ruling: str, words: str
) -> None:
    found = finding(tiny, done(tiny, pairs), MACHINE)
    assert found.ruling == ruling
    assert words in found.sentence


def test_an_interval_above_all_that_was_predicted_is_said_to_be(tiny: Setup, done: Done) -> None:
    words = "lies above the predicted 2 to 5"
    assert words in finding(tiny, done(tiny, [(3000, 375), (3200, 400)]), MACHINE).sentence
    assert words not in finding(tiny, done(tiny, [(1200, 400), (1240, 400)]), MACHINE).sentence
    assert words not in finding(tiny, done(tiny, [(3000, -375), (3200, 400)]), MACHINE).sentence


def test_trainings_of_more_seeds_than_asked_for_are_left_aside(tiny: Setup, done: Done) -> None:
    trainings = done(tiny, PAIRS)
    more = made(Trial(stage="pair", seed=3, arm="none", weight_decay=2.0), 10)
    assert finding(tiny, [*trainings, more], MACHINE) == finding(tiny, trainings, MACHINE)


def test_the_page_holds_the_findings_numbers_and_no_others(tiny: Setup, done: Done) -> None:
    found = finding(tiny, done(tiny, [(-3025, 375), (3210, 410)]), MACHINE)
    text = page(found)
    assert text == page(found)
    numbers = {word.rstrip(".").replace(",", "") for word in re.findall(r"\d[\d.,]*", text)}
    fixed = "2 5 2025 10.5281 18042384"
    rules = "13 0.5 0.001 1 0.1 10 30 0 95"
    table = "375 410 3025 3210 8.07 7.83 30.2 32.1 5.62 6.15 5.38 5.22 33 3000 4000 350 30.0 40.0 5.25 0.960"
    intervals = {
        f"{value:.2f}" if value < 9.995 else f"{value:.1f}"
        for quantity in found.quantities
        for value in (quantity.measured.mean, quantity.measured.low, quantity.measured.high)
    }
    assert numbers == {*fixed.split(), *rules.split(), *table.split(), *intervals, "2.13.0"}
    assert "> 3,025" in text
    assert f"{found.ruling}\n" in text
    assert str(found.ruling) in text.splitlines()[0]


def test_the_machine_is_told_by_kind_and_not_by_name() -> None:
    assert set(machine_kind()) == {"system", "architecture", "logical_cpus", "torch", "python"}
