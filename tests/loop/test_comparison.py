"""Comparison from one's own runs: the ladder of every other comparison, runs in their order, each once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tpsprune
from tests.loop.conftest import ARMS, at_the_wall
from tpsprune.cli import main
from tpsprune.errors import LoopError, RunFolderError
from tpsprune.records import BrokenOff, EnergyClass, Standing
from tpsprune.runs import ComparisonFolder, read_energy_report


def filled(
    folder: Path,
    joules: Callable[[str, int], float] = lambda arm, seed: (100.0 if arm == "dense" else 60.0) + seed,
    accuracy: Callable[[str, int], float] = lambda arm, seed: 0.9,
    made: Callable[[float], tpsprune.EnergyUse] = at_the_wall,
    **settings: Any,
) -> tpsprune.Comparison:
    record = tpsprune.Comparison(folder, arms=ARMS, **settings)
    for arm, seed in record.due():
        record.add(arm, seed=seed, energy_use=made(joules(arm, seed)), accuracy=accuracy(arm, seed))
    return record


def test_a_saving_in_every_pair_is_claimed(tmp_path: Path) -> None:
    verdict = filled(tmp_path).assess().verdict
    assert verdict.standing is Standing.SAVING_MEASURED
    assert verdict.change is not None
    assert verdict.change.saving_share == pytest.approx(0.39, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        (
            {"joules": lambda arm, seed: 100.0 + (seed * 37 + (arm == "dense") * 11) % 7},
            Standing.WITHIN_NOISE,
        ),
        ({"accuracy": lambda arm, seed: 0.9 if arm == "dense" else 0.85}, Standing.ACCURACY_NOT_PRESERVED),
        ({"required_accuracy": 0.95}, Standing.ACCURACY_NOT_PRESERVED),
        ({"pairs": 4}, Standing.INSUFFICIENT_RUNS),
        (
            {"made": lambda j: tpsprune.EnergyUse.of_numbers(joules=j, seconds=10.0, source="constant")},
            Standing.MODEL_SENSITIVE,
        ),
    ],
)
def test_what_the_runs_do_not_bear_out_is_refused(
    changes: dict[str, Any], standing: Standing, tmp_path: Path
) -> None:
    assert filled(tmp_path, **changes).assess().verdict.standing is standing


def metered(kind: str = "none", windows: int = 1, **fault: str) -> tpsprune.EnergyUse:
    with tpsprune.Meter(kind, **fault) as meter:  # type: ignore[arg-type]
        for _ in range(windows):
            with meter.window():
                pass
        return meter.take()


def test_windows_of_a_meter_go_through_its_invariants(tmp_path: Path) -> None:
    record = tpsprune.Comparison(tmp_path, arms=ARMS)
    for number, (arm, seed) in enumerate(record.due()):
        fault = {"fake_fault": "jump"} if number == 3 else {}
        record.add(
            arm, seed=seed, energy_use=metered("fake", 5 if arm == "dense" else 3, **fault), accuracy=0.9
        )
    assert record.assess().verdict.standing is Standing.INVALID_MEASUREMENT
    (pair,) = record.redo()
    assert pair == 1
    for arm, seed in record.due():
        assert seed == 1
        record.add(arm, seed=seed, energy_use=metered("fake", 5 if arm == "dense" else 3), accuracy=0.9)
    savings = record.assess()
    assert savings.verdict.standing is Standing.SAVING_SIMULATED
    assert len(savings.quality.set_aside) == 2


def test_runs_come_by_turns_and_the_order_is_turned_round(tmp_path: Path) -> None:
    record = filled(tmp_path, pairs=2)
    order = [(run.arm, run.pair) for run in sorted(record.record.runs, key=lambda run: run.position)]
    first, second = [arm for arm, pair in order if pair == 0], [arm for arm, pair in order if pair == 1]
    assert [pair for _, pair in order] == [0, 0, 1, 1]
    assert first == second[::-1]


def test_a_comparison_that_was_broken_off_goes_on_with_the_next_run(tmp_path: Path) -> None:
    begun = tpsprune.Comparison(tmp_path, arms=ARMS, first_seed=5)
    arm, seed = next(begun.due())
    begun.add(arm, seed=seed, energy_use=at_the_wall(100.0), accuracy=0.9)
    again = tpsprune.Comparison(tmp_path, arms=ARMS, first_seed=5)
    assert next(again.due()) == ("small" if arm == "dense" else "dense", 5)


def test_reading_and_adding_more_is_counted_as_a_second_look(tmp_path: Path) -> None:
    filled(tmp_path, pairs=6)
    more = filled(tmp_path, pairs=8)
    assert more.record.looks == 2
    assert any("tested more strictly" in words for words in more.assess().may_not_claim)
    with pytest.raises(RunFolderError, match=r"8 pairs were fixed, and fewer \(pairs = 6\)"):
        tpsprune.Comparison(tmp_path, arms=ARMS, pairs=6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tolerance": 0.05}, r"tolerance_share is 0\.01 there and 0\.05 here"),
        ({"settings": {"epochs": 3}}, r"the recipe is"),
        ({"arms": ("dense", "other")}, r"arms is \['dense', 'small'\] there"),
    ],
)
def test_the_rules_do_not_change_once_it_is_begun(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tpsprune.Comparison(tmp_path, arms=ARMS, settings={"epochs": 2})
    with pytest.raises(RunFolderError, match=words + r".*write elsewhere with another folder"):
        tpsprune.Comparison(tmp_path, **({"arms": ARMS, "settings": {"epochs": 2}} | changes))


def test_a_run_that_left_no_model_is_counted_and_refuses_the_claim(tmp_path: Path) -> None:
    record = tpsprune.Comparison(tmp_path, arms=ARMS)
    for arm, seed in record.due():
        lost = {"failure": "the loss was not finite"} if (arm, seed) == ("small", 2) else {"accuracy": 0.9}
        record.add(arm, seed=seed, energy_use=at_the_wall(100.0 if arm == "dense" else 60.0), **lost)  # type: ignore[arg-type]
    verdict = record.assess().verdict
    assert verdict.standing.is_refusal
    assert any("the loss was not finite" in reason.detail for reason in verdict.reasons)


def test_the_report_is_that_of_every_comparison_and_can_be_made_again(tmp_path: Path) -> None:
    settings = {"epochs": 3, "model": "mine"}
    written = filled(tmp_path, name="my-runs", settings=settings).report()
    assert written[0] == tmp_path / "report.html"
    page = written[0].read_text()
    assert "numbers of the user" in page
    assert "&#34;model&#34;: &#34;mine&#34;" in page
    report = read_energy_report(tmp_path / "report.json")
    assert report["verdict"]["standing"] == "SAVING_MEASURED"
    before = {path: path.read_bytes() for path in written}
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in written} == before


def test_arms_named_like_those_after_a_ticket_run_without_one(tmp_path: Path) -> None:
    record = tpsprune.Comparison(tmp_path, arms=("dense", "random-ticket"), pairs=1)
    for arm, seed in record.due():
        record.add(arm, seed=seed, energy_use=at_the_wall(1.0), accuracy=0.9)
    assert {run.arm for run in record.record.runs} == {"dense", "random-ticket"}


def begun(folder: Path, pairs: int = 6) -> tpsprune.Comparison:
    return tpsprune.Comparison(folder, arms=ARMS, pairs=pairs)


def added(record: tpsprune.Comparison, energy_use: tpsprune.EnergyUse) -> str:
    arm, seed = next(record.due())
    record.add(arm, seed=seed, energy_use=energy_use, accuracy=0.9)
    return arm


def all_added(record: tpsprune.Comparison) -> None:
    for arm, seed in record.due():
        energy_use = at_the_wall((100.0 if arm == "dense" else 60.0) + seed)
        record.add(arm, seed=seed, energy_use=energy_use, accuracy=0.9)


def markdown_of(record: tpsprune.Comparison) -> str:
    return next(path for path in record.report() if path.suffix == ".md").read_text()


def test_a_run_counts_once_and_in_its_turn(tmp_path: Path) -> None:
    record = begun(tmp_path)
    arm, seed = next(record.due())
    other = "small" if arm == "dense" else "dense"
    with pytest.raises(LoopError, match=rf"'{other}', seed 0, is not due: '{arm}', seed 0, is due"):
        record.add(other, seed=0, energy_use=at_the_wall(), accuracy=0.9)
    record.add(arm, seed=seed, energy_use=at_the_wall(), accuracy=0.9)
    with pytest.raises(LoopError, match=rf"'{arm}', seed 0, is in the journal already"):
        record.add(arm, seed=seed, energy_use=at_the_wall(), accuracy=0.9)
    assert len(record.record.runs) == 1


def test_what_was_due_and_not_added_is_reported(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match=r"seed 0, was due and has not been added"):
        for _ in begun(tmp_path).due():
            pass


def test_nothing_is_due_once_every_run_is_there(tmp_path: Path) -> None:
    record = begun(tmp_path, pairs=1)
    all_added(record)
    assert list(record.due()) == []
    with pytest.raises(LoopError, match=r"'dense', seed 1, is not due: every run is there"):
        record.add("dense", seed=1, energy_use=at_the_wall(), accuracy=0.9)


def test_a_run_that_due_did_not_yield_is_refused(tmp_path: Path) -> None:
    arm = next(begun(tmp_path / "other").due())[0]
    record = begun(tmp_path / "mine")
    with pytest.raises(LoopError, match=rf"'{arm}', seed 0, has not begun: due\(\) yields it"):
        record.add(arm, seed=0, energy_use=at_the_wall(), accuracy=0.9)
    assert record.record.runs == ()
    added(record, at_the_wall())
    other = "small" if arm == "dense" else "dense"
    with pytest.raises(LoopError, match=rf"'{other}', seed 0, has not begun"):
        record.add(other, seed=0, energy_use=at_the_wall(), accuracy=0.9)


def test_a_run_is_in_the_journal_as_begun_before_it_is_made(tmp_path: Path) -> None:
    record = begun(tmp_path)
    arm, _ = next(record.due())
    assert record.record.under_way == f"'{arm}', seed 0, has begun and not ended"
    assert f"Not complete: '{arm}', seed 0" in markdown_of(record)
    record.add(arm, seed=0, energy_use=at_the_wall(), accuracy=0.9)
    assert record.record.under_way == ""


def test_looking_at_a_comparison_leaves_a_run_under_way_alone(tmp_path: Path) -> None:
    record = begun(tmp_path)
    arm, _ = next(record.due())
    begun(tmp_path).assess()
    record.add(arm, seed=0, energy_use=at_the_wall(), accuracy=0.9)
    assert record.record.broken_off == ()


def test_runs_given_up_are_in_the_report_at_an_unknown_energy(tmp_path: Path) -> None:
    arm, _ = next(begun(tmp_path).due())  # and the program ends
    record = begun(tmp_path)
    next(record.due())  # and the loop is left
    assert [each.position for each in ComparisonFolder(tmp_path).read()[1]] == [1]
    all_added(record)
    lost = [BrokenOff(arm=arm, seed=0, pair=0, position=position, windows=()) for position in range(2)]
    assert list(record.record.broken_off) == lost
    assert [run.position for run in record.record.runs] == list(range(2, 14))
    savings = record.assess()
    assert savings.complete
    assert savings.quality.lost_joules is None
    assert savings.quality.set_aside == (f"'{arm}', seed 0: broken off (what it took is not known)",) * 2
    text = markdown_of(record)
    assert "nothing was recorded of 2 but the beginning" in text
    assert "of runs discarded, set aside or broken off | not known" in text
    assert f"{arm}, seed 0: broken off; what it took is not known" in text
    (row, _) = [line for line in text.splitlines() if f"| {arm}, seed 0 | no: broken off" in line]
    assert row.count("not known") == 3
    assert "0 J" not in row
    report = read_energy_report(tmp_path / "report.json")
    assert [each["joules"] for each in report["not_counted"]] == [None, None]


ENDS = {
    "a kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "an interrupt": "os.kill(os.getpid(), signal.SIGINT)",
    "an exception": "raise RuntimeError('out of memory')",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_begun_anew_however_it_ended_leaves_no_claim(end: str, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, tpsprune\n"
        "for arm, seed in tpsprune.Comparison(sys.argv[1], arms=('dense', 'small')).due():\n"
        f"    {ENDS[end]}\n"
    )
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, check=False)
        assert ended.returncode
    record = begun(tmp_path)
    all_added(record)
    savings = record.assess()
    assert savings.complete
    assert savings.verdict.standing is Standing.RUNS_BROKEN_OFF
    assert "2 runs were begun and broken off" in savings.verdict.reasons[0].detail
    assert "Too many runs were broken off" in markdown_of(record)
    assert "(what it took is not known)" in savings.verdict.reasons[0].detail
    report = read_energy_report(tmp_path / "report.json")
    assert [(each["why"], each["seconds"]) for each in report["not_counted"]] == [("broken off", None)] * 2


def test_where_no_run_was_given_up_the_report_is_silent(tmp_path: Path) -> None:
    record = begun(tmp_path)
    all_added(record)
    text = markdown_of(record)
    assert "given up" not in text
    assert "of runs discarded, set aside or broken off | none" in text


ONCE: dict[str, Callable[[], tpsprune.EnergyUse]] = {
    "figures of the user's own": at_the_wall,
    "a meter": metered,
    "a simulated meter": lambda: metered("fake", 2),
}


@pytest.mark.parametrize("made", ONCE.values(), ids=ONCE)
def test_what_was_spent_is_not_added_twice(made: Callable[[], tpsprune.EnergyUse], tmp_path: Path) -> None:
    record, energy_use = begun(tmp_path), made()
    arm = added(record, energy_use)
    with pytest.raises(
        LoopError, match=rf"added for '{arm}', seed 0, already; each run is metered separately"
    ):
        added(begun(tmp_path), energy_use)
    assert len(record.record.runs) == 1


@pytest.mark.parametrize("made", ONCE.values(), ids=ONCE)
def test_what_was_set_aside_is_not_added_again(
    made: Callable[[], tpsprune.EnergyUse], tmp_path: Path
) -> None:
    record, energy_use = begun(tmp_path), made()
    arm = added(record, energy_use)
    ComparisonFolder(tmp_path).append("redo", {"pair": 0, "why": "set aside: a fault"})
    with pytest.raises(LoopError, match=rf"added for '{arm}', seed 0, already"):
        added(record, energy_use)


def test_equal_figures_of_two_runs_are_two_runs(tmp_path: Path) -> None:
    record = begun(tmp_path)
    energy_use = [at_the_wall(), at_the_wall(), metered("fake"), metered("fake")]
    assert energy_use[0] == energy_use[1]
    assert energy_use[2] == energy_use[3]
    for each in energy_use:
        added(record, each)
    assert len(record.record.runs) == 4


OLD: dict[str, Callable[[tpsprune.EnergyUse, tpsprune.EnergyUse], tpsprune.EnergyUse]] = {
    "the same windows": lambda old, new: tpsprune.EnergyUse(old.windows, old.method),
    "old ones before new": lambda old, new: tpsprune.EnergyUse((*old.windows, *new.windows), new.method),
    "old ones behind simulated ones": lambda old, new: tpsprune.EnergyUse(
        (*metered("fake").windows, *old.windows), old.method
    ),
}


@pytest.mark.parametrize("mixed", OLD.values(), ids=OLD)
def test_windows_of_a_run_before_are_refused_under_any_receipt(
    mixed: Callable[[tpsprune.EnergyUse, tpsprune.EnergyUse], tpsprune.EnergyUse], tmp_path: Path
) -> None:
    record, old = begun(tmp_path), metered()
    added(record, old)
    with pytest.raises(LoopError, match=r"these windows began at .* each run is metered separately"):
        added(record, mixed(old, metered()))
    assert len(record.record.runs) == 1


def test_windows_of_a_pair_that_was_set_aside_are_refused_under_any_receipt(tmp_path: Path) -> None:
    record, old = begun(tmp_path), metered()
    added(record, old)
    ComparisonFolder(tmp_path).append("redo", {"pair": 0, "why": "set aside: a fault"})
    assert record.record.runs == ()
    with pytest.raises(LoopError, match=r"these windows began at"):
        added(record, tpsprune.EnergyUse(old.windows, old.method))


def test_a_simulated_clock_has_no_order_even_where_nothing_was_metered(tmp_path: Path) -> None:
    record = begun(tmp_path)
    added(record, metered())
    simulated = metered("fake")
    unmetered = tuple(replace(window, joules={}, classes={}) for window in simulated.windows)
    assert EnergyClass.SIMULATED in simulated.method.classes.values()
    added(record, replace(simulated, windows=unmetered))
    assert len(record.record.runs) == 2
