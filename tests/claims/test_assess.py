"""A comparison assessed: verdicts end to end, from runs as the journal holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.claims.conftest import (
    MEASURED,
    MODELLED,
    changed,
    comparison,
    design,
    idle,
    inference,
    run,
    window,
)
from tpsprune.claims import assess
from tpsprune.claims.faults import faults_by_pair
from tpsprune.records import (
    BrokenOff,
    Choices,
    ComparisonRecord,
    EnergyClass,
    Grid,
    Standing,
    Window,
    joules_of,
)

DENSE = [100.0, 103.0, 98.0, 101.0, 99.0, 102.0]
HALF = [51.0, 50.0, 49.0, 50.5, 50.0, 51.5]


def test_half_the_energy_at_equal_accuracy_is_a_measured_saving() -> None:
    found = assess(comparison(DENSE, HALF))
    claim = found.verdict
    assert claim.standing is Standing.SAVING_MEASURED
    assert claim.key == "training/small"
    assert claim.change is not None
    assert claim.change.saving_share == pytest.approx(0.5, abs=0.01)
    assert "% less energy" in claim.statement
    assert found.grade.letter == "B"
    assert found.may_claim == (f"{claim.statement.removesuffix('.')}, as measured by hardware counters.",)
    assert found.complete


def test_three_pairs_claim_nothing_and_say_how_many_are_needed() -> None:
    found = assess(comparison(DENSE[:3], HALF[:3]))
    assert found.verdict.standing is Standing.INSUFFICIENT_RUNS
    assert found.may_claim == ()
    assert [each.saving_share for each in found.needed] == [0.05, 0.1, 0.2, 0.4]
    assert all(each.pairs is not None and each.pairs >= 6 for each in found.needed)


def test_identical_arms_are_noise_worse_accuracy_is_refused_and_a_tiny_loss_is_not() -> None:
    assert assess(comparison(DENSE, DENSE)).verdict.standing is Standing.WITHIN_NOISE
    assert assess(comparison(DENSE, HALF, drop=0.02)).verdict.standing is Standing.ACCURACY_NOT_PRESERVED
    assert assess(comparison(DENSE, HALF, drop=0.005)).verdict.standing is Standing.SAVING_MEASURED


def test_a_mean_that_seems_kept_is_refused_where_pairs_scatter() -> None:
    scattered = comparison(DENSE, HALF)
    for pair, accuracy in enumerate((0.94, 0.86, 0.93, 0.87, 0.92, 0.88)):
        scattered = changed(scattered, "small", pair, accuracy=accuracy)
    claim = assess(scattered)
    assert claim.accuracies[0].difference_share == pytest.approx(0.0)
    assert claim.verdict.standing is Standing.ACCURACY_NOT_PRESERVED


def test_a_task_that_nobody_learned_is_no_saving() -> None:
    found = comparison(DENSE, HALF)
    found = replace(found, design=design(required_accuracy=0.95))
    claim = assess(found).verdict
    assert claim.standing is Standing.ACCURACY_NOT_PRESERVED
    assert [reason.code for reason in claim.reasons] == ["NOT_LEARNED"]


def test_swapped_arms_give_the_mirrored_number() -> None:
    there = assess(comparison(DENSE, HALF)).verdict.change
    swapped = replace(comparison(DENSE, HALF), design=design("small", "dense"))
    back = assess(swapped).verdict
    assert back.standing is Standing.COST_INCREASE_MEASURED
    assert there is not None
    assert back.change is not None
    assert (1 - there.saving_share) * (1 - back.change.saving_share) == pytest.approx(1.0)
    assert "more energy" in back.statement


BREAKS: dict[str, Callable[[Window], Window]] = {
    "INVALID_WINDOW": lambda each: replace(each, valid=False, fault="the cpu counter did not move"),
    "NOT_METERED": lambda each: replace(each, joules={}, classes={}),
    "THROTTLED": lambda each: replace(each, throttled=True),
    "FOREIGN_LOAD": lambda each: replace(each, machine_cpu_seconds=each.cpu_seconds + 0.3 * 40.0),
}


@pytest.mark.parametrize("code", BREAKS)
def test_one_broken_window_makes_the_measurement_invalid(code: str) -> None:
    found = comparison(DENSE, HALF)
    broken = tuple(BREAKS[code](each) for each in found.runs[5].windows)
    found = changed(found, found.runs[5].arm, found.runs[5].pair, windows=broken)
    claim = assess(found).verdict
    assert claim.standing is Standing.INVALID_MEASUREMENT
    assert [reason.code for reason in claim.reasons] == [code]


def test_neighbours_within_the_limit_are_shown_and_let_pass() -> None:
    found = comparison(DENSE, HALF)
    busy = replace(found.runs[0].windows[0], machine_cpu_seconds=20.0 + 0.1 * 40.0)
    assessed = assess(changed(found, "dense", 0, windows=(replace(busy, joules={"cpu": 100.0}),)))
    assert assessed.quality.foreign_load_share == pytest.approx(0.1)
    assert assessed.verdict.standing is Standing.SAVING_MEASURED


@pytest.mark.parametrize(
    "changes",
    [
        {"method": MODELLED},
        {"method": replace(MEASURED, details={"cpu_model": "another"})},
        {"windows": (window(50.0, classes={"cpu": EnergyClass.MODELLED}),)},
    ],
    ids=["in another way", "another processor", "another class in a window"],
)
def test_runs_metered_in_different_ways_do_not_compare(changes: dict[str, Any]) -> None:
    claim = assess(changed(comparison(DENSE, HALF), "small", 2, **changes)).verdict
    assert claim.standing is Standing.INVALID_MEASUREMENT
    assert [reason.code for reason in claim.reasons] == ["METHOD_CHANGED"]


def test_a_run_that_failed_takes_the_claim_with_it() -> None:
    found = changed(comparison(DENSE, HALF), "small", 1, failure="the loss is not finite", accuracy=None)
    assessed = assess(found)
    assert assessed.verdict.standing is Standing.ACCURACY_NOT_PRESERVED
    assert assessed.verdict.reasons[0].code == "RUN_FAILED"
    assert assessed.runs[3].why_not == "the loss is not finite"
    assert assessed.complete


def test_a_pair_of_which_one_arm_is_missing_counts_for_nobody() -> None:
    whole = comparison(DENSE, HALF, asked=6)
    found = assess(replace(whole, runs=whole.runs[:-1]))
    assert found.verdict.standing is Standing.INSUFFICIENT_RUNS
    assert found.verdict.change is not None
    assert found.verdict.change.pairs == 5
    assert (found.runs[-1].counted, found.runs[-1].why_not) == (False, "its pair is not complete")
    assert not found.complete


def test_energy_adds_over_windows() -> None:
    whole = comparison(DENSE, HALF)
    split = tuple(
        replace(
            each,
            windows=(
                window(each.windows[0].joules["cpu"] / 4),
                window(each.windows[0].joules["cpu"] * 3 / 4),
            ),
        )
        for each in whole.runs
    )
    parted = assess(replace(whole, runs=split)).verdict
    assert parted.change == assess(whole).verdict.change


def test_a_run_with_one_window_not_metered_has_no_joules_rather_than_fewer() -> None:
    found = comparison(DENSE, HALF)
    part = (window(40.0), replace(window(10.0, phase="watch"), joules={}, classes={}))
    assessed = assess(changed(found, "small", 2, windows=part))
    assert joules_of(part) is None
    assert assessed.runs[5].joules is None
    assert {line.phase: line.joules for line in assessed.ledger if line.arm == "small"}["watch"] is None
    assert assessed.verdict.standing is Standing.INVALID_MEASUREMENT


def with_inference(found: ComparisonRecord, dense: float, ticket: float) -> ComparisonRecord:
    spans = [
        inference(arm, pair, batch, joules * (1 + 0.01 * ((pair + batch) % 3)))
        for pair in range(6)
        for batch in (1, 64)
        for arm, joules in (("dense", dense), ("small", ticket))
    ]
    fixed = replace(found.design, inference_seconds=10.0, inference_batches=(1, 64))
    return replace(found, design=fixed, inference=tuple(spans))


def test_inferences_are_claims_of_their_own_and_all_are_corrected_for_one_another() -> None:
    found = assess(with_inference(comparison(DENSE, HALF), 200.0, 120.0))
    assert [claim.key for claim in found.claims] == [
        "training/small",
        "inference-1/small",
        "inference-64/small",
    ]
    assert all(claim.standing is Standing.SAVING_MEASURED for claim in found.claims)
    claim = found.claims[1]
    assert claim.baseline_joules == pytest.approx(0.202)
    for each in found.claims:
        assert each.change is not None
        assert each.change.p_holm is not None
        assert each.change.p_holm >= each.change.p_t


def test_inferences_that_are_missing_in_a_pair_stop_their_claim_and_the_report_is_not_complete() -> None:
    found = with_inference(comparison([*DENSE, 100.0], [*HALF, 50.0]), 200.0, 120.0)
    assessed = assess(found)
    assert not assessed.complete
    assert assessed.verdict.standing is Standing.SAVING_MEASURED
    assert [reason.code for reason in assessed.claims[1].reasons] == ["INCOMPLETE"]


def test_each_claim_has_the_grade_of_its_own_windows() -> None:
    found = with_inference(comparison(DENSE, HALF), 200.0, 120.0)
    parts = {"cpu": EnergyClass.MEASURED, "ram": EnergyClass.CONSTANT}
    counter_and_constant = replace(MEASURED, details={"ram_watts": "20"}, classes=parts)
    spans = tuple(
        replace(
            span,
            window=replace(
                span.window,
                joules={"cpu": 0.6 * span.window.joules["cpu"], "ram": 0.4 * span.window.joules["cpu"]},
                classes=parts,
            ),
        )
        for span in found.inference
    )
    runs = tuple(replace(each, method=counter_and_constant) for each in found.runs)
    claims = assess(replace(found, runs=runs, inference=spans)).claims
    assert claims[0].standing is Standing.SAVING_MEASURED
    assert claims[1].standing is Standing.SAVING_MODELLED


def test_modelled_joules_without_their_watts_are_no_ground_for_a_claim() -> None:
    silent = replace(MODELLED, details={})
    found = modelled(comparison(DENSE, HALF), 0.7)
    claim = assess(replace(found, runs=tuple(replace(each, method=silent) for each in found.runs))).verdict
    assert (claim.standing, claim.reasons[0].code) == (Standing.MODEL_SENSITIVE, "BAND_UNKNOWN")


def test_an_interim_look_makes_claims_stricter() -> None:
    found = comparison(DENSE, HALF)
    assert assess(replace(found, looks=2)).verdict.reasons[0].code == "SIGN_FLIP"
    longer = comparison([*DENSE, 100.0, 99.0], [*HALF, 50.0, 49.0])
    assert assess(replace(longer, looks=2)).verdict.standing is Standing.SAVING_MEASURED


def test_pairs_with_a_fault_of_their_own_are_found_whatever_the_fault() -> None:
    found = with_inference(comparison(DENSE, HALF), 200.0, 120.0)
    assert faults_by_pair(found) == {}
    for code, break_it in BREAKS.items():
        windows = tuple(break_it(each) for each in found.runs[5].windows)
        broken = changed(found, found.runs[5].arm, found.runs[5].pair, windows=windows)
        assert set(faults_by_pair(broken)) == {2}, code
    short = replace(found.inference[0], window=replace(found.inference[0].window, seconds=3.0))
    assert set(faults_by_pair(replace(found, inference=(short, *found.inference[1:])))) == {0}


def test_a_break_even_rests_on_claims_that_are_none_of_them_broken() -> None:
    sound = with_inference(comparison(DENSE, [joules + 60 for joules in HALF]), 200.0, 120.0)
    assert [each.inferences is not None for each in assess(sound).break_even] == [True, True]
    lost = with_inference(comparison(DENSE, HALF, drop=0.02), 200.0, 120.0)
    assert {each.reason for each in assess(lost).break_even} == {"the training: accuracy not preserved"}
    same = with_inference(comparison(DENSE, HALF), 200.0, 200.0)
    assert {each.reason for each in assess(same).break_even} == {"inference: within noise"}


def test_inferences_in_short_windows_are_no_measurement() -> None:
    found = with_inference(comparison(DENSE, HALF), 200.0, 120.0)
    short = replace(found.inference[0], window=replace(found.inference[0].window, seconds=3.0))
    claims = assess(replace(found, inference=(short, *found.inference[1:]))).claims
    assert [claim.standing for claim in claims] == [
        Standing.SAVING_MEASURED,
        Standing.INVALID_MEASUREMENT,
        Standing.SAVING_MEASURED,
    ]
    assert claims[1].reasons[0].code == "SHORT_WINDOW"


def test_neighbours_in_a_window_of_inference_make_that_claim_invalid_and_no_other() -> None:
    found = with_inference(comparison(DENSE, HALF), 200.0, 120.0)
    busy = replace(found.inference[0].window, machine_cpu_seconds=20.0 + 0.3 * 40.0)
    first = replace(found.inference[0], window=busy)
    claims = assess(replace(found, inference=(first, *found.inference[1:]))).claims
    assert [claim.standing.is_saving for claim in claims] == [True, False, True]
    assert [reason.code for reason in claims[1].reasons] == ["FOREIGN_LOAD"]


def test_the_idle_baseline_is_taken_off_beside_the_claim_and_not_in_it() -> None:
    found = comparison(DENSE, HALF)
    with_idle = replace(found, idle=tuple(idle(pair, watts=2.0) for pair in range(6)))
    claim = assess(with_idle).verdict
    assert claim.change == assess(found).verdict.change
    assert claim.idle_subtracted is not None
    # 20 s at 2 W off both: from 100 and 50 joules to about 60 and 10.
    assert claim.idle_subtracted.saving_share == pytest.approx(1 - 10 / 60, abs=0.02)
    assert assess(with_idle).quality.idle_watts == pytest.approx(2.0)


def test_operations_and_processor_seconds_stand_beside_the_joules() -> None:
    found = assess(with_inference(comparison(DENSE, HALF), 200.0, 120.0))
    operations = {support.what: support for support in found.claims[1].support}["operations (MACs)"]
    assert (operations.saving_share, operations.agrees) == (pytest.approx(0.5), True)


def modelled(found: ComparisonRecord, cpu_share: float) -> ComparisonRecord:
    """Return the comparison on a machine that measures nothing, as much of it by the model of the load."""
    runs = []
    for each in found.runs:
        total = each.windows[0].joules["cpu"]
        seconds = total / 5
        spent = replace(
            each.windows[0],
            seconds=seconds,
            cpu_seconds=seconds,
            machine_cpu_seconds=seconds,
            joules={"cpu": cpu_share * total, "ram": (1 - cpu_share) * total},
            classes={"cpu": EnergyClass.MODELLED, "ram": EnergyClass.CONSTANT},
        )
        runs.append(replace(each, windows=(spent,), method=MODELLED))
    return replace(found, runs=tuple(runs))


@pytest.mark.parametrize(("cpu_share", "grade"), [(0.7, "D"), (0.2, "E")])
def test_a_machine_without_counters_claims_a_modelled_saving_with_its_grade(
    cpu_share: float, grade: str
) -> None:
    found = assess(modelled(comparison(DENSE, HALF), cpu_share))
    assert (found.grade.letter, found.verdict.standing) == (grade, Standing.SAVING_MODELLED)
    assert found.verdict.energy_class == "modelled + constant"
    assert len(found.verdict.band) == 12
    assert any("measured" in sentence for sentence in found.may_not_claim)


def test_a_ticket_that_loads_the_machine_more_hangs_on_the_power_model() -> None:
    found = modelled(comparison([100.0, 101, 99, 100, 102, 98], [65.0, 66, 64, 65, 67, 63]), 0.2)
    runs = tuple(
        replace(
            each,
            windows=tuple(
                replace(
                    spent,
                    machine_cpu_seconds=spent.seconds * (0.5 if each.arm == "dense" else 2.0),
                    cpu_seconds=spent.seconds * (0.5 if each.arm == "dense" else 2.0),
                )
                for spent in each.windows
            ),
        )
        for each in found.runs
    )
    claim = assess(replace(found, runs=runs)).verdict
    assert claim.standing is Standing.MODEL_SENSITIVE


def test_runs_set_aside_are_named_and_their_energy_is_in_no_claim() -> None:
    lost = BrokenOff(arm="small", seed=2, pair=2, position=9, windows=(window(30.0), window(12.0)))
    whole = comparison(DENSE, HALF)
    found = assess(replace(whole, broken_off=(lost,)))
    assert found.quality.lost_joules == pytest.approx(42.0)
    assert found.quality.set_aside == ("'small', seed 2: broken off (at least 40.0 s, 42.0 J)",)
    assert found.verdict == assess(whole).verdict


def broken(*arms: str, **changes: Any) -> tuple[BrokenOff, ...]:
    lost = BrokenOff(arm="", seed=2, pair=2, position=9, windows=(window(30.0),))
    return tuple(replace(lost, arm=arm, **changes) for arm in arms)


@pytest.mark.parametrize(
    ("broken_off", "stands"),
    [
        (broken("small"), True),
        (broken("dense"), True),
        (broken("small", "small"), False),
        (broken("dense", "dense"), False),
        (broken("small", "dense"), False),
        (broken("small", "half-width"), True),
        (broken("half-width", "half-width"), False),
        (broken("warm-up", "warm-up", pair=None, why="thrown away"), True),
        (broken("small", "small", "dense", why="set aside: others took 31 %"), True),
    ],
)
def test_runs_begun_anew_after_they_were_broken_off_leave_no_claim(
    broken_off: tuple[BrokenOff, ...], stands: bool
) -> None:
    claim = assess(replace(comparison(DENSE, HALF), broken_off=broken_off)).verdict
    assert claim.standing is (Standing.SAVING_MEASURED if stands else Standing.RUNS_BROKEN_OFF)
    if not stands:
        assert "seed 2 (at least 20.0 s, 30.0 J)" in claim.reasons[0].detail


@pytest.mark.parametrize(("saved", "stands"), [(0.1, False), (0.5, True), (-0.1, False), (-1.0, True)])
def test_a_change_that_long_runs_might_reverse_is_not_claimed(saved: float, stands: bool) -> None:
    claim = assess(comparison(DENSE, [joules * (1 - saved) for joules in DENSE])).verdict
    assert claim.standing.is_refusal is not stands
    if not stands:
        (reason,) = claim.reasons
        share = 11 if saved > 0 else 10
        assert f"makes up 39 %, and runs twice as long, {share} % of all, would reverse this" in reason.detail


def test_a_run_of_which_nothing_is_known_is_named_and_reported_and_is_not_zero() -> None:
    lost = BrokenOff(arm="small", seed=2, pair=2, position=9, windows=())
    whole = comparison(DENSE, HALF)
    found = assess(replace(whole, broken_off=(lost,)))
    assert found.quality.lost_joules is None
    assert found.quality.set_aside == ("'small', seed 2: broken off (what it took is not known)",)
    assert any("nothing was recorded of 1 but the beginning" in each for each in found.may_not_claim)
    assert found.verdict == assess(whole).verdict
    warm_up = replace(lost, pair=None, why="thrown away")
    for others in ((), (warm_up,), (replace(lost, windows=(window(30.0),)),)):
        assert not any("given up" in each for each in assess(replace(whole, broken_off=others)).may_not_claim)


def test_carbon_is_reported_only_where_a_grid_was_chosen() -> None:
    whole = comparison(DENSE, HALF)
    assert assess(whole).runs[0].grams_co2 is None
    assert any("CO₂" in sentence for sentence in assess(whole).may_not_claim)
    grid = Grid(grams_per_kwh=360.0, country="made up", year=2024, source="a test")
    found = assess(replace(whole, choices=Choices(grid=grid)))
    assert found.runs[0].grams_co2 == pytest.approx(100.0 / 3.6e6 * 360)
    assert not any("CO₂" in sentence for sentence in found.may_not_claim)


def test_steps_of_the_attribution_add_up_in_logarithms() -> None:
    arms = ("dense", "dense-stopped", "ticket")
    runs = [
        run(arm, pair, joules * (1 + 0.01 * pair))
        for pair in range(6)
        for arm, joules in zip(arms, (100.0, 70.0, 40.0), strict=True)
    ]
    found = assess(ComparisonRecord(design=design(*arms), runs=tuple(runs), pairs_asked=6))
    kept = {
        (step.arm, step.baseline): 1 - step.change.saving_share for step in found.attribution if step.change
    }
    assert kept["dense-stopped", "dense"] == pytest.approx(0.7)
    assert kept["ticket", "dense-stopped"] * kept["dense-stopped", "dense"] == pytest.approx(
        kept["ticket", "dense"]
    )


def test_a_simulated_meter_never_makes_a_claim() -> None:
    found = comparison(DENSE, HALF)
    simulated = tuple(
        replace(each, windows=tuple(replace(w, classes={"cpu": EnergyClass.SIMULATED}) for w in each.windows))
        for each in found.runs
    )
    assessed = assess(replace(found, runs=simulated))
    assert assessed.verdict.standing is Standing.SAVING_SIMULATED
    assert assessed.may_claim == ()
    assert not assessed.verdict.standing.is_saving


def test_the_ledger_names_every_phase_of_every_arm() -> None:
    whole = comparison(DENSE, HALF)
    runs = tuple(
        replace(each, windows=(*each.windows, window(10.0, phase="watch"))) if each.arm == "small" else each
        for each in whole.runs
    )
    ledger = {(line.arm, line.phase): line for line in assess(replace(whole, runs=runs)).ledger}
    assert set(ledger) == {("dense", "train"), ("small", "train"), ("small", "watch")}
    assert ledger["small", "watch"].joules == pytest.approx(10.0)
    assert ledger["dense", "train"].joules == pytest.approx(sum(DENSE) / 6)


def test_a_claim_about_another_task_speaks_of_its_own_quality() -> None:
    lost = comparison(DENSE, HALF, drop=0.02)
    text = '[task]\nloss = "mse"\n'
    found = assess(replace(lost, design=design(recipe_text=text)))
    assert found.verdict.standing is Standing.ACCURACY_NOT_PRESERVED
    assert "R² is not shown to be preserved" in found.verdict.statement
    assert [reason.detail.startswith("test R² changed by −2.00") for reason in found.verdict.reasons] == [
        True
    ]
    assert found.accuracies[0].difference_share == pytest.approx(-0.02)
    wanted = replace(lost, design=design(recipe_text=text, required_accuracy=0.95))
    assert assess(wanted).verdict.reasons[0].detail.startswith("mean test R² is 0.880 of 'small'")
    odd = assess(replace(lost, design=design(recipe_text="no recipe = ")))
    assert "accuracy is not shown to be preserved" in odd.verdict.statement
