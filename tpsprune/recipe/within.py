"""``--within``: what a size of a family may cost, and how good it must be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tpsprune.errors import Fault, RecipeError, did_you_mean

UNITS: Final[dict[str, dict[str, float]]] = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "joules": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6},
    "parameters": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "macs": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "accuracy": {"": 1.0, "pt": 0.01},
}
"""By figure the units that its number may have; a number without one is only where an empty unit stands."""
EXAMPLES: Final = (
    "latency<=5ms, size<=2MB, joules<=0.3mJ, parameters<=1M, macs<=50M, accuracy>=-1pt, accuracy>=0.9"
)
LIMIT: Final = re.compile(r"^\s*(\w+)\s*(<=|>=)\s*(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*([A-Za-zµ]*)\s*$")


@dataclass(frozen=True, slots=True)
class Within:
    """A limit of one figure: at least or at most so much; ``relative`` is the dense model's plus that."""

    text: str
    figure: str
    value: float
    at_least: bool = False
    relative: bool = False

    def holds(self, found: float | None, dense: float) -> bool:
        """Return whether a figure is within; one that was not measured is not."""
        if found is None:
            return False
        value = dense + self.value if self.relative else self.value
        return found >= value if self.at_least else found <= value


def read_within(text: str, option: str = "--within") -> Within:
    """Return a limit from what a user typed.

    >>> read_within("latency<=5ms")
    Within(text='latency<=5ms', figure='latency', value=0.005, at_least=False, relative=False)
    >>> read_within("accuracy >= -1pt")
    Within(text='accuracy >= -1pt', figure='accuracy', value=-0.01, at_least=True, relative=True)

    Raises:
        RecipeError: it is none; names the option, what is wrong with it, and what is valid.
    """

    def fault(message: str) -> RecipeError:
        return RecipeError(option, [Fault(text, f"{message}; expected as in {EXAMPLES}")])

    match = LIMIT.match(text)
    if match is None:
        raise fault("is no limit")
    figure, sign, number, unit = match.groups()
    if figure not in UNITS:
        raise fault(f"no figure '{figure}'{did_you_mean(figure, UNITS)}")
    if unit not in UNITS[figure]:
        known = ", ".join(repr(each) for each in UNITS[figure] if each)
        raise fault(
            f"{figure} has no unit '{unit}' (units: {known})" if unit else f"{figure} needs a unit ({known})"
        )
    at_least, is_quality = sign == ">=", figure == "accuracy"
    if at_least is not is_quality:
        raise fault(f"{figure} is limited by {'>=' if is_quality else '<='}")
    return Within(text, figure, float(number) * UNITS[figure][unit], at_least, unit == "pt")
