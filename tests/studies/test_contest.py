"""Races: who wins, what a training is allowed, and that a broken-off contest knows where it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.studies.conftest import LABELS, NONE, longer, made
from tpsprune.studies.contest import Arm, Contest, Settings, Size, Trained, Trial, race
from tpsprune.studies.contest_result import plan_contest
from tpsprune.studies.speed_up import SpeedUp, arms

ONE = Size(pilot_seeds=1, seeds=2)
GRID = Arm(
    name="grid", variant="labels", learning_rates=(1.0, 2.0), weight_decays=(1.0, 2.0), strengths=(5.0, 7.0)
)


def raced(
    contest: Contest, arm: Arm, size: Size, outcome: dict[tuple[float, float, float], int]
) -> list[Trained]:
    done: dict[Trial, Trained] = {}
    while True:
        due = [trial for trial in race(contest, arm, size, done).trials if trial not in done]
        if not due:
            return list(done.values())
        (trial,) = due
        steps = outcome[(trial.learning_rate, trial.weight_decay, trial.strength)]
        done[trial] = made(trial, steps if abs(steps) <= trial.allowed_steps else -trial.allowed_steps)


OUTCOME = {
    (1.0, 1.0, 5.0): 900,
    (1.0, 2.0, 5.0): 700,
    (2.0, 1.0, 5.0): 800,
    (2.0, 2.0, 5.0): -5000,
    (1.0, 2.0, 7.0): 300,
}


def test_the_fewest_steps_win_and_strengths_are_tried_at_the_first_rounds_best(tiny: SpeedUp) -> None:
    contest = longer(tiny).contest
    done = raced(contest, GRID, ONE, OUTCOME)
    tried = [(t.trial.learning_rate, t.trial.weight_decay, t.trial.strength) for t in done]
    assert tried == list(OUTCOME)
    found = race(contest, GRID, ONE, {t.trial: t for t in done})
    assert found.chosen == Settings(learning_rate=1.0, weight_decay=2.0, strength=7.0)
    assert found.left == 0


def test_a_training_is_allowed_only_what_would_still_win(tiny: SpeedUp) -> None:
    done = raced(longer(tiny).contest, GRID, ONE, OUTCOME)
    assert [t.trial.allowed_steps for t in done] == [5000, 890, 690, 690, 690]
    assert [t.reached for t in done] == [True, True, False, False, True]


def test_over_two_seeds_the_sum_counts_and_the_second_is_allowed_what_the_first_left(tiny: SpeedUp) -> None:
    done = raced(longer(tiny).contest, GRID, Size(pilot_seeds=2, seeds=2), OUTCOME)
    allowed = [(t.trial.seed, t.trial.allowed_steps) for t in done]
    assert allowed == [
        (0, 5000),
        (1, 5000),
        (0, 1790),
        (1, 1090),
        (0, 1390),
        (1, 590),
        (0, 1390),
        (0, 1390),
        (1, 1090),
    ]


def test_where_none_gets_there_the_most_accurate_wins(tiny: SpeedUp) -> None:
    contest = longer(tiny).contest
    done = {
        t.trial: t
        for t in raced(contest, GRID, ONE, dict.fromkeys(OUTCOME, -5000) | {(1.0, 1.0, 7.0): -5000})
    }
    better = next(trial for trial in done if trial.weight_decay == 1.0 and trial.learning_rate == 2.0)
    done[better] = replace(done[better], validation_accuracy=0.5)
    found = race(contest, GRID, ONE, done)
    # The second round starts from the new leader, and is due.
    assert found.trials[-1].settings == Settings(learning_rate=2.0, weight_decay=1.0, strength=7.0)
    assert found.chosen is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-5000, 5000).filter(bool), min_size=7, max_size=7))
def test_giving_up_early_never_changes_who_wins(steps: list[int]) -> None:
    from tpsprune import recipe

    contest = Contest(
        task="t",
        recipe=recipe.read("modular-addition"),
        arms=(GRID,),
        level=0.9,
        cap_steps=5000,
        reading_steps=10,
    )
    rates = [(a, b, c) for a in (1.0, 2.0) for b in (1.0, 2.0) for c in (5.0, 7.0)]
    outcome = {
        key: 10 * (abs(value) // 10 or 1) * (1 if value > 0 else -1)
        for key, value in zip(rates, [*steps, 1], strict=True)
    }
    done = raced(contest, GRID, ONE, outcome)
    chosen = race(contest, GRID, ONE, {t.trial: t for t in done}).chosen
    assert chosen is not None
    first = {key: value for key, value in outcome.items() if key[2] == 5.0 and value > 0}
    if first:
        leader = min(first, key=lambda key: first[key])
        second = outcome[(*leader[:2], 7.0)]
        expected = (*leader[:2], 7.0) if 0 < second < first[leader] else leader
        assert (chosen.learning_rate, chosen.weight_decay, chosen.strength) == expected


def test_what_lies_at_the_end_of_a_list_is_said() -> None:
    assert GRID.edges(Settings(learning_rate=1.0, weight_decay=2.0, strength=7.0)) == (
        "learning rate",
        "weight decay",
        "strength",
    )
    assert not NONE.edges(Settings(learning_rate=0.02, weight_decay=1.0))


def test_pairs_begin_only_when_every_race_is_over(tiny: SpeedUp) -> None:
    contest, size = tiny.contest, tiny.size
    done: dict[Trial, Trained] = {}
    first = plan_contest(contest, size, done)
    assert [trial.arm for trial in first.trials] == ["addition, none", "addition, labels"]
    assert first.total == 2 + 2 + 2 * 2
    while not any(trial.stage == "pair" for trial in plan_contest(contest, size, done).trials):  # type: ignore[attr-defined]
        trial = next(trial for trial in plan_contest(contest, size, done).trials if trial not in done)
        assert isinstance(trial, Trial)
        done[trial] = made(trial, 10)
    assert {trial.stage for trial in done} == {"pilot"}
    compared = [t for t in plan_contest(contest, size, done).trials if t not in done]
    assert [(t.seed, t.name, t.allowed_steps) for t in compared if isinstance(t, Trial)] == [
        (1, "none", 30),
        (1, "labels", 30),
        (2, "none", 30),
        (2, "labels", 30),
    ]


def test_a_change_of_task_level_or_cap_is_another_training(tiny: SpeedUp) -> None:
    contest = tiny.contest
    task = replace(contest.recipe.task, required_accuracy=0.5)
    others = [
        replace(contest, level=0.2),
        replace(contest, cap_steps=31),
        replace(contest, recipe=replace(contest.recipe, task=task)),
    ]
    assert len({each.conditions for each in (contest, *others)}) == 4
    seeded = replace(contest.recipe.task.data, split_seed=9)
    same = replace(contest, recipe=replace(contest.recipe, task=replace(contest.recipe.task, data=seeded)))
    assert same.conditions == contest.conditions


def test_the_opponents_have_as_many_settings_as_any_arm_with_tps() -> None:
    sizes = {arm.name: arm.size for arm in arms()}
    assert min(sizes["none"], sizes["grokfast"]) >= max(sizes.values()) - 3
    assert sizes["none"] >= max(size for name, size in sizes.items() if name != "grokfast")


@pytest.mark.parametrize("arm", [NONE, LABELS])
def test_a_race_names_every_setting_once(tiny: SpeedUp, arm: Arm) -> None:
    done = raced(
        longer(tiny).contest,
        arm,
        ONE,
        dict.fromkeys([(a, b, c) for a in (0.01, 0.03) for b in (1.0,) for c in (0.0, 1.0, 3.0)], 500),
    )
    assert len({t.trial.settings for t in done}) == len(done) == arm.size
