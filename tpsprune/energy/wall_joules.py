"""Joules between two moments by a wall meter's readings, and the refusals where the readings have a hole."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, final

import numpy as np

from tpsprune.energy.wall_meter import Floats, WallMeter
from tpsprune.errors import MeterError
from tpsprune.records import Window

__all__ = ["Integral", "Spans", "joules_between", "refuse_holes", "spans_of", "utc"]

_GAP_INTERVALS: Final = 5.0
_LEAST_GAP_SECONDS: Final = 10.0


@final
class Integral:
    """The integral, from the first knot, of what runs straight from knot to knot; exact up to rounding.

    Called with moments within the knots, in any shape and order. Cost: one pass over the knots at
    construction, then a binary search for each moment.
    """

    def __init__(self, seconds: Floats, values: Floats) -> None:
        self._seconds = seconds
        self._values = values
        lengths = np.diff(seconds)
        self._slopes = np.diff(values) / lengths
        self._before = np.concatenate([[0.0], np.cumsum(lengths * (values[1:] + values[:-1]) / 2)])

    def __call__(self, at_seconds: Floats) -> Floats:
        """Return the integral from the first knot to each of the moments."""
        knots = np.clip(
            np.searchsorted(self._seconds, at_seconds, side="right") - 1, 0, len(self._slopes) - 1
        )
        since = at_seconds - self._seconds[knots]
        integral: Floats = self._before[knots] + since * (
            self._values[knots] + since * self._slopes[knots] / 2
        )
        return integral


class Spans(NamedTuple):
    """Windows as moments: seconds since the epoch at which each starts and ends."""

    starts: Floats
    ends: Floats


def spans_of(windows: Sequence[Window]) -> Spans:
    """Return when each window starts and ends; its start is known to the millisecond."""
    starts = np.asarray([datetime.fromisoformat(window.started).timestamp() for window in windows])
    return Spans(starts, starts + np.asarray([window.seconds for window in windows]))


def joules_between(meter: WallMeter, start_seconds: float, end_seconds: float) -> float:
    """Return the joules from one moment to another, by the trapezoidal rule, interpolated at both ends.

    Exact where watts run straight from reading to reading; additive over adjoining spans. A change of load
    by ΔW watts somewhere between two readings is charged wrongly by at most ½ · interval · ΔW joules.
    It does not see holes between readings: ``refuse_holes`` does.

    Raises:
        MeterError: the span is not within the readings, or ends before it starts.

    Cost: one pass over the readings.
    """
    if not meter.seconds[0] <= start_seconds <= end_seconds <= meter.seconds[-1]:
        raise MeterError(
            f"{meter.name}: no joules from {utc(start_seconds)} to {utc(end_seconds)}: its readings go from"
            f" {utc(meter.seconds[0])} to {utc(meter.seconds[-1])}"
        )
    start, end = Integral(meter.seconds, meter.watts)(np.asarray([start_seconds, end_seconds]))
    return float(end - start)


def refuse_holes(meter: WallMeter, windows: Sequence[Window], spans: Spans) -> None:
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


def _first(windows: Sequence[Window], spans: Spans, among: np.typing.NDArray[np.bool_]) -> str:
    rank, count = int(np.argmax(among)), int(among.sum())
    window = windows[rank]
    words = f"window {window.index} of '{window.phase}', {utc(spans.starts[rank])} to {utc(spans.ends[rank])}"
    return words if count == 1 else f"{words}, and {count - 1} more"
