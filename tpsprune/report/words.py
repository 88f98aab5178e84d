"""Numbers for readers: three figures and a unit."""

from __future__ import annotations

from math import isfinite, isnan

_SMALL = ((1e-9, "n"), (1e-6, "µ"), (1e-3, "m"))


def joules(value: float | None) -> str:
    """Return joules with a fitting prefix; ``not metered`` where there is no figure.

    >>> joules(0.5), joules(1234.5), joules(-12.0), joules(None)
    ('0.5 J', '1.23 kJ', '−12.0 J', 'not metered')
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


def percent(value: float) -> str:
    """Return a share of one in per cent: a decimal below ten, none above.

    >>> percent(0.4312), percent(0.0312), percent(-0.5), percent(float("inf"))
    ('43 %', '3.1 %', '−50 %', 'no bound')
    """
    if not isfinite(value):
        return "no bound"
    sign = "−" if value < 0 and _per_cent(value) not in {"0.0", "0"} else ""
    return f"{sign}{_per_cent(value)} %"


def change(saving_share: float) -> str:
    """Return a change in words; a positive share is less, a negative one more.

    >>> change(0.4312), change(-0.12), change(0.0001)
    ('43 % less', '12 % more', 'unchanged (less than 0.1 %)')
    """
    if isnan(saving_share):
        return "not known"
    if not isfinite(saving_share):
        return "no bound" if saving_share > 0 else "more without bound"
    if abs(saving_share) < 0.0005:
        return "unchanged (less than 0.1 %)"
    return f"{_per_cent(saving_share)} % {'less' if saving_share > 0 else 'more'}"


def change_between(low: float, high: float) -> str:
    """Return the bounds of a change in words, the direction once where both have the same.

    >>> change_between(0.31, 0.52), change_between(-0.03, 0.09), change_between(-0.2, -0.1)
    ('31 % to 52 % less', '3.0 % more to 9.0 % less', '10 % to 20 % more')
    """
    if not (isfinite(low) and isfinite(high)):
        return f"{change(low)} to {change(high)}"
    if low >= 0:
        return f"{percent(low)} to {percent(high)} less"
    if high <= 0:
        return f"{percent(-high)} to {percent(-low)} more"
    return f"{percent(-low)} more to {percent(high)} less"


def points(difference_share: float) -> str:
    """Return a difference of accuracies in percentage points and words.

    >>> points(-0.0042), points(0.012), points(0.0)
    ('0.42 points lower', '1.20 points higher', 'equal')
    """
    if abs(difference_share) < 0.00005:
        return "equal"
    return f"{abs(difference_share) * 100:.2f} points {'lower' if difference_share < 0 else 'higher'}"


def probability(value: float | None) -> str:
    """Return a p-value; below three decimals as a bound.

    >>> probability(0.031), probability(0.00002), probability(None)
    ('0.031', '< 0.001', '–')
    """
    if value is None or not isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def small_joules(value: float | None) -> str:
    """Return joules with prefixes below one as well, as of a single inference.

    >>> small_joules(0.0012), small_joules(0.0000034), small_joules(-0.5), small_joules(1500.0)
    ('1.20 mJ', '3.40 µJ', '−500 mJ', '1.50 kJ')
    """
    if value is None:
        return "not metered"
    sign = "−" if value < 0 else ""
    for size, prefix in _SMALL:
        if 0 < abs(value) < size * 999.5:
            return f"{sign}{_three(abs(value) / size)} {prefix}J"
    return f"{sign}{joules(abs(value))}"


def watt_hours(joules_: float | None) -> str:
    """Return an energy in the unit of electricity bills.

    >>> watt_hours(1224.0), watt_hours(7.2e6), watt_hours(-7.2)
    ('0.340 Wh', '2.00 kWh', '−2.00 mWh')
    """
    if joules_ is None:
        return "not metered"
    value = joules_ / 3600
    if abs(value) >= 1000:
        return f"{_three(value / 1000)} kWh"
    if 0 < abs(value) < 0.09995:
        return f"{_three(value * 1000)} mWh"
    return _minus(f"{value:.3f} Wh") if abs(value) < 0.9995 else f"{_three(value)} Wh"


def grams(value: float | None) -> str:
    """Return a mass.

    >>> grams(0.0012), grams(12.0), grams(3400.0), grams(None)
    ('1.20 mg', '12.0 g', '3.40 kg', 'not known')
    """
    if value is None:
        return "not known"
    if abs(value) >= 1000:
        return f"{_three(value / 1000)} kg"
    for size, prefix in _SMALL:
        if 0 < abs(value) < size * 999.5:
            return f"{_three(value / size)} {prefix}g"
    return f"{_three(value)} g"


def _per_cent(value: float) -> str:
    size = abs(value) * 100
    return f"{size:.1f}" if size < 9.95 else f"{size:,.0f}"


def _three(value: float) -> str:
    """Return three significant figures without an exponent, a negative number with a true minus.

    >>> _three(1.0), _three(12.345), _three(-123.45), _three(0.01234), _three(0.0)
    ('1.00', '12.3', '−123', '0.0123', '0.00')
    """
    if value == 0:
        return "0.00"
    if abs(value) >= 99.95:
        return _minus(f"{value:.0f}")
    if abs(value) >= 9.995:
        return _minus(f"{value:.1f}")
    if abs(value) >= 0.9995:
        return _minus(f"{value:.2f}")
    return _minus(f"{value:.3g}")


def _minus(text: str) -> str:
    return text.replace("-", "−")
