"""Meter, EnergyUse and Ledger: windows as the meter closed them, the user's numbers, phases of a run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import tpsprune
from tpsprune.energy import AbstractMeter, build
from tpsprune.energy.codecarbon_meter import CodecarbonMeter
from tpsprune.errors import DataError, LoopError, MeterError, RecipeError
from tpsprune.loop.meter import Ledger, Meter
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass


def test_a_window_has_joules_and_seconds_each_with_its_class() -> None:
    with tpsprune.Meter("fake", fake_cpu_watts=4.0, fake_ram_watts=1.0, fake_window_seconds=2.0) as meter:
        with meter.window("train") as span:
            pass
        assert (span.joules, span.seconds) == (10.0, 2.0)
        assert span.components == {"cpu": (8.0, EnergyClass.SIMULATED), "ram": (2.0, EnergyClass.SIMULATED)}
        assert span.window.phase == "train"


def test_what_was_spent_is_taken_once_and_with_its_method() -> None:
    with tpsprune.Meter("fake") as meter:
        for phase in ("train", "evaluate", "train"):
            with meter.window(phase):
                pass
        energy_use = meter.take()
        assert [window.phase for window in energy_use.windows] == ["train", "evaluate", "train"]
        assert (energy_use.joules, energy_use.seconds, energy_use.energy_class) == (45.0, 3.0, "simulated")
        assert energy_use.method == meter.method
        with pytest.raises(LoopError, match=r"no window was closed since the last take"):
            meter.take()
        with meter.window(), pytest.raises(LoopError, match=r"a window is still open"):
            meter.take()
        assert meter.take().joules == 15.0


def test_of_the_processes_of_a_machine_the_first_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for local in (None, "0", "1"):
        if local is not None:
            monkeypatch.setenv("LOCAL_RANK", local)
        with tpsprune.Meter("fake") as meter:
            with meter.window() as span:
                pass
            found.append((span.joules, span.window.valid, meter.take().joules, meter.method))
    alone, first, second = found
    assert alone == first
    assert second[:3] == (None, True, None)
    said = "all energy: the process of LOCAL_RANK 0 on this machine meters it"
    assert (second[3].meter, second[3].excluded) == ("none", (said,))


def test_what_a_block_took_that_raised_is_on_the_bill() -> None:
    with tpsprune.Meter("fake") as meter:
        with pytest.raises(ZeroDivisionError), meter.window():
            _ = 1 / 0
        assert meter.take().joules == 15.0


def test_windows_do_not_nest_and_the_open_one_goes_on() -> None:
    with tpsprune.Meter("fake") as meter:
        with (
            meter.window("outer"),
            pytest.raises(MeterError, match=r"'inner' while one of 'outer' is open"),
            meter.window("inner"),
        ):
            pass
        assert len(meter.take().windows) == 1


def test_seconds_alone_are_taken_where_nothing_is_metered() -> None:
    with tpsprune.Meter("none") as meter, meter.window() as span:
        sum(range(1000))
    assert span.joules is None
    assert span.seconds > 0
    assert meter.take().joules is None


def test_the_machine_is_metered_in_earnest() -> None:
    with tpsprune.Meter() as meter, meter.window("train") as span:
        sum(range(3_000_000))
    assert span.window.valid, span.window.fault
    assert span.joules is not None
    assert span.joules > 0
    assert set(span.components) >= {"cpu", "ram"}
    assert all(kind is not EnergyClass.SIMULATED for _, kind in span.components.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"meter": "codecarbn"}, r"Meter: meter: must be .*did you mean 'codecarbon'\?"),
        ({"pue": 0.5}, r"Meter: pue: must be greater than or equal to 1 \(found 0\.5\)"),
        ({"tracing": "machine"}, r"Meter: tracing: unknown key \(did you mean 'tracking'\?\)"),
    ],
)
def test_a_setting_that_cannot_be_is_reported_with_what_would_do(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        tpsprune.Meter(**settings)


def test_numbers_of_the_users_own_have_the_class_of_their_source() -> None:
    energy_use = tpsprune.EnergyUse.of_numbers(joules=5.0, seconds=2.0, source="constant")
    assert (energy_use.joules, energy_use.seconds, energy_use.energy_class) == (5.0, 2.0, "constant")
    assert energy_use.method.meter == "numbers of the user"


def test_numbers_that_are_none_are_reported_all_at_once() -> None:
    with pytest.raises(
        RecipeError, match=r"(?s)3 faults.*joules: .*found nan.*seconds: .*found 0.*source: .*wall, "
    ):
        tpsprune.EnergyUse.of_numbers(joules=float("nan"), seconds=0, source="guess")  # type: ignore[arg-type]


def test_several_runs_in_one_process_leave_no_thread_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = threading.active_count()
    for _ in range(4):
        meter = CodecarbonMeter()
        with Ledger(Meter(meter)) as ledger:
            ledger.switch("train")
            ledger.switch("evaluate")
            ledger.close()
            # As a timer does that fires while it is cancelled: nobody would stop the next one.
            meter._tracker._scheduler_monitor_power._run()
            assert threading.active_count() > before
        assert [window.valid for window in ledger.windows] == [True, True]
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_tracker_that_does_not_stop_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = CodecarbonMeter()
    with monkeypatch.context() as patch:
        patch.setattr(meter._tracker, "_prepare_emissions_data", lambda: 1 / 0)
        with pytest.raises(MeterError, match="codecarbon did not stop"):
            meter.shut()


@pytest.mark.parametrize("meter", ["codecarbon", "fake", "none"])
def test_a_bill_shuts_its_meter_also_when_the_run_breaks_off(meter: str) -> None:
    metered: AbstractMeter = build(Energy(meter=meter), attempt=0)  # type: ignore[arg-type]
    ledger = Ledger(Meter(metered))

    def fail() -> None:
        with ledger:
            ledger.switch("train")
            with pytest.raises(MeterError, match="cannot shut a meter while a window of 'train' is open"):
                metered.shut()
            raise DataError("the disk is gone")

    with pytest.raises(DataError, match="the disk is gone"):
        fail()
    assert [window.phase for window in ledger.windows] == ["train"]
    metered.shut()
    with pytest.raises(
        MeterError, match="cannot open a window of 'train': this meter is shut; build another"
    ):
        ledger.switch("train")
