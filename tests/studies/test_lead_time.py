"""Alarms let loose on series made up, and one study small enough to run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tpsprune import recipe
from tpsprune.recipe.stop import ChangeRule, ThresholdRule
from tpsprune.studies import lead_time
from tpsprune.studies.alarms import CANDIDATES, alarm_step, best, tally
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.conduct import conduct
from tpsprune.studies.finding import Finding
from tpsprune.studies.setup import Setup
from tpsprune.studies.verdict import Ruling
from tpsprune.studies.watched import Watched, WatchedTrial

SIGNALS = sorted({str(getattr(rule, "signal", "")) for rule in CANDIDATES})


def watched(
    arm: str, seed: int, reached_step: int | None, series: Mapping[str, list[float | None]], epoch: int = 1
) -> Watched:
    """A training read every ten steps."""
    points = {
        name: tuple((10 * rank, value) for rank, value in enumerate(values, start=1))
        for name, values in series.items()
    }
    return Watched(
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
STAYS = [8.0, 8.0, 8.0, 7.9, 8.0]
HALVES = ChangeRule(signal="norm", factor=2.0, learned_share=0.0)


def test_an_alarm_rings_at_the_reading_at_which_a_run_would_know() -> None:
    assert alarm_step(HALVES, watched("add", 1, 90, {"norm": FALLS}).series) == 30
    assert alarm_step(HALVES, watched("add", 1, 90, {"norm": [None, None, 8.0, None, 4.0]}).series) == 50
    assert alarm_step(HALVES, watched("add", 1, 90, {"norm": STAYS}).series) is None
    assert alarm_step(HALVES, watched("add", 1, 90, {}).series) is None


def test_leads_are_epochs_misses_lead_by_nothing_and_controls_count_what_rang() -> None:
    learned = [
        watched("add", 1, 90, {"norm": FALLS}, epoch=2),
        watched("multiply", 1, 90, {"norm": STAYS}),
        watched("multiply", 2, 30, {"norm": FALLS}),
    ]
    controls = [watched("a3+ab", 1, None, {"norm": each}) for each in (FALLS, STAYS, STAYS)]
    found = tally(HALVES, learned, controls)
    assert found.lead_epochs == (30.0, 0.0, 0.0)
    assert (found.misses, found.false_alarms, found.controls) == (2, 1, 3)
    assert found.mean_lead_epochs == 10.0


def test_the_best_rule_errs_least_and_of_such_leads_most() -> None:
    learned = [watched("add", 0, 90, {"norm": [8.0, 6.0, 4.0, 1.0]})]
    calm = [watched("a3+ab", 0, None, {"norm": [8.0, 6.5, 8.0]})]
    found = best("norm", learned, calm)
    assert found.rule == ChangeRule(signal="norm", factor=1.25, learned_share=0.0), "1.1 rings on the control"
    assert (found.misses, found.false_alarms, found.lead_epochs) == (0, 0, (70.0,))


def test_no_candidate_looks_at_anything_but_its_own_signal() -> None:
    assert all(getattr(rule, "learned_share", 0.0) == 0.0 for rule in CANDIDATES)
    assert set(lead_time.TOPOLOGICAL) <= set(SIGNALS)
    assert ThresholdRule(signal="h1", level=3.0) in CANDIDATES


def setup(seeds: int = 2) -> Setup:
    overrides = ("task.data.modulus=13", "task.model.widths=[16]", "task.model.embedding=8")
    small = lead_time.setup(recipe.read("modular-addition", overrides), seeds, 40)
    return replace(small, level=0.06, reading_steps=10)


def trainings(warning: list[float], control: list[float], seeds: int = 2) -> list[Watched]:
    """All that the plan asks for: what learns gets there at step 1000, what cannot does not."""
    found = []
    for trial in lead_time.plan(setup(seeds), []).trials:
        assert isinstance(trial, WatchedTrial)
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
    found = lead_time.finding(setup(), trainings(warning, control), {})
    assert found.ruling is ruling
    assert len(found.trainings) == 21
    row = next(row for row in found.tables[0].rows if row[0] == "h1_max")
    assert row[3:6] == (("6", "0", "0 of 6") if ruling is Ruling.CONFIRMED else row[3:6])


def test_the_pilot_chooses_and_is_counted_nowhere() -> None:
    done = trainings([1.0, 9.0], [1.0, 1.0])
    broken = [
        watched(each.trial.arm, 0, each.reached_step, {"h1_max": [9.0, 1.0]}) if not each.trial.seed else each
        for each in done
    ]
    assert lead_time.finding(setup(), done, {}).ruling is Ruling.CONFIRMED
    assert lead_time.finding(setup(), broken, {}).ruling is Ruling.REFUTED


def test_where_nothing_is_learned_nothing_is_decided() -> None:
    never = [watched(each.trial.arm, each.trial.seed, None, {}) for each in trainings([1.0], [1.0])]
    found = lead_time.finding(setup(), never, {})
    assert found.ruling is Ruling.UNDECIDED
    assert found.sentence == "fewer than two trainings reached validation accuracy 0.06."


@pytest.fixture(scope="module")
def conducted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str | Finding]]:
    folder = tmp_path_factory.mktemp("lead")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lead_time, "DIGITS_EPOCHS", 2)
        return folder, list(conduct(STUDIES["lead-time"], setup(), folder))


def test_the_study_runs_writes_its_page_and_reads_its_journal_again(
    conducted: tuple[Path, list[str | Finding]],
) -> None:
    folder, told = conducted
    *lines, found = told
    assert isinstance(found, Finding)
    assert len(lines) == 21
    assert str(lines[0]).startswith("1/21 seed 0 add: ")
    page = (folder / "lead-time.md").read_text()
    assert "| lead of the alarm in epochs | predicted | measured | 95 % interval | trainings |" in page
    on_disk = json.loads((folder / "lead-time.json").read_text())
    assert on_disk["verdict"] == found.ruling.value
    for raw in on_disk["trainings"]:
        assert json.loads(json.dumps(Watched.from_json(raw).to_json())) == raw
    (again,) = conduct(STUDIES["lead-time"], setup(), folder)
    assert isinstance(again, Finding)
    assert json.loads(json.dumps(again.to_json())) == on_disk


def test_every_signal_is_read_and_what_it_cost_is_known(
    conducted: tuple[Path, list[str | Finding]],
) -> None:
    lines = (conducted[0] / "lead-time.jsonl").read_text().splitlines()
    trainings = [Watched.from_json(json.loads(line)["training"]) for line in lines]
    first = max(trainings, key=lambda each: (each.trial.arm != "digits", each.steps))
    assert set(SIGNALS) <= set(first.series)
    assert all(seconds >= 0 for seconds in first.signal_cpu_seconds.values())
    steps = [step for step, _ in first.series["norm"]]
    assert steps == list(range(10, 10 * len(steps) + 1, 10))
    assert first.series["h1"][0][0] == 20, "loops are known a reading after they were asked"


def test_an_alarm_that_does_not_tell_apart_decides_nothing() -> None:
    done = trainings([1.0, 9.0], [1.0, 1.0])
    ringing = [
        replace(each, series={**each.series, "h1_max": ((10, 1.0), (20, 9.0))})
        if each.trial.arm in {"a3+ab", "a2+ab+b2"} and each.trial.seed == 1
        else each
        for each in done
    ]
    assert lead_time.finding(setup(), ringing, {}).ruling is Ruling.CONFIRMED, "6 of 6 beside 2 of 6"
    ringing = [
        replace(each, series={**each.series, "h1_max": ((10, 1.0), (20, 9.0))})
        if each.trial.arm == "a3+ab" or (each.trial.arm == "a2+ab+b2" and each.trial.seed == 1)
        else each
        for each in done
        if each.trial.seed
    ]
    pilot = [each for each in done if not each.trial.seed]
    found = lead_time.finding(setup(), [*pilot, *ringing], {})
    assert found.ruling is Ruling.UNDECIDED, "6 of 6 beside 3 of 6 may be luck"
    assert "p = 0.091" in found.sentence
