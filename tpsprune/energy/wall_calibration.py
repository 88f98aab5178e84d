"""A comparison's windows with the joules that a wall meter read, and how the software's figures compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from tpsprune.energy.wall_clock import refuse_another_clock
from tpsprune.energy.wall_joules import Integral, refuse_holes, spans_of
from tpsprune.energy.wall_meter import WallMeter
from tpsprune.records import EnergyClass, Window
from tpsprune.records.savings import WallFit

__all__ = ["calibrated", "fit_of", "measured"]

_WALL: Final = "wall"
_LEAST_INTERVALS: Final = 10.0
_LEAST_WINDOWS: Final = 3


def calibrated(
    meter: WallMeter, windows: Sequence[Window], *, idle: Sequence[Window] = ()
) -> tuple[tuple[Window, ...], WallFit | None]:
    """Return ``windows`` with the wall's joules, and the fit of the wall's power on the software's.

    The clock is held against the machine's over ``windows`` and ``idle`` together, which are also what is
    fitted: idle spans have the power that the others lack. ``measured`` gives the idle windows their joules.

    Raises:
        MeterError: the readings do not cover a window, pause within one, or have another clock
            (``refuse_another_clock``, ``refuse_holes``).

    Cost: up to half a second for 2,000 windows in a day of readings at 1 Hz.
    """
    every = [*windows, *idle]
    if not every:
        return (), None
    spans = spans_of(every)
    refuse_another_clock(meter, every, spans)
    refilled = measured(meter, every)
    return refilled[: len(windows)], fit_of(meter, every, refilled)


def measured(meter: WallMeter, windows: Sequence[Window]) -> tuple[Window, ...]:
    """Return the windows with the wall's joules in place of the software's, as one component ``wall``.

    A window's span is from ``started``, to the millisecond, for ``seconds``; joules are the trapezoidal
    integral of the readings over it. A window that was invalid becomes valid, without its fault: what is
    wrong with a window is always its software energy, which is gone. All else stays as it was.

    Wall power is that of everything on the plug, power supply, fans and neighbours included. Where load
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
    refuse_holes(meter, windows, spans)
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
    all: no line can be drawn.
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
