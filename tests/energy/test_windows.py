"""Each invariant refuses the fault it is there for, and lets a sound window pass."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.energy.windows import Bracket, fault_of
from tpsprune.records import EnergyClass

SOUND: dict[str, Any] = {
    "bracket": Bracket(inner_seconds=10.0, outer_seconds=10.01),
    "task_seconds": 10.005,
    "joules": {"cpu": 80.0, "ram": 200.1},
    "classes": {"cpu": EnergyClass.MEASURED, "ram": EnergyClass.CONSTANT},
    "ram_watts": 20.0,
    "counter_range_joules": 262_143.0,
}


def test_a_sound_window_has_no_fault() -> None:
    assert fault_of(**SOUND) == ""


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"joules": {}}, "energy of cpu, ram is missing"),
        ({"joules": {"cpu": float("nan"), "ram": 200.0}}, "energy of cpu is missing"),
        ({"joules": {"cpu": -1.0, "ram": 200.0}}, "energy of cpu is missing"),
        ({"joules": {"cpu": 0.0, "ram": 0.0}}, "no energy at all over 10 s"),
        ({"joules": {"cpu": 0.0, "ram": 200.0}}, "cpu counter did not move over 10 s"),
        ({"counter_lost": True}, "ran backwards"),
        ({"counter_range_joules": 4_000.0}, "may have lost a turn"),
        ({"joules": {"cpu": 10_100.0, "ram": 200.0}}, "moved by 10100 J in 10 s, which no processor draws"),
        ({"task_seconds": 3.0}, "timed 3.000 s where 10.000 to 10.010 s went by"),
        ({"joules": {"cpu": 80.0, "ram": 290.0}}, "RAM was charged for 14.500 s"),
        ({"joules": {"cpu": 80.0, "ram": 136.0}}, "RAM was charged for 6.800 s"),
    ],
)
def test_a_broken_window_is_refused_in_words(broken: dict[str, Any], words: str) -> None:
    assert words in fault_of(**{**SOUND, **broken})


def test_a_modelled_part_may_be_zero_while_a_counter_may_not() -> None:
    joules = {"cpu": 0.0, "ram": 200.0}
    assert (
        fault_of(**{**SOUND, "joules": joules, "classes": dict.fromkeys(joules, EnergyClass.MODELLED)}) == ""
    )


@pytest.mark.parametrize(
    ("counter_joules", "fault"),
    [
        (1000.0, ""),
        (1000.0 / 0.98 + 70.0 / 0.98 - 1e-6, ""),
        (
            1000.0 / 0.98 + 70.0 / 0.98 + 0.01,
            "the gpu counter moved by 1092 J where the tracker charged 1000 J",
        ),
        (
            1000.0 / 1.02 - 70.0 / 1.02 - 0.01,
            "the gpu counter moved by 911.8 J where the tracker charged 1000 J",
        ),
        (-1000.0, "the gpu counter moved by -1000 J where the tracker charged 1000 J"),
        (None, ""),
    ],
)
def test_gpu_joules_are_those_of_the_boards_own_counter(counter_joules: float | None, fault: str) -> None:
    window = {
        **SOUND,
        "joules": {**SOUND["joules"], "gpu": 1000.0},
        "classes": {**SOUND["classes"], "gpu": EnergyClass.MEASURED},
    }
    found = fault_of(**window, gpu_counter_joules=counter_joules, gpu_slack_joules=70.0)
    assert found == fault
    # Sampled power is no counter, and is not held against one.
    window["classes"]["gpu"] = EnergyClass.MODELLED
    assert fault_of(**window, gpu_counter_joules=5.0) == ""


def test_two_packages_may_draw_twice_as_much() -> None:
    joules = {"cpu": 15_000.0, "ram": 200.0}
    assert "no processor draws" in fault_of(**{**SOUND, "joules": joules})
    assert fault_of(**{**SOUND, "joules": joules}, counted_packages=2) == ""


def test_a_counter_has_time_to_wake() -> None:
    short = Bracket(inner_seconds=0.05, outer_seconds=0.06)
    window = {"bracket": short, "task_seconds": 0.055, "joules": {"cpu": 0.0, "ram": 1.1}}
    assert fault_of(**{**SOUND, **window}) == ""


@given(inner=st.floats(0.0, 1e4), edge=st.floats(0.0, 10.0), share=st.floats(0.0, 1.0))
def test_a_bracket_holds_all_that_lies_in_it(inner: float, edge: float, share: float) -> None:
    bracket = Bracket(inner_seconds=inner, outer_seconds=inner + edge)
    assert bracket.holds(inner + share * edge)
    assert not bracket.holds(1.03 * (inner + edge) + 0.021)
    assert not bracket.holds(0.97 * inner - 0.021)
