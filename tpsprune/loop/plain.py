"""Plain values: numbers that are numbers, and what JSON keeps as it is."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from numbers import Integral, Real
from typing import Any

from tpsprune.errors import Fault

__all__ = ["faults_of_plain", "is_number", "is_share", "is_whole"]


def is_number(value: Any) -> bool:
    """Return whether it is one finite number, NumPy's among them; a truth value is none.

    >>> is_number(2), is_number(0.5), is_number(True), is_number("2"), is_number(float("nan"))
    (True, True, False, False, False)
    """
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)
    except OverflowError:  # a whole number larger than any float
        return False


def is_whole(value: Any, lowest: int = 0) -> bool:
    """Return whether it is a whole number from ``lowest``, NumPy's among them; a truth value is none."""
    return isinstance(value, Integral) and is_number(value) and int(value) >= lowest


def is_share(value: Any) -> bool:
    """Return whether it is a number from 0 to 1."""
    return is_number(value) and 0.0 <= value <= 1.0


def faults_of_plain(value: Any, place: str) -> Iterator[Fault]:
    """Yield what of a value JSON would not give back as the same text each time: sets, tensors, NaN.

    >>> [str(fault) for fault in faults_of_plain({"lr": 0.1, "sizes": [8, {4}]}, "settings")]
    ['settings.sizes[1]: is a set; text, finite numbers, True, False, None, lists and dicts would do']
    """
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(key, str):
                yield from faults_of_plain(each, f"{place}.{key}")
            else:
                yield Fault(place, f"has a name that is no text (found {key!r})")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from faults_of_plain(each, f"{place}[{number}]")
    elif isinstance(value, float) and not isfinite(value):
        yield Fault(place, f"must be finite (found {value!r})")
    elif not (value is None or isinstance(value, str | int | float)):
        words = "text, finite numbers, True, False, None, lists and dicts would do"
        yield Fault(place, f"is a {type(value).__name__}; {words}")
