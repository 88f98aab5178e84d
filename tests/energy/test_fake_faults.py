"""The fake meter misbehaving: its faults are found by what finds real ones, its noise is what was asked."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recipe.test_read import LEAST
from tpsprune import recipe
from tpsprune.energy import build
from tpsprune.errors import RecipeError
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass, Window


def windows_of(count: int, attempt: int = 0, **settings: Any) -> list[Window]:
    meter = build(Energy(meter="fake", **settings), attempt=attempt)
    windows = []
    for _ in range(count):
        with meter.window("train") as span:
            pass
        windows.append(span.window)
    return windows


@pytest.mark.parametrize(
    ("fault", "words", "joules"),
    [
        ("zero", "no energy at all over 1 s", {"cpu": 0.0, "ram": 0.0}),
        ("none", "energy of cpu, ram is missing", {}),
        (
            "jump",
            "the tracker timed 3.000 s where 1.000 to 1.000 s went by",
            {"cpu": 30.0, "ram": 15.0},
        ),
        (
            "wrap",
            "over 1 s the cpu counter, which turns over every 8 J, may have lost a turn; use shorter windows",
            {"cpu": 2.5, "ram": 5.0},
        ),
    ],
)
def test_a_scripted_fault_befalls_the_window_it_was_scripted_for(
    fault: str, words: str, joules: dict[str, float]
) -> None:
    windows = windows_of(4, fake_fault=fault, fake_fault_window=2)
    sound = windows_of(4)
    assert [window.valid for window in windows] == [True, True, False, True]
    assert windows[2].fault == words
    assert windows[2].joules == pytest.approx(joules)
    assert [windows[at] for at in (0, 1, 3)] == [sound[at] for at in (0, 1, 3)]


@given(
    fault=st.sampled_from(["zero", "none", "jump", "wrap"]),
    watts=st.floats(0.01, 1e4),
    seconds=st.floats(1e-3, 1e4),
    pue=st.floats(1.0, 3.0),
    noise=st.floats(0.0, 0.3),
)
def test_a_fault_is_found_whatever_the_watts_and_the_clock(
    fault: str, watts: float, seconds: float, pue: float, noise: float
) -> None:
    settings = {
        "fake_cpu_watts": watts,
        "fake_gpu_watts": watts,
        "fake_window_seconds": seconds,
        "pue": pue,
        "fake_noise_share": noise,
    }
    sound, at_fault = windows_of(2, **settings, fake_fault=fault, fake_fault_window=1)
    assert sound.fault == ""
    assert not at_fault.valid
    assert at_fault.seconds == seconds


def test_a_gpu_is_there_when_it_has_watts() -> None:
    (window,) = windows_of(1, fake_gpu_watts=250.0, fake_window_seconds=2.0)
    assert window.joules == {"cpu": 20.0, "gpu": 500.0, "ram": 10.0}
    assert window.classes["gpu"] is EnergyClass.SIMULATED
    assert "gpu" not in windows_of(1)[0].joules


def test_noise_has_the_deviation_that_was_asked_and_is_the_same_for_the_same_seed() -> None:
    joules = [window.total_joules or 0.0 for window in windows_of(2000, fake_noise_share=0.1)]
    assert fmean(joules) == pytest.approx(15.0, rel=0.01)
    assert stdev(joules) / 15.0 == pytest.approx(0.1, rel=0.06)
    again = [window.total_joules for window in windows_of(3, fake_noise_share=0.1)]
    assert again == joules[:3]
    for other in ({"fake_seed": 1}, {"attempt": 1}):
        assert windows_of(1, fake_noise_share=0.1, **other)[0].total_joules != joules[0]


def test_all_parts_of_a_window_share_its_noise() -> None:
    (window,) = windows_of(1, fake_noise_share=0.2)
    assert window.joules["cpu"] / window.joules["ram"] == pytest.approx(2.0)


def test_the_method_says_what_was_scripted_and_nothing_more() -> None:
    plain = build(Energy(meter="fake"), attempt=0).method().details
    assert set(plain) == {"cpu_watts", "ram_watts", "window_seconds", "pue"}
    settings = Energy(meter="fake", fake_noise_share=0.1, fake_fault="zero", fake_fault_window=3)
    details = build(settings, attempt=0).method().details
    assert (details["noise_share"], details["fault"], details["fault_window"]) == ("0.1", "zero", "3")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("energy.fake_fault=jmp", r"energy.fake_fault: must be .*did you mean 'jump'.*found 'jmp'"),
        ("energy.fake_noise_share=1.5", "energy.fake_noise_share: must be less than or equal to 1"),
        ("energy.fake_fault_window=-1", "energy.fake_fault_window: must be greater than or equal to 0"),
        ("energy.fake_gpu_wats=3", r"energy.fake_gpu_wats: unknown key \(did you mean 'fake_gpu_watts'\?\)"),
    ],
)
def test_a_script_that_cannot_be_is_refused(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe.parse(LEAST, "x.toml", [override])
