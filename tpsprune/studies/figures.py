"""Numbers as this room prints them."""

from __future__ import annotations

__all__ = ["count", "cpu_seconds", "ratio"]


def count(value: int) -> str:
    """Return a whole number with thousands set apart.

    >>> count(2550)
    '2,550'
    """
    return f"{value:,}"


def ratio(value: float) -> str:
    """Return a ratio with three significant figures.

    >>> ratio(8.2146), ratio(12.345), ratio(123.4)
    ('8.21', '12.3', '123')
    """
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def cpu_seconds(value: float) -> str:
    """Return processor seconds with one decimal, below ten with two.

    >>> cpu_seconds(33.71), cpu_seconds(0.456)
    ('33.7', '0.46')
    """
    return f"{value:.{1 if value >= 9.995 else 2}f}"
