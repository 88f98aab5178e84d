"""Runs of a comparison come in their order, leave a trace as they begin, and count once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tpsprune
from tpsprune.errors import LoopError
from tpsprune.records import BrokenOff, EnergyClass
from tpsprune.runs import ComparisonFolder, read_energy_report

ARMS = ("dense", "ticket")


def at_the_wall(joules: float = 100.0) -> tpsprune.Spent:
    return tpsprune.Spent.of_numbers(joules=joules, seconds=10.0, source="wall")


def metered(kind: str = "none", windows: int = 1) -> tpsprune.Spent:
    with tpsprune.Meter(kind) as meter:  # type: ignore[arg-type]
        for _ in range(windows):
            with meter.window():
                pass
        return meter.take()


def begun(folder: Path, pairs: int = 6) -> tpsprune.Comparison:
    return tpsprune.Comparison(folder, arms=ARMS, pairs=pairs)


def added(record: tpsprune.Comparison, spent: tpsprune.Spent) -> str:
    arm, seed = next(record.due())
    record.add(arm, seed=seed, spent=spent, accuracy=0.9)
    return arm


def all_added(record: tpsprune.Comparison) -> None:
    for arm, seed in record.due():
        spent = at_the_wall((100.0 if arm == "dense" else 60.0) + seed)
        record.add(arm, seed=seed, spent=spent, accuracy=0.9)


def markdown_of(record: tpsprune.Comparison) -> str:
    return next(path for path in record.report() if path.suffix == ".md").read_text()


def test_a_run_counts_once_and_in_its_turn(tmp_path: Path) -> None:
    record = begun(tmp_path)
    arm, seed = next(record.due())
    other = "ticket" if arm == "dense" else "dense"
    with pytest.raises(LoopError, match=rf"'{other}', seed 0, is not due: '{arm}', seed 0, is due"):
        record.add(other, seed=0, spent=at_the_wall(), accuracy=0.9)
    record.add(arm, seed=seed, spent=at_the_wall(), accuracy=0.9)
    with pytest.raises(LoopError, match=rf"'{arm}', seed 0, is in the journal already"):
        record.add(arm, seed=seed, spent=at_the_wall(), accuracy=0.9)
    assert len(record.record.runs) == 1


def test_what_was_due_and_not_added_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match=r"seed 0, was due and has not been added"):
        for _ in begun(tmp_path).due():
            pass


def test_nothing_is_due_once_every_run_is_there(tmp_path: Path) -> None:
    record = begun(tmp_path, pairs=1)
    all_added(record)
    assert list(record.due()) == []
    with pytest.raises(LoopError, match=r"'dense', seed 1, is not due: every run is there"):
        record.add("dense", seed=1, spent=at_the_wall(), accuracy=0.9)


def test_a_run_that_due_did_not_yield_is_refused(tmp_path: Path) -> None:
    arm = next(begun(tmp_path / "other").due())[0]
    record = begun(tmp_path / "mine")
    with pytest.raises(LoopError, match=rf"'{arm}', seed 0, has not begun: due\(\) yields it"):
        record.add(arm, seed=0, spent=at_the_wall(), accuracy=0.9)
    assert record.record.runs == ()
    added(record, at_the_wall())
    other = "ticket" if arm == "dense" else "dense"
    with pytest.raises(LoopError, match=rf"'{other}', seed 0, has not begun"):
        record.add(other, seed=0, spent=at_the_wall(), accuracy=0.9)


def test_a_run_is_in_the_journal_as_begun_before_it_is_made(tmp_path: Path) -> None:
    record = begun(tmp_path)
    arm, _ = next(record.due())
    assert record.record.under_way == f"'{arm}', seed 0, has begun and not ended"
    assert f"Not complete: '{arm}', seed 0" in markdown_of(record)
    record.add(arm, seed=0, spent=at_the_wall(), accuracy=0.9)
    assert record.record.under_way == ""


def test_looking_at_a_comparison_leaves_a_run_under_way_alone(tmp_path: Path) -> None:
    record = begun(tmp_path)
    arm, _ = next(record.due())
    begun(tmp_path).assess()
    record.add(arm, seed=0, spent=at_the_wall(), accuracy=0.9)
    assert record.record.broken_off == ()


def test_runs_given_up_are_in_the_report_at_an_energy_that_is_not_known(tmp_path: Path) -> None:
    arm, _ = next(begun(tmp_path).due())  # and the program ends
    record = begun(tmp_path)
    next(record.due())  # and the loop is left
    assert (under_way := ComparisonFolder(tmp_path).read()[1]) is not None
    assert under_way.position == 1
    all_added(record)
    lost = [BrokenOff(arm=arm, seed=0, pair=0, position=position, windows=()) for position in range(2)]
    assert list(record.record.broken_off) == lost
    assert [run.position for run in record.record.runs] == list(range(2, 14))
    savings = record.assess()
    assert savings.complete
    assert savings.quality.lost_joules is None
    assert savings.quality.set_aside == (f"'{arm}', seed 0: broken off; what it took is not known",) * 2
    text = markdown_of(record)
    assert "nothing was written down of 2 but the beginning" in text
    assert "of runs discarded, set aside or broken off | not known" in text
    assert f"{arm}, seed 0: broken off; what it took is not known" in text
    (row, _) = [line for line in text.splitlines() if f"| {arm}, seed 0 | no: broken off" in line]
    assert row.count("not known") == 3
    assert "0 J" not in row
    report = read_energy_report(tmp_path / "report.json")
    assert [each["joules"] for each in report["not_counted"]] == [None, None]


def test_where_no_run_was_given_up_nothing_is_said_of_it(tmp_path: Path) -> None:
    record = begun(tmp_path)
    all_added(record)
    text = markdown_of(record)
    assert "given up" not in text
    assert "of runs discarded, set aside or broken off | none" in text


ONCE: dict[str, Callable[[], tpsprune.Spent]] = {
    "figures of the user's own": at_the_wall,
    "a meter": metered,
    "a simulated meter": lambda: metered("fake", 2),
}


@pytest.mark.parametrize("made", ONCE.values(), ids=ONCE)
def test_what_was_spent_is_not_handed_in_twice(made: Callable[[], tpsprune.Spent], tmp_path: Path) -> None:
    record, spent = begun(tmp_path), made()
    arm = added(record, spent)
    with pytest.raises(LoopError, match=rf"handed in for '{arm}', seed 0, already; each run is metered anew"):
        added(begun(tmp_path), spent)
    assert len(record.record.runs) == 1


@pytest.mark.parametrize("made", ONCE.values(), ids=ONCE)
def test_what_was_set_aside_is_not_handed_in_again(
    made: Callable[[], tpsprune.Spent], tmp_path: Path
) -> None:
    record, spent = begun(tmp_path), made()
    arm = added(record, spent)
    ComparisonFolder(tmp_path).append("redo", {"pair": 0, "why": "set aside: a fault"})
    with pytest.raises(LoopError, match=rf"handed in for '{arm}', seed 0, already"):
        added(record, spent)


def test_equal_figures_of_two_runs_are_two_runs(tmp_path: Path) -> None:
    record = begun(tmp_path)
    spent = [at_the_wall(), at_the_wall(), metered("fake"), metered("fake")]
    assert spent[0] == spent[1]
    assert spent[2] == spent[3]
    for each in spent:
        added(record, each)
    assert len(record.record.runs) == 4


OLD: dict[str, Callable[[tpsprune.Spent, tpsprune.Spent], tpsprune.Spent]] = {
    "the same windows": lambda old, new: tpsprune.Spent(old.windows, old.method),
    "old ones before new": lambda old, new: tpsprune.Spent((*old.windows, *new.windows), new.method),
    "old ones behind simulated ones": lambda old, new: tpsprune.Spent(
        (*metered("fake").windows, *old.windows), old.method
    ),
}


@pytest.mark.parametrize("mixed", OLD.values(), ids=OLD)
def test_windows_of_a_run_before_are_refused_under_any_receipt(
    mixed: Callable[[tpsprune.Spent, tpsprune.Spent], tpsprune.Spent], tmp_path: Path
) -> None:
    record, old = begun(tmp_path), metered()
    added(record, old)
    with pytest.raises(LoopError, match=r"these windows began at .* each run is metered anew"):
        added(record, mixed(old, metered()))
    assert len(record.record.runs) == 1


def test_windows_of_a_pair_that_was_set_aside_are_refused_under_any_receipt(tmp_path: Path) -> None:
    record, old = begun(tmp_path), metered()
    added(record, old)
    ComparisonFolder(tmp_path).append("redo", {"pair": 0, "why": "set aside: a fault"})
    assert record.record.runs == ()
    with pytest.raises(LoopError, match=r"these windows began at"):
        added(record, tpsprune.Spent(old.windows, old.method))


def test_a_simulated_clock_tells_nothing_even_where_nothing_was_metered(tmp_path: Path) -> None:
    record = begun(tmp_path)
    added(record, metered())
    simulated = metered("fake")
    bare = tuple(replace(window, joules={}, classes={}) for window in simulated.windows)
    assert EnergyClass.SIMULATED in simulated.method.classes.values()
    added(record, replace(simulated, windows=bare))
    assert len(record.record.runs) == 2
