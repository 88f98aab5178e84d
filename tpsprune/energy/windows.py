"""Windows: what must hold of one, whatever the machine, and many of them summed in a ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite
from typing import Final

from tpsprune.records import Cost, EnergyClass, PhaseEnergy, Window, cpu_seconds_of, joules_of, seconds_of

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

    def __str__(self) -> str:
        return f"{self.inner_seconds:.3f} to {self.outer_seconds:.3f} s"


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

    Each invariant catches a fault that happens: energy that is missing or zero; a counter that did
    not move in more than a second; a counter that may have turned over twice (it can at 500 W within
    the window, and only one turn can be detected); a counter that moved further than ``counted_packages``
    draw at 1000 W each, as one that was set back does, which looks like a turn; a tracker that timed
    something else (``task_seconds``); energy charged for another time than went by (RAM, modelled as
    constant watts, is a clock: joules / ``ram_watts`` must be the duration); GPU energy that the boards'
    own counter, read apart at the same edges (``gpu_counter_joules``), does not bear out within 2 % and
    ``gpu_slack_joules``.
    """
    inner, outer = bracket.inner_seconds, bracket.outer_seconds
    present = {part for part, value in joules.items() if isfinite(value) and value >= 0}
    if missing := [part for part in classes if part not in present]:
        return f"energy of {', '.join(missing)} is missing"
    if sum(joules.values()) <= 0:
        return f"no energy at all over {inner:.3g} s"
    measured = {part for part, kind in classes.items() if kind is EnergyClass.MEASURED}
    still = [part for part, value in joules.items() if part in measured and value == 0]
    if still and inner > _COUNTER_WAKES_SECONDS:
        return f"the {still[0]} counter did not move over {inner:.3g} s"
    if counter_lost:
        return "the cpu counter could not be read, or ran backwards, at an edge of the window"
    if counter_range_joules and outer * _HIGHEST_PACKAGE_WATTS > counter_range_joules:
        return (
            f"over {outer:.0f} s the cpu counter, which turns over every "
            f"{counter_range_joules:.0f} J, may have lost a turn; use shorter windows"
        )
    highest_joules = _BEYOND_ANY_PACKAGE * counted_packages * (outer + _SLACK_SECONDS)
    if "cpu" in measured and joules["cpu"] > highest_joules:
        return (
            f"the cpu counter moved by {joules['cpu']:.0f} J in {outer:.3g} s, which no "
            "processor draws: it was set back or jumped"
        )
    if not bracket.holds(task_seconds):
        return f"the tracker timed {task_seconds:.3f} s where {bracket} went by"
    if ram_watts and not bracket.holds(charged_seconds := joules.get("ram", 0.0) / ram_watts):
        return f"RAM was charged for {charged_seconds:.3f} s where {bracket} went by"
    if gpu_counter_joules is not None and "gpu" in measured:
        allowed_joules = _RELATIVE * abs(gpu_counter_joules) + gpu_slack_joules
        if not abs(joules["gpu"] - gpu_counter_joules) <= allowed_joules:
            return (
                f"the gpu counter moved by {gpu_counter_joules:.4g} J where the tracker charged"
                f" {joules['gpu']:.4g} J"
            )
    return ""


def class_of(classes: Iterable[EnergyClass]) -> EnergyClass:
    """Return the class of a sum whose parts have ``classes``: theirs if it is one, else ``mixed``.

    >>> class_of([EnergyClass.MEASURED, EnergyClass.CONSTANT])
    <EnergyClass.MIXED: 'mixed'>
    >>> class_of([])
    <EnergyClass.NONE: 'none'>
    """
    kinds = set(classes)
    if len(kinds) > 1:
        return EnergyClass.MIXED
    return kinds.pop() if kinds else EnergyClass.NONE


def by_phase(windows: Iterable[Window]) -> dict[str, PhaseEnergy]:
    """Sum the windows of each phase, phases in the order they first began.

    Joules are ``None`` where any window of the phase was not metered: a sum with a part missing would
    pass for a saving. A phase is valid when each of its windows is.
    """
    phases: dict[str, list[Window]] = {}
    for window in windows:
        phases.setdefault(window.phase, []).append(window)
    return {phase: _sum(members) for phase, members in phases.items()}


def total(windows: Iterable[Window]) -> Cost:
    """Sum all windows, failed attempts included; joules as in ``by_phase``."""
    every = list(windows)
    return Cost(joules=joules_of(every), seconds=seconds_of(every), cpu_seconds=cpu_seconds_of(every))


def _sum(windows: Sequence[Window]) -> PhaseEnergy:
    whole = total(windows)
    components = dict.fromkeys(component for window in windows for component in window.joules)
    return PhaseEnergy(
        windows=len(windows),
        seconds=whole.seconds,
        cpu_seconds=whole.cpu_seconds,
        joules=whole.joules,
        joules_by_component={
            component: fsum(window.joules.get(component, 0.0) for window in windows)
            for component in components
        },
        energy_class=class_of(
            kind for window in windows for kind in window.classes.values() or (EnergyClass.NONE,)
        ),
        valid=all(window.valid for window in windows),
    )
