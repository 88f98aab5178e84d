"""The grade of windows of runs as a whole, and the foreign load over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum
from typing import Final

from tpsprune.records import EnergyClass, Grade, Window, seconds_of

DOMINANT_SHARE: Final = 0.9
"""Share of the joules from counters at which the grade is B."""
MOSTLY: Final = 0.5
MEANINGS: Final = {
    "A": "a wall meter",
    "B": "hardware counters for all that matters",
    "C": "hardware counters for a part, models and constants for the rest",
    "D": "a model of the load, no counter",
    "E": "mostly assumed watts × time: a saving is one of time",
    "S": "a simulated meter: no figure is of a machine",
    "-": "nothing was metered",
}


def shares_by_class(windows: Iterable[Window]) -> dict[EnergyClass, float]:
    """Return the share of all joules by class, each component by its own."""
    joules: dict[EnergyClass, float] = {}
    for window in windows:
        for component, value in window.joules.items():
            kind = window.classes[component]
            joules[kind] = joules.get(kind, 0.0) + value
    whole = fsum(joules.values())
    return {kind: value / whole for kind, value in joules.items()} if whole > 0 else {}


def grade_of(windows: Sequence[Window]) -> Grade:
    """Return the grade of a set of windows.

    A: a wall meter's own component. B: at least nine tenths of the joules from hardware counters. C: some
    from counters. D: none, and constants no more than half. E: more than half assumed watts times time. S:
    simulated.
    """
    shares = shares_by_class(windows)
    measured, modelled, constant = (
        shares.get(kind, 0.0) for kind in (EnergyClass.MEASURED, EnergyClass.MODELLED, EnergyClass.CONSTANT)
    )
    if not shares:
        letter = "-"
    elif EnergyClass.SIMULATED in shares:
        letter = "S"
    elif all("wall" in window.joules for window in windows):
        letter = "A"
    elif measured > 0:
        letter = "B" if measured >= DOMINANT_SHARE else "C"
    else:
        letter = "E" if constant > MOSTLY else "D"
    return Grade(
        letter=letter,
        meaning=MEANINGS[letter],
        measured_share=measured,
        modelled_share=modelled,
        constant_share=constant,
    )


def load_share(windows: Iterable[Window], logical_cpus: int) -> float | None:
    """Return the share of the machine's processors that others took over windows; ``None`` where not known.

    (processor seconds of everybody − our own) / (seconds × logical processors). Processes of our own count as
    others where they are not this one.
    """
    read = [window for window in windows if window.machine_cpu_seconds is not None]
    seconds = seconds_of(read)
    if not read or seconds == 0:
        return None
    others = fsum((window.machine_cpu_seconds or 0.0) - window.cpu_seconds for window in read)
    return max(others, 0.0) / (seconds * logical_cpus)
