"""The simulated meter, the absent one, and what every meter holds to."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.energy import AbstractMeter, build, by_phase, class_of, total
from tpsprune.errors import MeterError
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass, Window


def fake(**settings: Any) -> AbstractMeter:
    return build(Energy(meter="fake", **settings), attempt=0)


def windows_of(meter: AbstractMeter, phases: list[str]) -> list[Window]:
    windows = []
    for phase in phases:
        with meter.window(phase) as span:
            pass
        windows.append(span.window)
    return windows


PHASES = st.lists(st.sampled_from(["train", "evaluate", "watch", "prune"]), min_size=1, max_size=12)


def test_joules_are_watts_times_seconds_times_pue() -> None:
    meter = fake(fake_cpu_watts=10.0, fake_ram_watts=5.0, fake_window_seconds=2.0, pue=1.5)
    (window,) = windows_of(meter, ["train"])
    assert window.joules == {"cpu": 30.0, "ram": 15.0}
    assert window.total_joules == 45.0
    assert (window.seconds, window.cpu_seconds) == (2.0, 2.0)
    assert window.classes == {"cpu": EnergyClass.SIMULATED, "ram": EnergyClass.SIMULATED}
    assert window.valid


def test_the_same_calls_give_the_same_windows() -> None:
    phases = ["train", "evaluate", "train"]
    assert windows_of(fake(), phases) == windows_of(fake(), phases)
    assert [window.started for window in windows_of(fake(), phases)] == [
        "2000-01-01T00:00:00.000Z",
        "2000-01-01T00:00:01.000Z",
        "2000-01-01T00:00:02.000Z",
    ]


def test_windows_are_numbered_by_phase_and_carry_the_attempt() -> None:
    meter = build(Energy(meter="fake"), attempt=3)
    windows = windows_of(meter, ["train", "evaluate", "train"])
    assert [(window.phase, window.index) for window in windows] == [
        ("train", 0),
        ("evaluate", 0),
        ("train", 1),
    ]
    assert {window.attempt for window in windows} == {3}


@given(phases=PHASES)
def test_the_sum_over_phases_is_the_total(phases: list[str]) -> None:
    windows = windows_of(fake(), phases)
    sums = by_phase(windows)
    assert sum(phase.joules or 0.0 for phase in sums) == pytest.approx(total(windows).joules)
    assert sum(phase.windows for phase in sums) == len(phases)
    assert [phase.phase for phase in sums] == list(dict.fromkeys(phases))
    for phase in sums:
        assert sum(phase.joules_by_component.values()) == pytest.approx(phase.joules)


@given(phases=PHASES, cut=st.integers(0, 12))
def test_energy_is_additive_over_windows(phases: list[str], cut: int) -> None:
    windows = windows_of(fake(), phases)
    parts = total(windows[:cut]), total(windows[cut:])
    assert sum(part.joules or 0.0 for part in parts) == pytest.approx(total(windows).joules)
    assert sum(part.seconds for part in parts) == pytest.approx(total(windows).seconds)


@given(watts=st.floats(0.1, 1e3), phases=PHASES)
def test_twice_the_watts_are_twice_the_joules(watts: float, phases: list[str]) -> None:
    once = total(windows_of(fake(fake_cpu_watts=watts, fake_ram_watts=watts), phases))
    twice = total(windows_of(fake(fake_cpu_watts=2 * watts, fake_ram_watts=2 * watts), phases))
    assert once.joules is not None
    assert twice.joules == pytest.approx(2 * once.joules)
    assert twice.seconds == once.seconds


def test_windows_never_nest() -> None:
    meter = fake()
    meter.open("train")
    with pytest.raises(MeterError, match="'evaluate' while one of 'train' is open"):
        meter.open("evaluate")
    assert meter.close().phase == "train"
    with pytest.raises(MeterError, match="no window is open"):
        meter.close()


def test_a_block_that_raises_is_still_on_the_bill() -> None:
    meter = fake()
    span = meter.window("train")

    def fail() -> None:
        with span:
            raise KeyboardInterrupt

    with pytest.raises(MeterError, match="not closed yet"):
        _ = span.window
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert span.window.joules
    assert not meter.is_open


def test_without_a_meter_time_is_real_and_joules_are_not_known() -> None:
    meter = build(Energy(meter="none"), attempt=0)
    with meter.window("train") as span:
        time.sleep(0.05)
    window = span.window
    assert window.seconds >= 0.05
    assert window.cpu_seconds < 0.05
    assert window.total_joules is None
    (phase,) = by_phase([window])
    assert phase.joules is None
    assert phase.energy_class is EnergyClass.NONE
    assert meter.method().classes == {}


def test_a_sum_with_an_unmetered_part_is_not_known() -> None:
    metered, unmetered = fake(), build(Energy(meter="none"), attempt=1)
    windows = [*windows_of(metered, ["train"]), *windows_of(unmetered, ["train"])]
    (phase,) = by_phase(windows)
    assert phase.joules is None
    assert phase.energy_class is EnergyClass.MIXED
    assert total(windows).joules is None


def test_a_phase_with_an_invalid_window_is_invalid() -> None:
    window = windows_of(fake(), ["train"])[0]
    bad = Window.from_json({**window.to_json(), "valid": False, "fault": "zero"})
    assert by_phase([window])[0].valid
    assert not by_phase([window, bad])[0].valid


def test_nothing_sums_to_nothing_known() -> None:
    assert by_phase([]) == ()
    assert total([]).joules is None


@pytest.mark.parametrize("kind", list(EnergyClass))
def test_a_sum_of_one_class_has_that_class(kind: EnergyClass) -> None:
    assert class_of([kind, kind]) is kind


def test_windows_and_methods_survive_json() -> None:
    for window in windows_of(fake(), ["train", "watch"]):
        assert Window.from_json(json.loads(json.dumps(window.to_json()))) == window
    assert json.loads(json.dumps(fake().method().to_json()))["classes"] == {
        "cpu": "simulated",
        "ram": "simulated",
    }
