"""Whether a wall meter's clock is that of the machine: else its joules would be those of another time."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from typing import Final, NamedTuple

import numpy as np

from tpsprune.energy.wall_joules import Integral, Spans, utc
from tpsprune.energy.wall_meter import Floats, WallMeter
from tpsprune.errors import MeterError
from tpsprune.records import Window

__all__ = ["Lag", "best_lag", "refuse_another_clock"]

_HALF_HOUR_SECONDS: Final = 1800.0
_FARTHEST_ZONE: Final = 28
"""Half hours to the farthest time zone."""
_SEARCH_SECONDS: Final = 120.0
_LEAST_STEP_SECONDS: Final = 0.5
_SLACK_SECONDS: Final = 2.0
_SLACK_INTERVALS: Final = 2.0
_LEAST_R_SQUARED: Final = 0.5
_BETTER_BY: Final = 0.1
_LEAST_WINDOWS: Final = 3
_LEAST_SHARE: Final = 0.5
"""Of the windows' seconds, how many a lag must leave within the readings to be judged."""


class Lag(NamedTuple):
    """By how much a meter's clock is ahead (negative: behind), and how well powers agree then and now.

    ``r_squared_now`` is NaN where the readings as they stand do not cover half of the windows' time.
    """

    seconds: float
    r_squared: float
    r_squared_now: float


def refuse_another_clock(meter: WallMeter, windows: Sequence[Window], spans: Spans) -> None:
    """Refuse readings whose clock does not seem to be the machine's.

    Refused is a meter whose readings lie wholly before or after the windows; and one whose powers agree
    clearly better with the software's at another lag (``best_lag``): r² there above 0.5, by more than 0.1
    higher than as they stand, and the lag above 2 s and above two intervals.

    It does not see a wrong clock where the software's power hardly varies from window to window, nor a
    lag beyond two minutes that is not a whole number of half hours, nor a clock that drifts.

    Raises:
        MeterError: says both spans, or by how much to shift the timestamps.
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
