"""Comparison from one's own runs: the ladder of every other comparison, and no way round it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tpsprune
from tpsprune.cli import main
from tpsprune.errors import RunFolderError
from tpsprune.records import Standing
from tpsprune.runs import read_energy_report

ARMS = ("dense", "ticket")


def at_the_wall(joules: float) -> tpsprune.Spent:
    return tpsprune.Spent.of_numbers(joules=joules, seconds=10.0, source="wall")


def filled(
    folder: Path,
    joules: Callable[[str, int], float] = lambda arm, seed: (100.0 if arm == "dense" else 60.0) + seed,
    accuracy: Callable[[str, int], float] = lambda arm, seed: 0.9,
    made: Callable[[float], tpsprune.Spent] = at_the_wall,
    **settings: Any,
) -> tpsprune.Comparison:
    record = tpsprune.Comparison(folder, arms=ARMS, **settings)
    for arm, seed in record.due():
        record.add(arm, seed=seed, spent=made(joules(arm, seed)), accuracy=accuracy(arm, seed))
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
            {"made": lambda j: tpsprune.Spent.of_numbers(joules=j, seconds=10.0, source="constant")},
            Standing.MODEL_SENSITIVE,
        ),
    ],
)
def test_what_the_runs_do_not_bear_out_is_refused(
    changes: dict[str, Any], standing: Standing, tmp_path: Path
) -> None:
    assert filled(tmp_path, **changes).assess().verdict.standing is standing


def metered(arm: str, **fault: str) -> tpsprune.Spent:
    """Meter a run in earnest but for the meter: of the ticket in three windows, of dense in five."""
    with tpsprune.Meter("fake", **fault) as meter:
        for _ in range(5 if arm == "dense" else 3):
            with meter.window("train"):
                pass
        return meter.take()


def test_windows_of_a_meter_go_through_its_invariants(tmp_path: Path) -> None:
    record = tpsprune.Comparison(tmp_path, arms=ARMS)
    for number, (arm, seed) in enumerate(record.due()):
        fault = {"fake_fault": "jump"} if number == 3 else {}
        record.add(arm, seed=seed, spent=metered(arm, **fault), accuracy=0.9)
    assert record.assess().verdict.standing is Standing.INVALID_MEASUREMENT
    (pair,) = record.redo()
    assert pair == 1
    for arm, seed in record.due():
        assert seed == 1
        record.add(arm, seed=seed, spent=metered(arm), accuracy=0.9)
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
    begun.add(arm, seed=seed, spent=at_the_wall(100.0), accuracy=0.9)
    again = tpsprune.Comparison(tmp_path, arms=ARMS, first_seed=5)
    assert next(again.due()) == ("ticket" if arm == "dense" else "dense", 5)


def test_looking_and_asking_for_more_is_counted_as_a_second_look(tmp_path: Path) -> None:
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
        ({"arms": ("dense", "small")}, r"arms is \['dense', 'ticket'\] there"),
    ],
)
def test_the_rules_do_not_change_once_it_is_begun(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tpsprune.Comparison(tmp_path, arms=ARMS, settings={"epochs": 2})
    with pytest.raises(RunFolderError, match=words + r".*write elsewhere with another folder"):
        tpsprune.Comparison(tmp_path, **({"arms": ARMS, "settings": {"epochs": 2}} | changes))


def test_a_run_that_left_no_model_stays_in_the_bill_and_refuses_the_claim(tmp_path: Path) -> None:
    record = tpsprune.Comparison(tmp_path, arms=ARMS)
    for arm, seed in record.due():
        lost = {"failure": "the loss was not finite"} if (arm, seed) == ("ticket", 2) else {"accuracy": 0.9}
        record.add(arm, seed=seed, spent=at_the_wall(100.0 if arm == "dense" else 60.0), **lost)  # type: ignore[arg-type]
    verdict = record.assess().verdict
    assert verdict.standing.is_refusal
    assert any("the loss was not finite" in reason.detail for reason in verdict.reasons)


def test_the_report_is_that_of_every_comparison_and_can_be_made_again(tmp_path: Path) -> None:
    settings = {"epochs": 3, "model": "mine"}
    written = filled(tmp_path, name="my-runs", settings=settings).report()
    assert written[0] == tmp_path / "report.html"
    page = written[0].read_text()
    assert "numbers of the user" in page
    assert "&quot;model&quot;: &quot;mine&quot;" in page or '"model": "mine"' in page
    report = read_energy_report(tmp_path / "report.json")
    assert report["verdict"]["standing"] == "SAVING_MEASURED"
    before = {path: path.read_bytes() for path in written}
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in written} == before


def test_arms_named_like_those_after_a_ticket_run_without_one(tmp_path: Path) -> None:
    record = tpsprune.Comparison(tmp_path, arms=("dense", "random-ticket"), pairs=1)
    for arm, seed in record.due():
        record.add(arm, seed=seed, spent=at_the_wall(1.0), accuracy=0.9)
    assert {run.arm for run in record.record.runs} == {"dense", "random-ticket"}
