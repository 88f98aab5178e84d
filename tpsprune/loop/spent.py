"""What one run took: metered windows, and what metered them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, Self, final
from uuid import uuid4

from tpsprune.claims.window_sums import class_words, joules_of, seconds_of
from tpsprune.errors import Fault, RecipeError
from tpsprune.loop.plain import is_number
from tpsprune.records import EnergyClass, EnergyMethod, Window

__all__ = ["Spent"]

GIVEN: Final = "numbers of the user"
"""The meter of figures that no meter of ours took."""
SOURCES: Final = {
    "wall": EnergyClass.MEASURED,
    "counters": EnergyClass.MEASURED,
    "model": EnergyClass.MODELLED,
    "constant": EnergyClass.CONSTANT,
}


@final
@dataclass(frozen=True, slots=True)
class Spent:
    """The windows of one run, and the method by which they were metered; ``Meter.take`` makes it.

    Two may hold the same figures; ``receipt`` tells whether they are one and the same, handed in twice.

    >>> import tpsprune
    >>> spent = tpsprune.Spent.of_numbers(joules=5200.0, seconds=310.0, source="wall")
    >>> spent.joules, spent.energy_class
    (5200.0, 'measured')
    """

    windows: tuple[Window, ...]
    method: EnergyMethod
    receipt: str = field(default_factory=lambda: uuid4().hex, repr=False, compare=False)

    @property
    def joules(self) -> float | None:
        """The sum over windows; ``None`` where one of them was not metered, or there is none."""
        return joules_of(self.windows)

    @property
    def seconds(self) -> float:
        """The sum of their wall seconds."""
        return seconds_of(self.windows)

    @property
    def energy_class(self) -> str:
        """How the joules were come by: the classes of all components."""
        return class_words(self.windows)

    @classmethod
    def of_numbers(
        cls, *, joules: float, seconds: float, source: Literal["wall", "counters", "model", "constant"]
    ) -> Self:
        """Return what a run took by a meter of the user's own, one figure for the whole of it.

        ``source``: a meter at the ``wall``, hardware ``counters``, a power ``model``, or ``constant`` watts
        times seconds. The report takes that as the user says it, and says whose word it is. Nothing is known
        of neighbours on the machine, nor of the watts behind a model: figures of ``model`` and ``constant``
        never come to a claim, for its sign might hang on them.

        Raises:
            RecipeError: a figure is not a number above zero, or the source is none of these.
        """
        faults = [
            Fault(name, f"must be a number above 0 (found {value!r})")
            for name, value in (("joules", joules), ("seconds", seconds))
            if not (is_number(value) and value > 0)
        ]
        if not isinstance(source, str) or source not in SOURCES:
            faults.append(Fault("source", f"must be one of {', '.join(SOURCES)} (found {source!r})"))
        if faults:
            raise RecipeError("Spent", faults)
        part = "wall" if source == "wall" else "whole"
        classes = {part: SOURCES[source]}
        window = Window(
            phase="train",
            index=0,
            attempt=0,
            seconds=float(seconds),
            cpu_seconds=0.0,
            joules={part: float(joules)},
            classes=dict(classes),
            started="",
        )
        method = EnergyMethod(
            meter=GIVEN,
            scope="what the user says",
            classes=classes,
            details={"source": source},
            excluded=("whatever these numbers leave out",),
        )
        return cls((window,), method)
