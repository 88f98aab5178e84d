"""Windows by a wall meter's readings: joules, holes, clocks, and the fit to the software's."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpsprune.energy.wall_calibration import (
    Integral,
    best_lag,
    calibrate,
    fit_of,
    measure_at_wall,
    spans_of,
    utc,
)
from tpsprune.energy.wall_meter import WallMeter
from tpsprune.errors import MeterError
from tpsprune.records import EnergyClass, Window

NOON = 1_738_324_800
"""2025-01-31T12:00:00Z."""


def meter_of(seconds: npt.ArrayLike, watts: npt.ArrayLike) -> WallMeter:
    return WallMeter(
        name="plug.csv", sha256="", seconds=np.asarray(seconds, float), watts=np.asarray(watts, float)
    )


def window(start: float, seconds: float, watts: float = 10.0) -> Window:
    """Return a window that starts so many seconds after noon, with this much power as software has it."""
    return Window(
        phase="train",
        index=0,
        attempt=0,
        seconds=seconds,
        cpu_seconds=seconds,
        joules={"cpu": watts * seconds},
        classes={"cpu": EnergyClass.MODELLED},
        started=utc(NOON + start),
    )


LENGTHS = st.lists(st.floats(0.1, 20), min_size=1, max_size=12)
WATTS = st.lists(st.floats(0, 500), min_size=13, max_size=13)
SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted)


def logged(lengths: list[float], watts: list[float]) -> WallMeter:
    return meter_of(NOON + np.concatenate([[0.0], np.cumsum(lengths)]), watts[: len(lengths) + 1])


def joules_between(meter: WallMeter, start: float, end: float) -> float:
    before, after = Integral(meter.seconds, meter.watts)(np.asarray([start, end]))
    return float(after - before)


def test_constant_watts_and_a_ramp_are_their_closed_forms() -> None:
    meter = meter_of([NOON, NOON + 7, NOON + 10], [50.0, 50.0, 50.0])
    assert joules_between(meter, NOON + 1.5, NOON + 9.5) == pytest.approx(400.0)
    meter = meter_of([NOON, NOON + 4, NOON + 10], [0.0, 80.0, 200.0])
    # Watts are 20 t throughout: their integral is 10 t².
    assert joules_between(meter, NOON + 1, NOON + 9) == pytest.approx(10 * (81 - 1))


@given(lengths=LENGTHS, watts=WATTS, shares=SHARES)
def test_adjoining_spans_add_up_and_the_whole_is_the_trapezoidal_rule(
    lengths: list[float], watts: list[float], shares: list[float]
) -> None:
    meter = logged(lengths, watts)
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
    meter = logged(lengths, watts)
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


def test_windows_get_the_walls_joules_as_one_measured_component_and_keep_all_else() -> None:
    meter = meter_of([NOON, NOON + 100], [10.0, 10.0])
    before = replace(
        window(5.25, 20), valid=False, fault="the tracker timed something else", steal_seconds=1.0
    )
    (after,) = measure_at_wall(meter, [before])
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
    assert [each.total_joules for each in measure_at_wall(meter, [none, window(7.3, 0)])] == [
        pytest.approx(20.0),
        0.0,
    ]
    assert measure_at_wall(meter, []) == ()


@given(starts=st.lists(st.integers(0, 90_000), min_size=1, max_size=8), watts=WATTS)
def test_many_windows_at_once_are_as_one_by_one(starts: list[int], watts: list[float]) -> None:
    meter = meter_of([NOON + 9 * rank for rank in range(13)], watts)
    windows = [window(start / 1000, 12.3) for start in starts]
    one_by_one = [joules_between(meter, NOON + start / 1000, NOON + start / 1000 + 12.3) for start in starts]
    assert [each.total_joules for each in measure_at_wall(meter, windows)] == pytest.approx(
        one_by_one, abs=1e-3
    )


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
        measure_at_wall(meter, [window(50, 10), window(start, seconds), window(start, seconds)])


def paused(pause: float, interval: float = 1.0) -> WallMeter:
    early = NOON + np.arange(0, 60, interval)
    return meter_of(np.concatenate([early, early[-1] + pause + early - NOON]), [1.0] * (2 * len(early)))


def test_a_pause_within_a_window_is_refused_with_its_span() -> None:
    words = (
        r"^plug\.csv: no reading for 11 s, from 2025-01-31T12:00:59Z to 2025-01-31T12:01:10Z, within window 0"
        r" of 'train', 2025-01-31T12:00:50Z to 2025-01-31T12:01:30Z: what was drawn then is not known$"
    )
    with pytest.raises(MeterError, match=words):
        measure_at_wall(paused(11), [window(0, 20), window(50, 40)])
    for inside in ((60, 2), (40, 20), (69, 5), (40, 50)):
        with pytest.raises(MeterError, match="no reading for 11 s"):
            measure_at_wall(paused(11), [window(*inside)])


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
    assert measure_at_wall(meter, [window(*span)])[0].total_joules == pytest.approx(span[1])


PLAN = ((20.0, 60.0, 10.0), (90.0, 45.0, 90.0), (140.0, 80.0, 40.0), (230.0, 50.0, 70.0), (285.0, 33.0, 25.0))
"""Windows as start, seconds and watts by software."""
IDLE = 5.0


def windows_of(plan: tuple[tuple[float, float, float], ...] = PLAN) -> list[Window]:
    return [window(*each) for each in plan]


def meter_over(
    windows: list[Window],
    *,
    ahead: float = 0.0,
    slope: float = 1.2,
    offset: float = 40.0,
    interval: float = 1.0,
    before: float = 400.0,
    after: float = 400.0,
) -> WallMeter:
    """Return a meter that read slope · software watts + offset, idle in between, by a clock so far ahead."""
    spans = spans_of(windows)
    # Readings lie on either side of a change of load, so that the ramp between them is centred on it.
    seconds = np.arange(spans.starts.min() - before, spans.ends.max() + after, interval) + interval / 2
    software = np.full(len(seconds), IDLE)
    for each, start, end in zip(windows, spans.starts, spans.ends, strict=True):
        software[(seconds >= start) & (seconds < end)] = (each.total_joules or 0.0) / each.seconds
    return meter_of(seconds + ahead, slope * software + offset)


def test_windows_get_the_walls_joules_and_the_fit_is_the_line_between_both_powers() -> None:
    windows, idle = windows_of(), [window(400, 60, IDLE)]
    after, fit = calibrate(meter_over(windows), windows, idle=idle)
    assert len(after) == len(windows)
    for ours, wall in zip(windows, after, strict=True):
        assert ours.total_joules is not None
        # A change of 80 W in 1 s at either edge: right to 1.2 · 80 J.
        assert wall.joules["wall"] == pytest.approx(1.2 * ours.total_joules + 40 * ours.seconds, abs=96)
        assert wall.classes == {"wall": EnergyClass.MEASURED}
    assert fit is not None
    assert (fit.slope, fit.offset_watts) == (pytest.approx(1.2, abs=0.05), pytest.approx(40, abs=2))
    assert fit.r_squared > 0.99
    assert (fit.windows, fit.interval_seconds) == (6, 1.0)


@given(
    powers=st.lists(st.floats(1, 300), min_size=3, max_size=8).filter(lambda each: np.ptp(each) > 1),
    slope=st.floats(0.5, 3),
    offset=st.floats(0, 100),
)
def test_the_fit_finds_any_line_exactly_and_agrees_with_a_slow_twin(
    powers: list[float], slope: float, offset: float
) -> None:
    software = [window(100 * rank, 50, watts) for rank, watts in enumerate(powers)]
    wall = [
        replace(each, classes={"wall": EnergyClass.MEASURED}, joules={"wall": 50 * (slope * watts + offset)})
        for each, watts in zip(software, powers, strict=True)
    ]
    meter = meter_of([NOON, NOON + 1], [1.0, 1.0])
    fit = fit_of(meter, software, wall)
    assert fit is not None
    assert (fit.slope, fit.offset_watts) == (pytest.approx(slope, abs=1e-6), pytest.approx(offset, abs=1e-4))
    assert fit.r_squared == pytest.approx(1.0)
    bent = [
        replace(each, classes={"wall": EnergyClass.MEASURED}, joules={"wall": 50.0 * watts**2 / 300})
        for each, watts in zip(software, powers, strict=True)
    ]
    found = fit_of(meter, software, bent)
    assert found is not None
    curved = [watts**2 / 300 for watts in powers]
    assert [found.slope, found.offset_watts] == pytest.approx(
        np.polyfit(powers, curved, 1), rel=1e-5, abs=1e-5
    )
    assert found.r_squared == pytest.approx(np.corrcoef(powers, curved)[0, 1] ** 2)


def test_short_invalid_and_unmetered_windows_are_not_fitted() -> None:
    windows = [*windows_of(), window(330, 9, 500.0)]
    windows += [
        replace(window(345, 20, 999.0), valid=False, fault="lost"),
        replace(window(370, 20), joules={}),
    ]
    after, fit = calibrate(meter_over(windows), windows)
    assert all(each.valid and each.joules["wall"] > 0 for each in after)
    assert fit is not None
    assert fit.windows == len(PLAN)


@pytest.mark.parametrize(
    "windows",
    [
        windows_of(PLAN[:2]),
        [window(100 * rank, 60, 30.0) for rank in range(4)],
        [replace(each, joules={}, classes={}) for each in windows_of()],
    ],
    ids=["two windows", "one power", "no software"],
)
def test_without_three_windows_of_different_power_there_is_no_fit(windows: list[Window]) -> None:
    after, fit = calibrate(meter_over(windows_of()), windows)
    assert fit is None
    assert len(after) == len(windows)


def test_a_wall_that_does_not_vary_has_no_r_squared() -> None:
    _, fit = calibrate(meter_over(windows_of(), slope=0.0), windows_of())
    assert fit is not None
    assert (fit.slope, fit.offset_watts, fit.r_squared) == pytest.approx((0.0, 40.0, 0.0), abs=1e-6)
    assert calibrate(meter_of([NOON, NOON + 1], [1.0, 1.0]), []) == ((), None)


def test_idle_spans_must_be_covered_too() -> None:
    with pytest.raises(MeterError, match=r"do not cover window 0 of 'train', 2025-01-31T12:15:00Z to "):
        calibrate(meter_over(windows_of()), windows_of(), idle=[window(900, 60, IDLE)])


@pytest.mark.parametrize("ahead", [0.0, 2.0, -2.0])
@pytest.mark.parametrize("interval", [0.25, 1.0])
def test_a_clock_within_two_seconds_is_taken(ahead: float, interval: float) -> None:
    windows = [window(start, 4, watts) for start, _, watts in PLAN]
    calibrate(meter_over(windows, ahead=ahead, interval=interval), windows)


@pytest.mark.parametrize(("ahead", "interval"), [(4.0, 2.0), (-20.0, 10.0), (100.0, 60.0)])
def test_a_clock_within_two_intervals_is_taken(ahead: float, interval: float) -> None:
    windows = windows_of()
    calibrate(meter_over(windows, ahead=ahead, interval=interval), windows)


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (30.0, r"the meter's clock seems 30 s ahead \(its power .* r² = 0\.9\d then, 0\.\d\d as it stands\)"),
        (-45.0, r"the meter's clock seems 45 s behind .*: shift its timestamps by \+45 s$"),
        (30.0, r": shift its timestamps by -30 s$"),
        (3600.0, r"the meter's clock seems 3600 s ahead, which looks like a time zone .* by -3600 s$"),
        (-19800.0, r"the meter's clock seems 19800 s behind, which looks like a time zone .* by \+19800 s$"),
    ],
)
def test_a_shifted_clock_is_refused_with_the_shift_that_mends_it(ahead: float, words: str) -> None:
    windows = windows_of()
    meter = meter_over(windows, ahead=ahead, before=30_000, after=30_000)
    with pytest.raises(MeterError, match=f"^plug\\.csv: .*{words}"):
        calibrate(meter, windows)


def test_a_shifted_clock_is_reported_before_what_it_leaves_uncovered() -> None:
    windows = windows_of()
    with pytest.raises(MeterError, match=r"clock seems 60 s ahead"):
        calibrate(meter_over(windows, ahead=60, before=5, after=120), windows)


def test_power_that_falls_as_the_softwares_rises_is_no_agreement() -> None:
    windows = windows_of()
    calibrate(meter_over(windows, ahead=30, slope=-0.3), windows)


@settings(max_examples=12)
@given(ahead=st.integers(-200, 200).map(lambda each: each / 2), interval=st.sampled_from([0.5, 1.0, 4.0]))
def test_the_best_lag_is_the_clocks_shift(ahead: float, interval: float) -> None:
    windows = windows_of()
    lag = best_lag(meter_over(windows, ahead=ahead, interval=interval), windows, spans_of(windows))
    assert lag is not None
    assert abs(lag.seconds - ahead) <= interval


@pytest.mark.parametrize(
    "windows",
    [
        windows_of(PLAN[:2]),
        [*windows_of(PLAN[:2]), replace(window(140, 80, 40), valid=False, fault="lost")],
        [*windows_of(PLAN[:2]), replace(window(140, 80), joules={}), window(230, 0)],
        [window(70 * rank, 10 + 17 * rank, 0.1) for rank in range(4)],
    ],
    ids=["two", "two valid", "two metered", "one power"],
)
def test_there_is_no_lag_without_three_windows_of_different_power(windows: list[Window]) -> None:
    assert best_lag(meter_over(windows_of(), ahead=30), windows, spans_of(windows)) is None


def test_the_best_lag_is_where_a_correlation_over_fine_samples_says_it_is() -> None:
    windows = windows_of()
    meter = meter_over(windows, ahead=7.0)
    spans = spans_of(windows)
    lag = best_lag(meter, windows, spans)
    assert lag is not None
    times = np.concatenate([np.arange(a, b, 0.01) for a, b in zip(spans.starts, spans.ends, strict=True)])
    counts = [len(np.arange(a, b, 0.01)) for a, b in zip(spans.starts, spans.ends, strict=True)]
    software = np.repeat([(each.total_joules or 0) / each.seconds for each in windows], counts)
    for seconds, r_squared in ((lag.seconds, lag.r_squared), (0.0, lag.r_squared_now)):
        wall = np.interp(times + seconds, meter.seconds, meter.watts)
        assert r_squared == pytest.approx(np.corrcoef(software, wall)[0, 1] ** 2, abs=0.02)


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (
            100_000.0,
            r"^plug\.csv: its readings, 2025-02-01T15:[^ ]+Z to [^ ]+Z, lie wholly after the windows,"
            r" 2025-01-31T12:00:20Z to 2025-01-31T12:05:18Z: it begins 1\.2 days later than they do\. Is it"
            r" the meter of this machine and of these days\?$",
        ),
        (
            7200.0,
            r"wholly after the windows, .*: it begins 1\.9 h later than they do\. It looks like a time zone:"
            r" -2 h on its timestamps would lay them over the windows$",
        ),
        (
            -19800.0,
            r"wholly before the windows, .*: it begins 5\.6 h earlier than they do\. It looks like a time"
            r" zone: \+5\.5 h on its timestamps",
        ),
    ],
)
def test_readings_of_another_time_are_refused_with_both_spans_and_a_hint(shift: float, words: str) -> None:
    windows = windows_of()
    with pytest.raises(MeterError, match=re.compile(words, re.DOTALL)):
        calibrate(meter_over(windows, ahead=shift), windows)


def test_a_day_at_one_hertz_over_two_thousand_windows_takes_well_under_a_second() -> None:
    windows = [window(40 * rank + 1, 30, 10.0 + rank % 7) for rank in range(2000)]
    meter = meter_of(NOON + np.arange(86_400), 100 + 10 * np.sin(np.arange(86_400) / 300))
    began = time.process_time()
    measure_at_wall(meter, windows)
    best_lag(meter, windows, spans_of(windows))
    assert time.process_time() - began < 3.0
