"""The readings of a wall meter, from the CSV that a plug or a power strip with a meter writes."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from io import StringIO
from math import isfinite, nan
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from tpsprune.errors import MeterError
from tpsprune.runs import read_bytes

Floats: TypeAlias = npt.NDArray[np.float64]

_DELIMITERS: Final = {";": "semicolons", "\t": "tabs", ",": "commas"}
_TIME: Final = re.compile(r"time|date", re.IGNORECASE)
_POWER: Final = re.compile(r"(?:^|[^a-z]|power)(k?w|(?:kilo)?watts?)(?:$|[^a-z])", re.IGNORECASE)
_UTC: Final = re.compile(r"(?:^|[^a-z])utc(?:$|[^a-z])", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_WANTED: Final = (
    "a time (timestamp, time or date in its name) and a power with its unit in its name (watts, power_w, kW)"
)
_SECONDS: Final = (1e8, 4.1e9)
"""Seconds since the epoch that a reading can be of, 1973 to 2099."""
_LEAST_MILLISECONDS: Final = 1e11


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class WallMeter:
    """Readings of a wall meter in ascending order: ``seconds`` since the epoch, and ``watts`` then.

    ``sha256`` is that of the file. Both arrays have the same length, two at least.
    """

    name: str
    sha256: str
    seconds: Floats
    watts: Floats

    @cached_property
    def interval_seconds(self) -> float:
        """The median time between two readings."""
        return float(np.median(np.diff(self.seconds)))


class _Columns(NamedTuple):
    delimiter: str
    time: int
    power: int
    width: int
    watts_per_unit: float
    says_utc: bool


def read_wall_meter(path: Path, *, follow: bool = True) -> WallMeter:
    """Read a wall meter's CSV: a header, then a time and a power on each line.

    Columns are found by their names in any case: one with ``time`` or ``date`` in it, one that names its
    unit (W, watts, kW, kilowatts); others are not read. Parted by semicolons, tabs or commas; with the first
    two, numbers may have a decimal comma. Times are ISO 8601 with a zone, or seconds or milliseconds since
    the epoch; without a zone only under a column that says UTC. Blank lines are skipped. Neither a zone nor
    a unit is ever guessed.

    Without ``follow`` a link is refused.

    It does not see whether power is a sample or a mean over the interval, how good the meter is, or what
    else hangs on it.

    Raises:
        MeterError: the file cannot be read or is not UTF-8, lacks a column, or has two that could be it; a
            line has a fault (all with its number): columns missing, a time or power that is none, is
            negative or not finite, a time not after the one before; there are fewer than two readings.

    Cost: 5 to 10 µs a line, half a second for a day at 1 Hz.
    """
    try:
        raw = read_bytes(path, follow=follow)
    except OSError as error:
        raise MeterError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise MeterError(f"{path}: line {line} is not UTF-8: save the file as CSV in UTF-8") from error
    seconds, watts = _read_lines(str(path), text)
    return WallMeter(name=path.name, sha256=hashlib.sha256(raw).hexdigest(), seconds=seconds, watts=watts)


def _read_lines(place: str, text: str) -> tuple[Floats, Floats]:
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise MeterError(f"{place}: is empty: wanted are a header and lines of {_WANTED}")
    columns = _columns_of(place, first)
    seconds: list[float] = []
    watts: list[float] = []
    to_seconds: Callable[[str], float] | None = None
    for line, cells in _lines(place, text, columns.delimiter):
        if len(cells) != columns.width:
            raise MeterError(
                f"{place}: line {line} has {len(cells)} columns where the header has {columns.width}"
                f" (parted by {_DELIMITERS[columns.delimiter]})"
            )
        time, power = cells[columns.time].strip(), cells[columns.power].strip()
        try:
            if to_seconds is None:
                to_seconds = _clock_of(time, columns.says_utc)
            moment = to_seconds(time)
            value = _watts_of(power, columns)
        except ValueError as fault:
            raise MeterError(f"{place}: line {line}: {fault}") from None
        if seconds and moment <= seconds[-1]:
            raise MeterError(
                f"{place}: line {line}: time {time} is not after that of the reading before: readings must"
                " be in order, each at a moment of its own"
            )
        seconds.append(moment)
        watts.append(value)
    if len(seconds) < 2:
        raise MeterError(f"{place}: holds {len(seconds)} readings; at least two are needed")
    return np.asarray(seconds), np.asarray(watts)


def _lines(place: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
    header = True
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                yield reader.line_num, cells
            header = False
    except csv.Error as error:
        raise MeterError(f"{place}: line {reader.line_num} is no CSV ({error})") from error


def _columns_of(place: str, header: str) -> _Columns:
    """Return where time and power are, by the delimiter under which the header has both."""
    try:
        splits = {mark: next(csv.reader([header], delimiter=mark)) for mark in _DELIMITERS}
    except csv.Error as error:
        raise MeterError(f"{place}: the header is no CSV ({error})") from error
    for mark, names in splits.items():
        times = [rank for rank, name in enumerate(names) if _TIME.search(name)]
        powers = [rank for rank, name in enumerate(names) if rank not in times and _POWER.search(name)]
        if not (times and powers):
            continue
        for what, ranks in (("time", times), ("power", powers)):
            if len(ranks) > 1:
                raise MeterError(
                    f"{place}: more than one column could be the {what} ({_quote(names, ranks)}): leave one"
                )
        unit = _POWER.search(names[powers[0]])
        assert unit is not None
        return _Columns(
            delimiter=mark,
            time=times[0],
            power=powers[0],
            width=len(names),
            watts_per_unit=1000.0 if unit[1].lower().startswith("k") else 1.0,
            says_utc=_UTC.search(names[times[0]]) is not None,
        )
    names = max(splits.values(), key=len)
    raise MeterError(f"{place}: columns found: {_quote(names, range(len(names)))}; wanted: {_WANTED}")


def _clock_of(time: str, says_utc: bool) -> Callable[[str], float]:
    """Return how to read times written as the first of them is."""
    if not _NUMBER.fullmatch(time):
        return lambda text: _seconds_of_date(text, says_utc)
    unit, scale = ("milliseconds", 1000) if float(time) >= _LEAST_MILLISECONDS else ("seconds", 1)

    def seconds_of(text: str) -> float:
        seconds = float(text) / scale if _NUMBER.fullmatch(text) else nan
        if not _SECONDS[0] <= seconds < _SECONDS[1]:
            raise ValueError(f"'{text}' is no time in {unit} since the epoch, 1970-01-01T00:00:00Z")
        return seconds

    return seconds_of


def _seconds_of_date(time: str, says_utc: bool) -> float:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise ValueError(
            f"'{time}' is no time: write it as ISO 8601 with a zone, as 2025-01-31T12:00:00Z, or as seconds"
            " or milliseconds since the epoch"
        ) from None
    if moment.tzinfo is None:
        if not says_utc:
            raise ValueError(
                f"time '{time}' has no zone, and none is guessed: write it with one, as 2025-01-31T12:00:00Z"
                " or 2025-01-31T13:00:00+01:00, or name the column timestamp_utc if it is UTC"
            )
        moment = moment.replace(tzinfo=UTC)
    seconds = moment.timestamp()
    if not _SECONDS[0] <= seconds < _SECONDS[1]:
        raise ValueError(f"time '{time}' cannot be: was the meter's clock set?")
    return seconds


def _watts_of(power: str, columns: _Columns) -> float:
    number = power if columns.delimiter == "," or "." in power else power.replace(",", ".")
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"power '{power}' is not a number: leave out lines without a reading")
    watts = float(number) * columns.watts_per_unit
    if not (isfinite(watts) and watts >= 0):
        raise ValueError(f"power '{power}' is {'negative' if isfinite(watts) else 'not finite'}")
    return watts


def _quote(names: Sequence[str], ranks: Sequence[int]) -> str:
    return ", ".join(f"'{names[rank].strip()}'" for rank in ranks)
