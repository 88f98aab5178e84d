"""Windows summed: by phase, in all, and what going on densely would have taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum

from tpsprune.records import Cost, EnergyClass, PhaseEnergy, Window

__all__ = ["by_phase", "class_of", "total"]


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
    look like a saving. A phase is valid when each of its windows is.
    """
    phases: dict[str, list[Window]] = {}
    for window in windows:
        phases.setdefault(window.phase, []).append(window)
    return {phase: _sum(members) for phase, members in phases.items()}


def total(windows: Iterable[Window]) -> Cost:
    """Sum all windows, failed attempts included; joules as in ``by_phase``."""
    every = list(windows)
    return Cost(
        joules=_joules(every),
        seconds=fsum(window.seconds for window in every),
        cpu_seconds=fsum(window.cpu_seconds for window in every),
    )


def _sum(windows: Sequence[Window]) -> PhaseEnergy:
    components = dict.fromkeys(component for window in windows for component in window.joules)
    return PhaseEnergy(
        windows=len(windows),
        seconds=fsum(window.seconds for window in windows),
        cpu_seconds=fsum(window.cpu_seconds for window in windows),
        joules=_joules(windows),
        joules_by_component={
            component: fsum(window.joules.get(component, 0.0) for window in windows)
            for component in components
        },
        energy_class=class_of(kind for window in windows for kind in _classes(window)),
        valid=all(window.valid for window in windows),
    )


def _joules(windows: Sequence[Window]) -> float | None:
    joules = [window.total_joules for window in windows]
    known = [value for value in joules if value is not None]
    return fsum(known) if known and len(known) == len(joules) else None


def _classes(window: Window) -> Iterable[EnergyClass]:
    return window.classes.values() or (EnergyClass.NONE,)
