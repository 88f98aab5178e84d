"""What must hold of a metered window, whatever the machine; else the figure is refused, with words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final

from tpsprune.records import EnergyClass

__all__ = ["Bracket", "fault_of"]

_RELATIVE: Final = 0.02
_SLACK_SECONDS: Final = 0.02
_COUNTER_WAKES_SECONDS: Final = 1.0
_HIGHEST_PACKAGE_WATTS: Final = 500.0
_BEYOND_ANY_PACKAGE: Final = 2 * _HIGHEST_PACKAGE_WATTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """Two clock readings round a window: what lies between its edges, and what its edges enclose.

    Starting and stopping a tracker takes time of its own, which on a busy machine is no small part of
    a short window; a time base is right when it lies between the two.
    """

    inner_seconds: float
    outer_seconds: float

    def holds(self, seconds: float) -> bool:
        """Whether ``seconds`` lies in the bracket, give or take 2 % and 20 ms."""
        low = self.inner_seconds * (1 - _RELATIVE) - _SLACK_SECONDS
        high = self.outer_seconds * (1 + _RELATIVE) + _SLACK_SECONDS
        return low <= seconds <= high


def fault_of(
    *,
    bracket: Bracket,
    task_seconds: float,
    joules: Mapping[str, float],
    classes: Mapping[str, EnergyClass],
    ram_watts: float | None = None,
    counter_range_joules: float | None = None,
    counter_lost: bool = False,
    counted_packages: int = 1,
    gpu_counter_joules: float | None = None,
    gpu_slack_joules: float = 0.0,
) -> str:
    """Return what is wrong with a window, or an empty string.

    Each invariant catches a fault that happens: energy that is missing or nought; a counter that did
    not move in more than a second; a counter that may have turned over twice (it can at 500 W within
    the window, and only one turn can be told); a counter that moved further than ``counted_packages``
    draw at 1000 W each, as one that was set back does, which passes for a turn; a tracker that timed
    something else (``task_seconds``); energy charged for another time than went by (RAM, modelled as
    constant watts, is a clock: joules / ``ram_watts`` must be the duration); GPU energy that the boards'
    own counter, read apart at the same edges (``gpu_counter_joules``), does not bear out within 2 % and
    ``gpu_slack_joules``.
    """
    if missing := [part for part in classes if not _is_energy(joules.get(part))]:
        return f"energy of {', '.join(missing)} is missing"
    if sum(joules.values()) <= 0:
        return f"no energy at all over {bracket.inner_seconds:.3g} s"
    for component, value in joules.items():
        still = classes[component] is EnergyClass.MEASURED and value == 0
        if still and bracket.inner_seconds > _COUNTER_WAKES_SECONDS:
            return f"the {component} counter did not move over {bracket.inner_seconds:.3g} s"
    if counter_lost:
        return "the cpu counter could not be read, or ran backwards, at an edge of the window"
    if counter_range_joules and bracket.outer_seconds * _HIGHEST_PACKAGE_WATTS > counter_range_joules:
        return (
            f"over {bracket.outer_seconds:.0f} s the cpu counter, which turns over every "
            f"{counter_range_joules:.0f} J, may have lost a turn; use shorter windows"
        )
    if classes.get("cpu") is EnergyClass.MEASURED:
        highest_joules = _BEYOND_ANY_PACKAGE * counted_packages * (bracket.outer_seconds + _SLACK_SECONDS)
        if joules["cpu"] > highest_joules:
            return (
                f"the cpu counter moved by {joules['cpu']:.0f} J in {bracket.outer_seconds:.3g} s, which no "
                "processor draws: it was set back or jumped"
            )
    if not bracket.holds(task_seconds):
        return f"the tracker timed {task_seconds:.3f} s where {_words(bracket)} went by"
    if ram_watts:
        charged_seconds = joules.get("ram", 0.0) / ram_watts
        if not bracket.holds(charged_seconds):
            return f"RAM was charged for {charged_seconds:.3f} s where {_words(bracket)} went by"
    if gpu_counter_joules is not None and classes.get("gpu") is EnergyClass.MEASURED:
        return _gpu_fault(joules["gpu"], gpu_counter_joules, gpu_slack_joules)
    return ""


def _gpu_fault(charged_joules: float, counter_joules: float, slack_joules: float) -> str:
    if abs(charged_joules - counter_joules) <= _RELATIVE * abs(counter_joules) + slack_joules:
        return ""
    return f"the gpu counter moved by {counter_joules:.4g} J where the tracker charged {charged_joules:.4g} J"


def _is_energy(value: float | None) -> bool:
    return value is not None and isfinite(value) and value >= 0


def _words(bracket: Bracket) -> str:
    return f"{bracket.inner_seconds:.3f} to {bracket.outer_seconds:.3f} s"
