"""A comparison's windows with the joules that a wall meter read: integral, clock, and fit to the software's.

The readings must cover every window without a hole, by the machine's own clock: else their joules would be
those of another time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import isfinite, nan
from typing import Final, NamedTuple, final

import numpy as np
import numpy.typing as npt

from tpsprune.energy.wall_meter import Floats, WallMeter
from tpsprune.errors import MeterError
from tpsprune.records import EnergyClass, Window
from tpsprune.records.savings import WallFit

_WALL: Final = "wall"
_LEAST_INTERVALS: Final = 10.0
_LEAST_WINDOWS: Final = 3
_GAP_INTERVALS: Final = 5.0
_LEAST_GAP_SECONDS: Final = 10.0
_HALF_HOUR_SECONDS: Final = 1800.0
_FARTHEST_ZONE: Final = 28
"""Half hours to the farthest time zone."""
_SEARCH_SECONDS: Final = 120.0
_LEAST_STEP_SECONDS: Final = 0.5
_SLACK_SECONDS: Final = 2.0
_SLACK_INTERVALS: Final = 2.0
_LEAST_R_SQUARED: Final = 0.5
_BETTER_BY: Final = 0.1
_LEAST_SHARE: Final = 0.5
"""Of the windows' seconds, how many a lag must leave within the readings to be judged."""


def calibrate(
    meter: WallMeter, windows: Sequence[Window], *, idle: Sequence[Window] = ()
) -> tuple[tuple[Window, ...], WallFit | None]:
    """Return ``windows`` with the wall's joules, and the fit of the wall's power on the software's.

    The clock is compared with the machine's over ``windows`` and ``idle`` together, which are also what is
    fitted: idle spans have the power that the others lack. ``measure_at_wall`` gives the idle windows their
    joules.

    Raises:
        MeterError: the readings do not cover a window, pause within one, or have another clock
            (``best_lag``).

    Cost: up to half a second for 2,000 windows in a day of readings at 1 Hz.
    """
    every = [*windows, *idle]
    if not every:
        return (), None
    spans = spans_of(every)
    _refuse_another_clock(meter, every, spans)
    refilled = measure_at_wall(meter, every)
    return refilled[: len(windows)], fit_of(meter, every, refilled)


def measure_at_wall(meter: WallMeter, windows: Sequence[Window]) -> tuple[Window, ...]:
    """Return the windows with the wall's joules in place of the software's, as one component ``wall``.

    A window's span is from ``started``, to the millisecond, for ``seconds``; joules are the trapezoidal
    integral of the readings over it. A window that was invalid becomes valid, without its fault: what is
    wrong with a window is always its software energy, which is replaced. All else is kept.

    Wall power is that of everything on the plug, power supply, fans and other processes included. Where load
    changes by ΔW watts between two readings, up to ½ · interval · ΔW joules go to the wrong side: a window
    with such a change at both edges is right to interval · ΔW. Over n intervals that is a share of at most
    1/n of ΔW to the window's power, and means little where a window is shorter than the interval; in sums
    over adjoining windows the edges between them cancel. A meter that gives means over an interval,
    stamped at its end, lags by half of it.

    Raises:
        MeterError: the readings do not cover a window, or pause within one.
    """
    if not windows:
        return ()
    spans = spans_of(windows)
    _refuse_holes(meter, windows, spans)
    energy = Integral(meter.seconds, meter.watts)
    joules = (energy(spans.ends) - energy(spans.starts)).tolist()
    return tuple(
        replace(window, joules={_WALL: value}, classes={_WALL: EnergyClass.MEASURED}, valid=True, fault="")
        for window, value in zip(windows, joules, strict=True)
    )


def fit_of(meter: WallMeter, software: Sequence[Window], wall: Sequence[Window]) -> WallFit | None:
    """Return the least squares fit wall watts = slope · software watts + offset, each window counting once.

    Over windows of ten meter intervals and more that software metered validly. r² is 0 where the wall's
    watts do not vary. ``None`` with fewer than three of them, or where the software has the same watts in
    all: no line can be fitted.
    """
    pairs = [
        (ours.total_joules / ours.seconds, walls.total_joules / ours.seconds)
        for ours, walls in zip(software, wall, strict=True)
        if ours.valid
        and ours.seconds >= _LEAST_INTERVALS * meter.interval_seconds
        and ours.total_joules is not None
        and walls.total_joules is not None
    ]
    if len(pairs) < _LEAST_WINDOWS:
        return None
    software_watts, wall_watts = np.asarray(pairs).T
    x, y = software_watts - software_watts.mean(), wall_watts - wall_watts.mean()
    if np.abs(x).max() <= 1e-9 * np.abs(software_watts).max():
        return None
    slope = (x @ y) / (x @ x)
    spread = y @ y
    return WallFit(
        slope=float(slope),
        offset_watts=float(wall_watts.mean() - slope * software_watts.mean()),
        r_squared=float((x @ y) ** 2 / ((x @ x) * spread)) if spread > 0 else 0.0,
        windows=len(pairs),
        interval_seconds=meter.interval_seconds,
    )


@final
class Integral:
    """The integral, from the first knot, of what runs straight from knot to knot; exact up to rounding.

    Called with times within the knots, in any shape and order. Cost: one pass over the knots at
    construction, then a binary search for each time.
    """

    def __init__(self, seconds: Floats, values: Floats) -> None:
        self._seconds = seconds
        self._values = values
        lengths = np.diff(seconds)
        self._slopes = np.diff(values) / lengths
        self._before = np.concatenate([[0.0], np.cumsum(lengths * (values[1:] + values[:-1]) / 2)])

    def __call__(self, at_seconds: Floats) -> Floats:
        """Return the integral from the first knot to each of the times."""
        knots = np.clip(
            np.searchsorted(self._seconds, at_seconds, side="right") - 1, 0, len(self._slopes) - 1
        )
        since = at_seconds - self._seconds[knots]
        integral: Floats = self._before[knots] + since * (
            self._values[knots] + since * self._slopes[knots] / 2
        )
        return integral


class Spans(NamedTuple):
    """Windows as times: seconds since the epoch at which each starts and ends."""

    starts: Floats
    ends: Floats


def spans_of(windows: Sequence[Window]) -> Spans:
    """Return when each window starts and ends; its start is to the millisecond."""
    starts = np.asarray([datetime.fromisoformat(window.started).timestamp() for window in windows])
    return Spans(starts, starts + np.asarray([window.seconds for window in windows]))


def _refuse_holes(meter: WallMeter, windows: Sequence[Window], spans: Spans) -> None:
    """Refuse readings that do not cover a window, or that pause within one.

    A pause is more than five median intervals and more than 10 s without a reading.

    Raises:
        MeterError: names the first such window and its span in UTC, and how many there are.
    """
    outside = (spans.starts < meter.seconds[0]) | (spans.ends > meter.seconds[-1])
    if outside.any():
        raise MeterError(
            f"{meter.name}: its readings, {utc(meter.seconds[0])} to {utc(meter.seconds[-1])}, do not"
            f" cover {_first(windows, spans, outside)}: log from before the first window until after the last"
        )
    lengths = np.diff(meter.seconds)
    long = np.flatnonzero(lengths > max(_GAP_INTERVALS * meter.interval_seconds, _LEAST_GAP_SECONDS))
    # A pause is in a window where it begins before the window's end and ends after the window's start.
    begun = np.searchsorted(meter.seconds[long], spans.ends, side="left")
    ended = np.searchsorted(meter.seconds[long + 1], spans.starts, side="right")
    holed = begun > ended
    if holed.any():
        gap = long[ended[np.argmax(holed)]]
        raise MeterError(
            f"{meter.name}: no reading for {lengths[gap]:.0f} s, from {utc(meter.seconds[gap])} to"
            f" {utc(meter.seconds[gap + 1])}, within {_first(windows, spans, holed)}:"
            " what was drawn then is not known"
        )


def utc(seconds: float) -> str:
    """Return a moment as ISO 8601 in UTC, with milliseconds where there are any.

    >>> utc(946684800.0)
    '2000-01-01T00:00:00Z'
    >>> utc(946684800.5)
    '2000-01-01T00:00:00.500Z'
    """
    moment = datetime.fromtimestamp(round(float(seconds), 3), UTC)
    precision = "milliseconds" if moment.microsecond else "seconds"
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def _first(windows: Sequence[Window], spans: Spans, among: npt.NDArray[np.bool_]) -> str:
    rank, count = int(np.argmax(among)), int(among.sum())
    window = windows[rank]
    words = f"window {window.index} of '{window.phase}', {utc(spans.starts[rank])} to {utc(spans.ends[rank])}"
    return words if count == 1 else f"{words}, and {count - 1} more"


class Lag(NamedTuple):
    """By how much a meter's clock is ahead (negative: behind), and how well powers agree then and now.

    ``r_squared_now`` is NaN where the readings as they stand do not cover half of the windows' time.
    """

    seconds: float
    r_squared: float
    r_squared_now: float


def _refuse_another_clock(meter: WallMeter, windows: Sequence[Window], spans: Spans) -> None:
    """Refuse readings whose clock does not seem to be the machine's.

    Refused is a meter whose readings lie wholly before or after the windows; and one whose powers agree
    clearly better with the software's at another lag (``best_lag``): r² there above 0.5, by more than 0.1
    higher than as they stand, and the lag above 2 s and above two intervals.

    It does not see a wrong clock where the software's power hardly varies from window to window, nor a
    lag beyond two minutes that is not a whole number of half hours, nor a clock that drifts.

    Raises:
        MeterError: names both spans, or by how much to shift the timestamps.
    """
    first, last = float(spans.starts.min()), float(spans.ends.max())
    begun, ended = float(meter.seconds[0]), float(meter.seconds[-1])
    if begun > last or ended < first:
        raise MeterError(
            f"{meter.name}: its readings, {utc(begun)} to {utc(ended)}, lie wholly"
            f" {'after' if begun > last else 'before'} the windows, {utc(first)} to {utc(last)}: it begins"
            f" {_duration(abs(begun - first))} {'later' if begun > first else 'earlier'} than they do"
            f"{_zone_words(first, last, begun, ended)}"
        )
    lag = best_lag(meter, windows, spans)
    if lag is None or abs(lag.seconds) <= max(_SLACK_SECONDS, _SLACK_INTERVALS * meter.interval_seconds):
        return
    better = not isfinite(lag.r_squared_now) or lag.r_squared > lag.r_squared_now + _BETTER_BY
    if lag.r_squared > _LEAST_R_SQUARED and better:
        way = "ahead" if lag.seconds > 0 else "behind"
        zone = ", which looks like a time zone" if abs(lag.seconds) > _SEARCH_SECONDS else ""
        now = f"{lag.r_squared_now:.2f}" if isfinite(lag.r_squared_now) else "unknown"
        raise MeterError(
            f"{meter.name}: the meter's clock seems {abs(lag.seconds):g} s {way}{zone} (its power agrees with"
            f" the software's with r² = {lag.r_squared:.2f} then, {now} as it stands): shift its timestamps"
            f" by {-lag.seconds:+g} s"
        )


def best_lag(meter: WallMeter, windows: Sequence[Window], spans: Spans) -> Lag | None:
    """Return the lag at which the software's power correlates best with the wall's, ``None`` if none can.

    The software's power is taken as constant over each window and unknown between them; r² is over time,
    within the windows. The square of the wall's power is taken as straight from reading to reading too: a
    little too much, which makes r² a little too low. Tried are lags to two minutes either way, in steps of
    half an interval (0.5 s at least), and the half hours up to 14 hours, at which time zones lie. Of equals
    the nearest is taken. ``None`` where fewer than three windows were validly metered by software, or all
    at the same power.

    Cost: for each of some 500 lags two binary searches a window; up to half a second for 2,000
    windows in a day of 1 Hz.
    """
    joules = np.asarray([window.total_joules or nan if window.valid else nan for window in windows])
    lengths = spans.ends - spans.starts
    used = np.isfinite(joules) & (lengths > 0)
    if used.sum() < _LEAST_WINDOWS:
        return None
    starts, ends, weights = spans.starts[used], spans.ends[used], lengths[used]
    powers = joules[used] / weights
    if np.ptp(powers) <= 1e-9 * powers.max():
        return None
    centred = meter.watts - meter.watts.mean()
    energy, square = Integral(meter.seconds, centred), Integral(meter.seconds, centred**2)

    def r_squared_at(lag: float) -> float:
        inside = (starts + lag >= meter.seconds[0]) & (ends + lag <= meter.seconds[-1])
        weight = weights[inside]
        if inside.sum() < _LEAST_WINDOWS or weight.sum() < _LEAST_SHARE * weights.sum():
            return nan
        begin, end = starts[inside] + lag, ends[inside] + lag
        return _r_squared(powers[inside], weight, energy(end) - energy(begin), square(end) - square(begin))

    lags = _lags(meter.interval_seconds)
    found = np.asarray([r_squared_at(lag) for lag in lags])
    if not np.isfinite(found).any():
        return None
    best = int(np.nanargmax(found))
    return Lag(lags[best], float(found[best]), float(found[0]))


def _lags(interval_seconds: float) -> list[float]:
    """Return the lags to try, nearest first, so that the first is 0."""
    step = max(_LEAST_STEP_SECONDS, interval_seconds / 2)
    fine = [step * count for count in range(1, int(_SEARCH_SECONDS / step) + 1)]
    coarse = [_HALF_HOUR_SECONDS * count for count in range(1, _FARTHEST_ZONE + 1)]
    return [0.0, *(sign * lag for lag in fine + coarse for sign in (1, -1))]


def _r_squared(powers: Floats, weights: Floats, energies: Floats, squares: Floats) -> float:
    """Return r² over time of constant powers and a wall power of known integrals, itself and squared.

    0 where one rises as the other falls: that is no agreement.
    """
    seconds = weights.sum()
    from_mean = powers - (weights * powers).sum() / seconds
    wall_mean = energies.sum() / seconds
    covariance = (from_mean * energies).sum() / seconds
    wall_variance = squares.sum() / seconds - wall_mean**2
    variance = (weights * from_mean**2).sum() / seconds
    if not (covariance > 0 and variance > 0 and wall_variance > 0):
        return 0.0
    return float(covariance**2 / (variance * wall_variance))


def _zone_words(first: float, last: float, begun: float, ended: float) -> str:
    """Return a hint where a whole number of half hours lays the readings over most of the shorter span."""

    def overlap(half_hours: int) -> float:
        shift = half_hours * _HALF_HOUR_SECONDS
        return min(ended + shift, last) - max(begun + shift, first)

    steps = sorted(range(-_FARTHEST_ZONE, _FARTHEST_ZONE + 1), key=abs)
    best = max(steps, key=overlap)
    if overlap(best) < _LEAST_SHARE * min(last - first, ended - begun):
        return ". Is it the meter of this machine and of these days?"
    hours = best / 2
    return f". It looks like a time zone: {hours:+g} h on its timestamps would lay them over the windows"


def _duration(seconds: float) -> str:
    """Return seconds as the largest unit that gives more than one of it."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
