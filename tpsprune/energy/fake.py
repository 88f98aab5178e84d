"""A meter for tests and trials: constant watts times a clock that ticks once a window."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from math import fmod
from typing import Final, final

from tpsprune.energy.meter import AbstractMeter, Count
from tpsprune.energy.windows import Bracket, fault_of
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass, EnergyMethod

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LEAST_FACTOR: Final = 0.01


@final
class FakeMeter(AbstractMeter):
    """Every window lasts ``fake_window_seconds`` and takes watts × seconds × ``pue``, whatever happens.

    The same calls give the same windows, to the last byte, so a whole run can be compared with another.
    With ``fake_noise_share`` the watts of each window are multiplied by a factor of that relative deviation
    about 1 (see ``noise_factor``). ``fake_fault`` befalls the window closed as number ``fake_fault_window``
    (from 0): a tracker that reports zero (``zero``) or nothing (``none``), that timed twice as long as
    went by (``jump``), or whose cpu counter turned over unseen (``wrap``). What is wrong is found by
    the invariants of the real meter.

    It sees nothing of the machine; its class is ``simulated`` throughout.
    """

    def __init__(self, settings: Energy, *, attempt: int = 0) -> None:
        super().__init__(attempt)
        gpu = {"gpu": settings.fake_gpu_watts} if settings.fake_gpu_watts > 0 else {}
        self._watts = {"cpu": settings.fake_cpu_watts, **gpu, "ram": settings.fake_ram_watts}
        self._settings = settings
        self._closed = 0

    def method(self) -> EnergyMethod:
        """Return that everything is simulated, and with what watts."""
        settings = self._settings
        details = {f"{component}_watts": f"{watts:g}" for component, watts in self._watts.items()}
        details |= {"window_seconds": f"{settings.fake_window_seconds:g}", "pue": f"{settings.pue:g}"}
        if settings.fake_noise_share:
            noise = {"noise_share": f"{settings.fake_noise_share:g}", "noise_seed": str(settings.fake_seed)}
            details |= noise
        if settings.fake_fault:
            details |= {"fault": settings.fake_fault, "fault_window": str(settings.fake_fault_window)}
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
        settings = self._settings
        fault = settings.fake_fault if self._closed == settings.fake_fault_window else ""
        factor = noise_factor(settings.fake_noise_share, (settings.fake_seed, self._attempt, self._closed))
        self._closed += 1
        seconds = task_seconds = settings.fake_window_seconds
        scale, range_joules = seconds * settings.pue, None
        joules = {component: watts * scale * factor for component, watts in self._watts.items()}
        match fault:
            case "zero":
                joules = dict.fromkeys(joules, 0.0)
            case "none":
                joules = {}
            case "jump":
                # A second more than twice, so that no slack covers it in a short window.
                times = 2 + 1 / seconds
                joules = {component: value * times for component, value in joules.items()}
                task_seconds = seconds * times
            case "wrap":
                range_joules = min(0.75 * joules["cpu"], 100.0 * seconds)
                joules["cpu"] = fmod(joules["cpu"], range_joules)
        classes = dict.fromkeys(self._watts, EnergyClass.SIMULATED)
        return Count(
            seconds=seconds,
            cpu_seconds=seconds,
            joules=joules,
            classes=classes if joules else {},
            fault=fault_of(
                bracket=Bracket(inner_seconds=seconds, outer_seconds=seconds),
                task_seconds=task_seconds,
                joules=joules,
                classes=classes,
                ram_watts=self._watts["ram"] * settings.pue * factor,
                counter_range_joules=range_joules,
            ),
        )

    def _now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self._closed * self._settings.fake_window_seconds)


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
