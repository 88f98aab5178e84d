"""Numbers as people read them: three figures and a unit."""

from __future__ import annotations

__all__ = ["bytes_", "count", "joules", "seconds", "share"]

_SMALL = ((1e-9, "n"), (1e-6, "µ"), (1e-3, "m"))


def joules(value: float | None) -> str:
    """Return joules with a fitting prefix; ``not metered`` where there is no figure.

    >>> joules(0.5), joules(1234.5), joules(None)
    ('0.5 J', '1.23 kJ', 'not metered')
    """
    if value is None:
        return "not metered"
    for size, prefix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_three(value / size)} {prefix}J"
    return f"{_three(value)} J"


def seconds(value: float) -> str:
    """Return a time span: from nanoseconds to hours.

    >>> seconds(0.000345), seconds(2.5), seconds(125.0), seconds(7380.0)
    ('345 µs', '2.50 s', '2 min 05 s', '2 h 03 min')
    """
    if value >= 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60):02d} min"
    if value >= 120:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    for size, prefix in _SMALL:
        if 0 < value < size * 999.5:
            return f"{_three(value / size)} {prefix}s"
    return f"{_three(value)} s"


def bytes_(value: int) -> str:
    """Return a size in bytes, decimal prefixes.

    >>> bytes_(512), bytes_(230_400)
    ('512 B', '230 kB')
    """
    for size, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{_three(value / size)} {prefix}B"
    return f"{value} B"


def count(value: int) -> str:
    """Return a whole number with thousands set apart.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{value:,}"


def share(value: float) -> str:
    """Return a ratio with two decimals.

    >>> share(0.3849)
    '0.38'
    """
    return f"{value:.2f}"


def _three(value: float) -> str:
    """Return three significant figures without an exponent.

    >>> _three(1.0), _three(12.345), _three(123.45), _three(0.01234), _three(0.0)
    ('1.00', '12.3', '123', '0.0123', '0.00')
    """
    if value == 0:
        return "0.00"
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    if abs(value) >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3g}"
