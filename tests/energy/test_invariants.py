"""Each invariant refuses the fault it is there for, and lets a sound window pass."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.energy.invariants import Bracket, fault_of
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
        ({"task_seconds": 3.0}, "timed 3.000 s where 10.000 to 10.010 s went by"),
        ({"joules": {"cpu": 80.0, "ram": 290.0}}, "RAM was charged for 14.500 s"),
        ({"joules": {"cpu": 80.0, "ram": 136.0}}, "RAM was charged for 6.800 s"),
    ],
)
def test_a_broken_window_is_refused_in_words(broken: dict[str, Any], words: str) -> None:
    assert words in fault_of(**{**SOUND, **broken})


def test_a_modelled_part_may_be_nought_while_a_counter_may_not() -> None:
    joules = {"cpu": 0.0, "ram": 200.0}
    assert (
        fault_of(**{**SOUND, "joules": joules, "classes": dict.fromkeys(joules, EnergyClass.MODELLED)}) == ""
    )


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
