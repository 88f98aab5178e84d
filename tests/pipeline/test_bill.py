"""The bill ends what goes on behind its meter; a run replayed has the bill that was recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tpsprune import energy, pipeline
from tpsprune.energy import AbstractMeter, build
from tpsprune.energy.codecarbon_meter import CodecarbonMeter
from tpsprune.errors import DataError, MeterError
from tpsprune.pipeline.bill import Bill
from tpsprune.recipe import Recipe
from tpsprune.recipe.train import Energy
from tpsprune.records import Finished, Outcome, Window
from tpsprune.runs import RunFolder


def test_a_dozen_runs_in_one_process_leave_no_thread_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = threading.active_count()
    for _ in range(12):
        meter = CodecarbonMeter()
        with Bill(meter) as bill:
            bill.switch("train")
            bill.switch("evaluate")
            bill.close()
            # As a timer does that fires while it is cancelled: nobody would stop the next one.
            meter._tracker._scheduler_monitor_power._run()
            assert threading.active_count() > before
        assert [window.valid for window in bill.windows] == [True, True]
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_tracker_that_does_not_stop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = CodecarbonMeter()
    with monkeypatch.context() as patch:
        patch.setattr(meter._tracker, "_prepare_emissions_data", lambda: 1 / 0)
        with pytest.raises(MeterError, match="codecarbon did not stop"):
            meter.shut()


@pytest.mark.parametrize("meter", ["codecarbon", "fake", "none"])
def test_a_bill_shuts_its_meter_also_when_the_run_breaks_off(meter: str) -> None:
    metered: AbstractMeter = build(Energy(meter=meter), attempt=0)  # type: ignore[arg-type]
    bill = Bill(metered)

    def fail() -> None:
        with bill:
            bill.switch("train")
            with pytest.raises(MeterError, match="cannot shut a meter while a window of 'train' is open"):
                metered.shut()
            raise DataError("the disk is gone")

    with pytest.raises(DataError, match="the disk is gone"):
        fail()
    assert [window.phase for window in bill.windows] == ["train"]
    metered.shut()
    with pytest.raises(
        MeterError, match="cannot open a window of 'train': this meter is shut; build another"
    ):
        bill.switch("train")


def test_a_run_replayed_has_the_bill_that_was_recorded(
    trained: RunFolder, small: Callable[..., Recipe], tmp_path: Path
) -> None:
    read = small("energy.meter=replay", f"energy.replay={str(trained.energy.path)!r}")
    outcomes = [_outcome(read, tmp_path / name) for name in ("once", "again")]
    recorded = trained.energy.parsed(Window.from_json)
    for outcome in outcomes:
        assert outcome.method.meter == "replay"
        assert outcome.energy == energy.by_phase(recorded)
        journal = RunFolder(Path(outcome.folder)).energy
        assert journal.path.read_bytes() == trained.energy.path.read_bytes()


def _outcome(read: Recipe, out: Path) -> Outcome:
    *_, last = pipeline.train(read, out, device="cpu")
    assert isinstance(last, Finished)
    return last.outcome
