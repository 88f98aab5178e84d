from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.energy.wall import NOON, meter_of, window
from tpsprune.energy.wall_calibration import measured
from tpsprune.energy.wall_joules import joules_between, utc
from tpsprune.energy.wall_meter import WallMeter
from tpsprune.errors import MeterError
from tpsprune.records import EnergyClass

LENGTHS = st.lists(st.floats(0.1, 20), min_size=1, max_size=12)
WATTS = st.lists(st.floats(0, 500), min_size=13, max_size=13)
SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted)


def drawn(lengths: list[float], watts: list[float]) -> WallMeter:
    return meter_of(NOON + np.concatenate([[0.0], np.cumsum(lengths)]), watts[: len(lengths) + 1])


def test_constant_watts_are_watts_times_seconds() -> None:
    meter = meter_of([NOON, NOON + 7, NOON + 10], [50.0, 50.0, 50.0])
    assert joules_between(meter, NOON + 1.5, NOON + 9.5) == pytest.approx(400.0)


def test_a_ramp_is_its_closed_form() -> None:
    meter = meter_of([NOON, NOON + 4, NOON + 10], [0.0, 80.0, 200.0])
    # Watts are 20 t throughout: their integral is 10 t².
    assert joules_between(meter, NOON + 1, NOON + 9) == pytest.approx(10 * (81 - 1))


@given(lengths=LENGTHS, watts=WATTS, shares=SHARES)
def test_adjoining_spans_add_up_and_the_whole_is_the_trapezoidal_rule(
    lengths: list[float], watts: list[float], shares: list[float]
) -> None:
    meter = drawn(lengths, watts)
    first, middle, last = (float(NOON + share * sum(lengths) * 0.999) for share in shares)
    parts = joules_between(meter, first, middle) + joules_between(meter, middle, last)
    assert parts == pytest.approx(joules_between(meter, first, last), abs=1e-3)
    whole = joules_between(meter, float(meter.seconds[0]), float(meter.seconds[-1]))
    trapezoids = np.diff(meter.seconds) * (meter.watts[1:] + meter.watts[:-1]) / 2
    assert whole == pytest.approx(trapezoids.sum(), abs=1e-3)


@given(lengths=LENGTHS, watts=WATTS, shares=SHARES)
def test_any_span_is_what_a_fine_sum_over_interpolated_watts_gives(
    lengths: list[float], watts: list[float], shares: list[float]
) -> None:
    meter = drawn(lengths, watts)
    start, _, end = (float(NOON + share * sum(lengths) * 0.999) for share in shares)
    steps = 4000
    centres = start + (np.arange(steps) + 0.5) * (end - start) / steps
    slow = float(np.interp(centres, meter.seconds, meter.watts).mean() * (end - start))
    assert joules_between(meter, start, end) == pytest.approx(slow, abs=0.05 + 1e-3 * slow)


@given(interval=st.floats(0.5, 20), step_share=st.floats(0, 0.999), edge_share=st.floats(0, 0.999))
def test_a_step_of_load_costs_at_most_half_an_interval_of_it(
    interval: float, step_share: float, edge_share: float
) -> None:
    step = NOON + (2 + step_share) * interval
    seconds = NOON + np.arange(9) * interval
    meter = meter_of(seconds, np.where(seconds > step, 100.0, 0.0))
    start = float(NOON + 3 * edge_share * interval)
    end = float(seconds[-1])
    true = 100.0 * (end - max(start, step))
    assert abs(joules_between(meter, start, end) - true) <= 0.5 * interval * 100.0 + 1e-2


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 11), (6, 5)])
def test_a_span_outside_the_readings_or_backwards_is_refused(start: float, end: float) -> None:
    meter = meter_of([NOON, NOON + 10], [1.0, 1.0])
    words = (
        rf"^plug\.csv: no joules from {utc(NOON + start)} to {utc(NOON + end)}: its readings go from"
        r" 2025-01-31T12:00:00Z to 2025-01-31T12:00:10Z$"
    )
    with pytest.raises(MeterError, match=words):
        joules_between(meter, NOON + start, NOON + end)


def test_windows_get_the_walls_joules_as_one_measured_component_and_keep_all_else() -> None:
    meter = meter_of([NOON, NOON + 100], [10.0, 10.0])
    before = replace(
        window(5.25, 20), valid=False, fault="the tracker timed something else", steal_seconds=1.0
    )
    (after,) = measured(meter, [before])
    assert after.joules == pytest.approx({"wall": 200.0})
    assert after == replace(
        before,
        joules=after.joules,
        classes={"wall": EnergyClass.MEASURED},
        valid=True,
        fault="",
    )


def test_windows_that_software_did_not_meter_and_empty_ones_are_measured_too() -> None:
    meter = meter_of([NOON, NOON + 100], [10.0, 10.0])
    none = replace(window(1, 2), joules={}, classes={})
    assert [each.total_joules for each in measured(meter, [none, window(7.3, 0)])] == [
        pytest.approx(20.0),
        0.0,
    ]
    assert measured(meter, []) == ()


@given(starts=st.lists(st.integers(0, 90_000), min_size=1, max_size=8), watts=WATTS)
def test_many_windows_at_once_are_as_one_by_one(starts: list[int], watts: list[float]) -> None:
    meter = meter_of([NOON + 9 * rank for rank in range(13)], watts)
    windows = [window(start / 1000, 12.3) for start in starts]
    one_by_one = [joules_between(meter, NOON + start / 1000, NOON + start / 1000 + 12.3) for start in starts]
    assert [each.total_joules for each in measured(meter, windows)] == pytest.approx(one_by_one, abs=1e-3)


@pytest.mark.parametrize(("start", "seconds"), [(-0.5, 5), (98, 5)])
def test_a_window_that_the_readings_do_not_cover_is_refused_with_both_spans(
    start: float, seconds: float
) -> None:
    meter = meter_of([NOON, NOON + 100], [1.0, 1.0])
    words = (
        r"^plug\.csv: its readings, 2025-01-31T12:00:00Z to 2025-01-31T12:01:40Z, do not cover window 0 of"
        rf" 'train', {utc(NOON + start)} to {utc(NOON + start + seconds)}, and 1 more: log from before the"
        r" first window until after the last$"
    )
    with pytest.raises(MeterError, match=words):
        measured(meter, [window(50, 10), window(start, seconds), window(start, seconds)])


def paused(pause: float, interval: float = 1.0) -> WallMeter:
    early = NOON + np.arange(0, 60, interval)
    return meter_of(np.concatenate([early, early[-1] + pause + early - NOON]), [1.0] * (2 * len(early)))


def test_a_pause_within_a_window_is_refused_with_its_span() -> None:
    words = (
        r"^plug\.csv: no reading for 11 s, from 2025-01-31T12:00:59Z to 2025-01-31T12:01:10Z, within window 0"
        r" of 'train', 2025-01-31T12:00:50Z to 2025-01-31T12:01:30Z: what was drawn then is not known$"
    )
    with pytest.raises(MeterError, match=words):
        measured(paused(11), [window(0, 20), window(50, 40)])


@pytest.mark.parametrize("inside", [(60, 2), (40, 20), (69, 5), (40, 50)])
def test_a_pause_that_touches_a_window_at_all_is_refused(inside: tuple[float, float]) -> None:
    with pytest.raises(MeterError, match="no reading for 11 s"):
        measured(paused(11), [window(*inside)])


@pytest.mark.parametrize(
    ("meter", "span"),
    [
        (paused(11), (30, 29)),
        (paused(11), (70, 20)),
        (paused(10), (50, 40)),
        (paused(29, interval=6.0), (50, 20)),
    ],
)
def test_a_pause_between_windows_or_within_what_is_usual_is_not(
    meter: WallMeter, span: tuple[float, float]
) -> None:
    assert measured(meter, [window(*span)])[0].total_joules == pytest.approx(span[1])
