"""Alarms and rules of drawing run over series made up, and the signals of a training small enough to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.studies.conftest import shortened, tiny_setup
from tpsprune.recipe.stop import ChangeRule, ConsensusRule, PlateauRule, Stop, ThresholdRule
from tpsprune_studies import lead_time, sequence_tasks
from tpsprune_studies.alarms import (
    CANDIDATES,
    DRAW_RULES,
    Act,
    WatchedTraining,
    WatchedTrial,
    choose_rule,
    count_alarms,
    find_act,
)
from tpsprune_studies.finding import Finding, Ruling

SIGNALS = sorted({str(getattr(rule, "monitor", "")) for rule in CANDIDATES})


def watched(
    arm: str, seed: int, reached_step: int | None, series: Mapping[str, list[float | None]], epoch: int = 1
) -> WatchedTraining:
    """A training read every ten steps."""
    points = {
        name: tuple((10 * rank, value) for rank, value in enumerate(values, start=1))
        for name, values in series.items()
    }
    return WatchedTraining(
        trial=WatchedTrial(arm=arm, seed=seed),
        steps=100,
        steps_per_epoch=epoch,
        reached_step=reached_step,
        series={"validation_accuracy": ((10, 0.0), (100, 1.0)), **points},
        cpu_seconds=2.0,
        signal_cpu_seconds={"norm": 0.5},
        seconds=3.0,
    )


FALLS = [8.0, 8.0, 4.0, 2.0, 2.0]
CONSTANT = [8.0, 8.0, 8.0, 7.9, 8.0]
HALVES = ChangeRule(monitor="norm", factor=2.0, min_adjusted_accuracy=0.0)


def test_an_alarm_rings_at_the_reading_at_which_a_run_would_know() -> None:
    gaps = [None, None, 8.0, None, 4.0]
    assert find_act(HALVES, watched("add", 1, 90, {"norm": FALLS})) == Act(30, 0.0)
    assert find_act(HALVES, watched("add", 1, 90, {"norm": gaps})) == Act(50, 0.0)
    assert find_act(HALVES, watched("add", 1, 90, {"norm": CONSTANT})) is None
    assert find_act(HALVES, watched("add", 1, 90, {})) is None


def test_leads_are_epochs_misses_lead_by_nothing_and_controls_count_what_rang() -> None:
    learned = [
        watched("add", 1, 90, {"norm": FALLS}, epoch=2),
        watched("multiply", 1, 90, {"norm": CONSTANT}),
        watched("multiply", 2, 30, {"norm": FALLS}),
    ]
    controls = [watched("a3+ab", 1, None, {"norm": each}) for each in (FALLS, CONSTANT, CONSTANT)]
    found = count_alarms(HALVES, learned, controls)
    assert found.lead_epochs == (30.0, 0.0, 0.0)
    assert (found.misses, found.false_alarms, found.controls) == (2, 1, 3)
    assert found.mean_lead_epochs == 10.0


def test_the_best_rule_errs_least_and_of_such_leads_most() -> None:
    learned = [watched("add", 0, 90, {"norm": [8.0, 6.0, 4.0, 1.0]})]
    calm = [watched("a3+ab", 0, None, {"norm": [8.0, 6.5, 8.0]})]
    found = choose_rule("norm", learned, calm)
    assert found.rule == ChangeRule(monitor="norm", factor=1.25, min_adjusted_accuracy=0.0), (
        "1.1 rings on the control"
    )
    assert (found.misses, found.false_alarms, found.lead_epochs) == (0, 0, (70.0,))


def test_every_candidate_depends_on_its_own_signal_alone() -> None:
    assert all(getattr(rule, "min_adjusted_accuracy", 0.0) == 0.0 for rule in CANDIDATES)
    assert set(lead_time.TOPOLOGICAL) <= set(SIGNALS)
    assert ThresholdRule(monitor="h1", threshold=3.0) in CANDIDATES


def conclude(done: list[WatchedTraining]) -> Finding:
    return lead_time.conclude(tiny_setup(lead_time), done, {})


def trainings(warning: list[float], control: list[float], seeds: int = 2) -> list[WatchedTraining]:
    """All trainings of the plan: what learns gets there at step 1000, what cannot does not."""
    found = []
    for trial in lead_time.plan(tiny_setup(lead_time, seeds), []).trials:
        assert isinstance(trial, WatchedTrial)
        if trial.arm in sequence_tasks.TASKS:
            continue
        learns = trial.arm in {"add", "subtract", "multiply"}
        # A lead that differs from seed to seed.
        series = [1.0] * trial.seed + (warning if learns else control)
        empty = {signal: [1.0, 1.0] for signal in SIGNALS if signal != "validation_accuracy"}
        found.append(watched(trial.arm, trial.seed, 1000 if learns else None, {**empty, "h1_max": series}))
    return found


@pytest.mark.parametrize(
    ("warning", "control", "ruling"),
    [
        ([1.0, 9.0], [1.0, 1.0], Ruling.CONFIRMED),
        ([1.0, 1.0], [1.0, 1.0], Ruling.REFUTED),
        ([1.0, 9.0], [1.0, 9.0], Ruling.REFUTED),
    ],
    ids=["warns", "is silent", "always rings"],
)
def test_an_early_alarm_confirms_none_refutes_and_so_does_one_that_always_rings(
    warning: list[float], control: list[float], ruling: Ruling
) -> None:
    found = conclude(trainings(warning, control))
    assert found.ruling is ruling
    assert len(found.trainings) == 21
    row = next(line for line in found.render_page().splitlines() if line.startswith("| h1_max | h1_max "))
    assert " | 6 | 0 | 0 of 6 | " in row or ruling is not Ruling.CONFIRMED


def test_the_pilot_chooses_and_is_counted_nowhere() -> None:
    done = trainings([1.0, 9.0], [1.0, 1.0])
    broken = [
        watched(each.trial.arm, 0, each.reached_step, {"h1_max": [9.0, 1.0]}) if not each.trial.seed else each
        for each in done
    ]
    assert conclude(done).ruling is Ruling.CONFIRMED
    assert conclude(broken).ruling is Ruling.REFUTED


def test_where_nothing_is_learned_nothing_is_decided() -> None:
    never = [watched(each.trial.arm, each.trial.seed, None, {}) for each in trainings([1.0], [1.0])]
    found = conclude(never)
    assert found.ruling is Ruling.UNDECIDED
    assert found.sentence == "fewer than two trainings reached validation accuracy 0.06."


@pytest.mark.parametrize(
    ("ringing", "ruling", "words"),
    [
        ({("a3+ab", 1), ("a2+ab+b2", 1)}, Ruling.CONFIRMED, "6 of 6"),
        ({("a3+ab", 1), ("a3+ab", 2), ("a2+ab+b2", 1)}, Ruling.UNDECIDED, "p = 0.091"),
    ],
)
def test_an_alarm_that_does_not_separate_decides_nothing(
    ringing: set[tuple[str, int]], ruling: Ruling, words: str
) -> None:
    rings = ((10, 1.0), (20, 9.0))
    done = [
        replace(each, series={**each.series, "h1_max": rings})
        if (each.trial.arm, each.trial.seed) in ringing
        else each
        for each in trainings([1.0, 9.0], [1.0, 1.0])
    ]
    found = conclude(done)
    assert found.ruling is ruling
    assert words in found.sentence


def test_every_signal_is_read_and_its_cost_measured() -> None:
    with shortened("lead-time") as setup:
        first = lead_time.run(replace(setup, level=2.0), WatchedTrial(arm="add", seed=1))
    assert set(SIGNALS) <= set(first.series)
    assert all(seconds >= 0 for seconds in first.signal_cpu_seconds.values())
    assert first.signal_cpu_seconds["h1"] > 0.0, "counting loops is paid for"
    assert [step for step, _ in first.series["norm"]] == [10, 20, 30, 40]
    assert first.series["h1"][0][0] == 20, "loops come one reading late"


def test_dyck_is_read_like_the_others_and_the_published_gap_beside() -> None:
    with shortened("lead-time") as setup:
        found = lead_time.run(replace(setup, level=2.0), WatchedTrial(arm="Dyck-1", seed=1))
        again = lead_time.run(replace(setup, level=2.0), WatchedTrial(arm="Dyck-1", seed=1))
        control = lead_time.run(replace(setup, level=2.0), WatchedTrial(arm="Dyck-1, no decay", seed=1))
    assert found.series == again.series
    assert found.series != control.series
    assert set(SIGNALS) - {"tps_coherence"} <= set(found.series)
    assert [step for step, _ in found.series["norm"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in found.series["attention_gap_23"]] == [3, 4, 5], "after three updates"
    assert {value for _, value in found.series["attention_edge_k"]} <= {1.0, 2.0}


def test_the_larger_size_has_scan_as_published_and_the_journal_of_the_small_one() -> None:
    recipe = tiny_setup(lead_time).recipe
    small, full = (lead_time.make_setup(recipe, 2, 40, full=full) for full in (False, True))
    arms = [{trial.arm for trial in lead_time.plan(each, []).trials} for each in (small, full)]
    assert arms[0] - arms[1] == {"SCAN", "SCAN, no decay"}
    assert arms[1] - arms[0] == {"SCAN, published size", "SCAN, published size, no decay"}
    assert full.decisive() == small.decisive()
    assert full.command("gap") == "tpsprune study gap --seeds 2 --cap 40 --full"


@pytest.mark.usefixtures("three_seeds")
def test_rules_chosen_on_the_pilot_are_run_over_other_tasks_and_change_nothing_here() -> None:
    done = trainings([1.0, 9.0], [1.0, 1.0])
    elsewhere = [
        watched(arm, seed, reached, {"h1_max": series})
        for seed in range(3)
        for arm, reached, series in (
            ("SCAN", 50, [1.0, 9.0 if seed else 1.0]),
            ("SCAN, no decay", None, [1.0, 1.0 if seed else 9.0]),
        )
    ]
    alone, found = conclude(done).render_page(), conclude([*done, *elsewhere]).render_page()
    assert "| signal | rule | SCAN: hits | false |" in found
    row = next(line for line in found.splitlines() if line.startswith("| h1_max") and "of 3" in line)
    assert row.endswith(" | 2 of 3 | 1 of 3 |")
    assert next(line for line in found.splitlines() if line.startswith("| norm") and "not read" in line)
    before = alone[: alone.index("## Rules of drawing, as")]
    after = found[: found.index("## The same rules on other")]
    assert before.strip() == after.strip()


CALM = [4.0] * 8
LEARNS = [0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 0.8, 0.95]
NEVER = [0.02] * 8


def training(accuracies: list[float], arm: str = "add", reached: int | None = 80) -> WatchedTraining:
    return watched(arm, 1, reached, {"d_eff": [*CALM], "validation_accuracy": [*accuracies]})


def test_a_calm_signal_draws_once_half_of_the_way_is_covered_and_not_before() -> None:
    assert find_act(PlateauRule(), training(LEARNS), 0.1) == Act(60, 0.6)
    assert find_act(PlateauRule(min_adjusted_accuracy=0.0), training(LEARNS), 0.1) == Act(30, 0.0)
    assert find_act(PlateauRule(), training(NEVER), 0.01) is None
    # What chance scores is no part of the way.
    assert find_act(PlateauRule(), training(LEARNS), 0.5) == Act(70, 0.8)


def test_rules_of_several_signals_see_them_at_the_same_step() -> None:
    falls = [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 4.0, 4.0]
    both = ConsensusRule(rules=(PlateauRule(), ChangeRule(monitor="norm", factor=2.0)))
    found = watched("add", 1, 80, {"d_eff": [*CALM], "norm": [*falls], "validation_accuracy": [*LEARNS]})
    assert find_act(both, found, 0.1) == Act(70, 0.8)


def test_the_table_counts_draws_before_the_level_in_vain_and_in_ordinary_work() -> None:
    done = [
        training(LEARNS),
        training([*NEVER[:7], 0.95]),
        training(NEVER, "a3+ab", None),
        training(NEVER, "a3+ab", None),
        training([0.7] * 8, "digits", None),
    ]
    pilot = [replace(each, trial=WatchedTrial(arm=each.trial.arm, seed=0)) for each in done]
    lines = conclude([*pilot, *done]).render_page().splitlines()
    begin = lines.index("## Rules of drawing, as a run would follow them") + 4
    rows = {line.split(" | ")[0]: line for line in lines[begin : begin + len(DRAW_RULES)]}
    assert list(rows) == [f"| {name}" for name in DRAW_RULES]
    assert rows["| default"].endswith("| 2 of 2 | 10 | 0.77 | 0 of 2 | 1 of 1 | 0.700 |")
    assert rows["| loops"].endswith("| 0 of 2 |  |  | 0 of 2 | 0 of 1 |  |")


def test_the_default_of_a_recipe_is_the_first_that_is_tried() -> None:
    assert next(iter(DRAW_RULES.items())) == ("default", Stop().draw)
