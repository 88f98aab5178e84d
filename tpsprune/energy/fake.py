"""A meter for tests and trials: constant watts times a clock that ticks once a window."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import fmod
from typing import Final, Literal, assert_never, final

from tpsprune.energy.meter import AbstractMeter, Count
from tpsprune.energy.windows import Bracket, fault_of
from tpsprune.records import EnergyClass, EnergyMethod

__all__ = ["FakeFault", "FakeMeter", "noise_factor"]

FakeFault = Literal["", "zero", "none", "jump", "wrap"]

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LEAST_FACTOR: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tracked:
    """What a tracker of constant watts would report of one window."""

    joules: dict[str, float]
    task_seconds: float
    counter_range_joules: float | None = None


@final
class FakeMeter(AbstractMeter):
    """Every window lasts ``window_seconds`` and takes ``watts × window_seconds × pue``, whatever happens.

    The same calls give the same windows, to the last byte, so a whole run can be compared with another.
    With ``noise_share`` the watts of each window are multiplied by a factor of that relative deviation
    about 1 (see ``noise_factor``). ``fault`` befalls the window closed as number ``fault_window``
    (from 0): a tracker that reports nought (``zero``) or nothing (``none``), that timed twice as long as
    went by (``jump``), or whose cpu counter turned over unseen (``wrap``). What is wrong is found by
    the invariants of the real meter.

    It sees nothing of the machine; its class is ``simulated`` throughout.
    """

    def __init__(
        self,
        *,
        cpu_watts: float = 10.0,
        ram_watts: float = 5.0,
        gpu_watts: float = 0.0,
        window_seconds: float = 1.0,
        noise_share: float = 0.0,
        seed: int = 0,
        fault: FakeFault = "",
        fault_window: int = 0,
        pue: float = 1.0,
        attempt: int = 0,
    ) -> None:
        super().__init__(attempt)
        gpu = {"gpu": gpu_watts} if gpu_watts > 0 else {}
        self._watts = {"cpu": cpu_watts, **gpu, "ram": ram_watts}
        self._window_seconds = window_seconds
        self._noise_share = noise_share
        self._seed = seed
        self._fault = fault
        self._fault_window = fault_window
        self._pue = pue
        self._closed = 0

    def method(self) -> EnergyMethod:
        """Say that everything is simulated, and with what watts."""
        details = {f"{component}_watts": f"{watts:g}" for component, watts in self._watts.items()}
        details |= {"window_seconds": f"{self._window_seconds:g}", "pue": f"{self._pue:g}"}
        if self._noise_share:
            details |= {"noise_share": f"{self._noise_share:g}", "noise_seed": str(self._seed)}
        if self._fault:
            details |= {"fault": self._fault, "fault_window": str(self._fault_window)}
        return EnergyMethod(
            meter="fake",
            scope="simulated",
            classes=dict.fromkeys(self._watts, EnergyClass.SIMULATED),
            details=details,
            excluded=("everything real",),
        )

    def _begin(self) -> None:
        return

    def _end(self) -> Count:
        fault = self._fault if self._closed == self._fault_window else ""
        factor = noise_factor(self._noise_share, (self._seed, self._attempt, self._closed))
        self._closed += 1
        seconds = self._window_seconds
        tracked = _befall(fault, self._sound(factor), seconds)
        classes = dict.fromkeys(self._watts, EnergyClass.SIMULATED)
        return Count(
            seconds=seconds,
            cpu_seconds=seconds,
            joules=tracked.joules,
            classes=classes if tracked.joules else {},
            fault=fault_of(
                bracket=Bracket(inner_seconds=seconds, outer_seconds=seconds),
                task_seconds=tracked.task_seconds,
                joules=tracked.joules,
                classes=classes,
                ram_watts=self._watts["ram"] * self._pue * factor,
                counter_range_joules=tracked.counter_range_joules,
            ),
        )

    def _sound(self, factor: float) -> _Tracked:
        scale = self._window_seconds * self._pue
        joules = {component: watts * scale * factor for component, watts in self._watts.items()}
        return _Tracked(joules=joules, task_seconds=self._window_seconds)

    def _now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self._closed * self._window_seconds)


def noise_factor(share: float, seed: tuple[int, ...]) -> float:
    """Return a normal number about 1 with deviation ``share``, the same for the same seed; 0.01 at least.

    >>> noise_factor(0.0, (0, 0, 0))
    1.0
    >>> noise_factor(0.1, (0, 0, 0)) == noise_factor(0.1, (0, 0, 0)) != noise_factor(0.1, (0, 0, 1))
    True
    """
    if not share:
        return 1.0
    return max(_LEAST_FACTOR, random.Random(repr(seed)).gauss(1.0, share))


def _befall(fault: FakeFault, sound: _Tracked, seconds: float) -> _Tracked:
    match fault:
        case "":
            return sound
        case "zero":
            return _Tracked(joules=dict.fromkeys(sound.joules, 0.0), task_seconds=seconds)
        case "none":
            return _Tracked(joules={}, task_seconds=seconds)
        case "jump":
            # A second more than twice, so that no slack covers it in a short window.
            times = 2 + 1 / seconds
            joules = {component: value * times for component, value in sound.joules.items()}
            return _Tracked(joules=joules, task_seconds=seconds * times)
        case "wrap":
            range_joules = min(0.75 * sound.joules["cpu"], 100.0 * seconds)
            joules = {**sound.joules, "cpu": fmod(sound.joules["cpu"], range_joules)}
            return _Tracked(joules=joules, task_seconds=seconds, counter_range_joules=range_joules)
        case _ as other:
            assert_never(other)
