"""Energy as it was obtained: joules never travel without their class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import fsum
from typing import Annotated, Final, Literal

from pydantic import Field

from tpsprune.records.serial import MOST_JOULES, AtLeastZero, Celsius, Joules, Natural, Seconds, Text

JOULES_PER_KWH: Final = 3.6e6


class EnergyClass(StrEnum):
    """How a figure was obtained, from best to worst; a sum is as good as its worst part.

    ``measured``: a hardware counter (RAPL, NVML). ``modelled``: load times rated power.
    ``constant``: assumed watts times seconds. ``mixed``: parts of several classes.
    ``simulated``: a meter for tests. ``none``: nothing was metered.
    """

    MEASURED = "measured"
    MODELLED = "modelled"
    CONSTANT = "constant"
    MIXED = "mixed"
    SIMULATED = "simulated"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyMethod:
    """What metered a run, component by component (``cpu``, ``gpu``, ``ram``), and what it left out."""

    meter: str
    scope: str
    classes: dict[str, EnergyClass] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One metered span of one phase; ``joules`` by component, empty when nothing was metered.

    ``cpu_seconds`` is processor time of this process and its children over the window; ``attempt`` counts
    resumes, so that energy spent on work that a kill threw away is counted. ``machine_cpu_seconds``
    is the processor time of everybody on the machine, ``steal_seconds`` what a hypervisor took,
    ``gpu_celsius`` and ``throttled`` are the hottest GPU's at the window's end: ``None`` where not known.
    """

    phase: Text
    index: Natural
    attempt: Natural
    seconds: Seconds
    cpu_seconds: Seconds
    joules: dict[str, Joules]
    classes: dict[str, EnergyClass]
    started: str
    valid: bool = True
    fault: str = ""
    machine_cpu_seconds: Seconds | None = None
    steal_seconds: Seconds | None = None
    gpu_celsius: Celsius | None = None
    throttled: bool | None = None

    def __post_init__(self) -> None:
        """Refuse joules that have no class."""
        if without := [part for part in self.joules if part not in self.classes]:
            raise ValueError(f"joules of '{without[0]}' have no class in classes")

    @property
    def total_joules(self) -> float | None:
        """Sum over components; ``None`` when nothing was metered."""
        return sum(self.joules.values()) if self.joules else None


def without_impossible(window: Window) -> Window:
    """Return the window as it may be written down: joules that cannot be are missing, and it is not valid.

    A negative figure in a sum would pass for a saving. Times below zero, of a clock set back, become zero.
    """
    joules = {part: each for part, each in window.joules.items() if 0.0 <= each <= MOST_JOULES}
    lost = [part for part in window.joules if part not in joules]
    return replace(
        window,
        joules=joules,
        seconds=max(0.0, window.seconds),
        cpu_seconds=max(0.0, window.cpu_seconds),
        valid=window.valid and not lost,
        fault=window.fault or (f"energy of {', '.join(lost)} is missing" if lost else ""),
    )


def joules_of(windows: Iterable[Window]) -> float | None:
    """Return the sum over windows; ``None`` where one was not metered, or there is none.

    A sum with a part missing would pass for a saving.
    """
    joules = [window.total_joules for window in windows]
    metered = [each for each in joules if each is not None]
    return fsum(metered) if metered and len(metered) == len(joules) else None


def join_classes(classes: Iterable[EnergyClass]) -> str:
    """Return the classes of a sum joined by plus signs, best first, each once.

    >>> join_classes([EnergyClass.CONSTANT, EnergyClass.MODELLED, EnergyClass.CONSTANT])
    'modelled + constant'
    >>> join_classes([])
    'none'
    """
    found = set(classes) - {EnergyClass.MIXED, EnergyClass.NONE}
    return " + ".join(each.value for each in EnergyClass if each in found) or EnergyClass.NONE.value


def classes_of(windows: Iterable[Window]) -> str:
    """Return the classes of the joules of windows; see ``join_classes``."""
    return join_classes(kind for window in windows for kind in window.classes.values())


def seconds_of(windows: Iterable[Window]) -> float:
    """Return the sum of wall seconds."""
    return fsum(window.seconds for window in windows)


def cpu_seconds_of(windows: Iterable[Window]) -> float:
    """Return the sum of processor seconds."""
    return fsum(window.cpu_seconds for window in windows)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnergy:
    """All windows of one phase, summed; ``energy_class`` is that of the whole sum."""

    joules: AtLeastZero | None
    seconds: AtLeastZero
    energy_class: Annotated[EnergyClass, Field(alias="class")]
    cpu_seconds: AtLeastZero
    joules_by_component: dict[str, AtLeastZero]
    windows: Natural
    valid: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Joules (``None`` when nothing was metered), wall seconds and processor seconds."""

    joules: AtLeastZero | None
    seconds: AtLeastZero
    cpu_seconds: AtLeastZero


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection(Cost):
    """What was not run but follows from what was: no measurement, and its class is ``projection``."""

    energy_class: Annotated[Literal["projection"], Field(alias="class")] = "projection"
