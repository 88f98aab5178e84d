"""Codecarbon itself: on this machine as it is, and on one with counters put together for the purpose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tpsprune.energy import AbstractMeter, build
from tpsprune.energy.codecarbon_meter import CodecarbonMeter
from tpsprune.errors import MeterError
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass


@pytest.fixture(scope="module")
def meter() -> Iterator[AbstractMeter]:
    meter = build(Energy(), attempt=2)
    yield meter
    assert not meter.is_open


def spin(seconds: float) -> None:
    """Work for so many seconds of processor time, whatever else the machine does."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_ram_joules_are_ram_watts_times_seconds(meter: AbstractMeter) -> None:
    if meter.method().classes["ram"] is not EnergyClass.CONSTANT:
        pytest.skip("RAM is measured on this machine")
    with meter.window("train") as span:
        spin(0.3)
    window = span.window
    assert window.valid, window.fault
    watts = float(meter.method().details["ram_watts"])
    # Starting and stopping the tracker is charged to the window too: a few ms, more on a busy machine.
    assert window.joules["ram"] / watts == pytest.approx(window.seconds, rel=0.02, abs=0.05)
    assert 0.3 <= window.cpu_seconds <= window.seconds + 0.05
    assert (window.attempt, window.index) == (2, 0)


def test_every_figure_says_how_it_was_obtained(meter: AbstractMeter) -> None:
    method = meter.method()
    with meter.window("evaluate") as span:
        spin(0.02)
    assert span.window.classes == method.classes
    assert set(span.window.joules) == set(method.classes)
    assert method.details["codecarbon"].startswith("3.")
    assert {"disk", "embodied"} <= set(method.excluded)
    if method.details["cpu_mode"] == "cpu_load":
        assert method.classes["cpu"] is EnergyClass.MODELLED
        assert float(method.details["cpu_rated_watts"]) > 0


def test_a_window_left_by_an_exception_is_closed(meter: AbstractMeter) -> None:
    span = meter.window("train")

    def fail() -> None:
        with span:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert span.window.valid, span.window.fault
    with meter.window("train") as after:
        pass
    assert after.window.index == span.window.index + 1


def test_pue_multiplies_what_is_reported(meter: AbstractMeter) -> None:
    doubled = build(Energy(pue=2.0), attempt=0)
    with meter.window("plain") as plain:
        spin(0.1)
    with doubled.window("doubled") as twice:
        spin(0.1)
    assert twice.window.valid, twice.window.fault
    ram = [span.window.joules["ram"] / span.window.seconds for span in (plain, twice)]
    assert ram[1] / ram[0] == pytest.approx(2.0, rel=0.3)


def test_nothing_is_written_and_nothing_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with build(Energy(), attempt=0).window("train"):
        pass
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("variable", ["CODECARBON_PUE", "codecarbon_gpu_ids"])
def test_settings_in_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "3")
    with pytest.raises(MeterError, match=rf"`unset {variable}`, or set energy.meter = 'none'"):
        build(Energy(), attempt=0)


@pytest.mark.parametrize("where", ["home", "here"])
def test_settings_in_a_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    file = tmp_path / where / ".codecarbon.config"
    file.write_text("[codecarbon]\npue = 3\n")
    with pytest.raises(MeterError, match=f"move {file} away"):
        build(Energy(), attempt=0)
    file.unlink()
    assert build(Energy(), attempt=0).method().details["pue"] == "1"


def test_settings_outside_do_not_matter_to_the_other_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODECARBON_PUE", "3")
    assert build(Energy(meter="fake"), attempt=0).method().details["pue"] == "1"


def broken_by(change: Any) -> CodecarbonMeter:
    meter = CodecarbonMeter()
    change(meter._tracker)
    return meter


def test_a_tracker_that_loses_a_window_is_an_error() -> None:
    meter = broken_by(lambda tracker: None)
    meter.open("train")
    meter._tracker._tasks.clear()
    with pytest.raises(MeterError, match=r"codecarbon lost a window .* energy.meter = 'none'"):
        meter.close()
    assert not meter.is_open


def test_a_tracker_that_does_not_start_is_an_error() -> None:
    def occupy(tracker: Any) -> None:
        tracker._another_instance_already_running = True

    with pytest.raises(MeterError, match="codecarbon did not start a window"):
        broken_by(occupy).open("train")


def test_a_tracker_half_built_is_an_error() -> None:
    def forget(tracker: Any) -> None:
        del tracker._tasks

    with pytest.raises(MeterError, match=r"codecarbon cannot start a window \(AttributeError"):
        broken_by(forget).open("train")


def test_a_time_base_that_drifted_makes_the_window_invalid() -> None:
    meter = CodecarbonMeter()
    with meter.window("train") as span:
        meter._tracker._last_measured_time -= 0.5
    assert not span.window.valid
    assert "RAM was charged for 0.5" in span.window.fault


def test_energy_that_is_missing_makes_the_window_invalid_and_unknown() -> None:
    meter = CodecarbonMeter()
    stop = meter._tracker.stop_task

    def stop_without_cpu() -> Any:
        task = stop()
        task.cpu_energy = None
        return task

    meter._tracker.stop_task = stop_without_cpu
    with meter.window("train") as span:
        pass
    assert not span.window.valid
    assert span.window.total_joules is None
    assert "energy of cpu, ram is missing" in span.window.fault
