"""A CSV file with a header, column by column: what is a number, what is a word, and what is neither."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

from tpsprune.data.paths import expanded
from tpsprune.errors import DataError, did_you_mean

__all__ = ["TableFile", "read_table"]

PLACE: Final = "task.data.path"


@dataclass(frozen=True, slots=True)
class TableFile:
    """Cells by the name of their column, as written but for spaces round them, and the line of each row."""

    name: str
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, place: str) -> Sequence[str]:
        """Return the cells of a column, none of them empty; ``place`` is where in the recipe it is named.

        Raises:
            DataError: there is no such column, or a cell of it is empty.
        """
        if name not in self.columns:
            hint = did_you_mean(name, self.columns) or f" (columns: {', '.join(self.columns)})"
            raise DataError(f"{place}: {self.name} has no column '{name}'{hint}")
        cells = self.columns[name]
        for line, cell in zip(self.lines, cells, strict=True):
            if not cell:
                raise DataError(
                    f"{PLACE}: {self.name} line {line}: column '{name}' is empty; a value, or "
                    f"task.data.leave_out = ['{name}'], would do"
                )
        return cells

    def numbers(self, name: str, place: str) -> list[float] | None:
        """Return a column as numbers, nothing where no cell of it is one.

        Raises:
            DataError: there is no such column, a cell is empty or not finite, or only some are numbers.
        """
        cells = self.column(name, place)
        found = [_number(cell) for cell in cells]
        if all(value is None for value in found):
            return None
        for line, cell, value in zip(self.lines, cells, found, strict=True):
            if value is None or not isfinite(value):
                words = "no number, and other cells are" if value is None else "no finite number"
                raise DataError(
                    f"{PLACE}: {self.name} line {line}: '{_short(cell)}' in column '{name}' is {words}; "
                    f"a number, or task.data.categorical = ['{name}'], would do"
                )
        return [value for value in found if value is not None]


def read_table(path: str) -> TableFile:
    """Read a CSV file: commas between cells, quotes where a cell holds one, column names in the first row.

    Blank lines are passed over.

    Raises:
        DataError: it is not there, not UTF-8, empty, without a header, a row has another number of cells, or
            two columns have one name.
    """
    file = expanded(path, PLACE)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            try:
                rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
            except csv.Error as error:
                raise DataError(f"{PLACE}: {file} line {reader.line_num}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{PLACE}: {file} is not there; a CSV file with a header would do") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{PLACE}: {file} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{PLACE}: {file} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise DataError(f"{PLACE}: {file} is empty; a header and rows below it would do")
    (_, header), *body = rows
    _check_header(str(file), header)
    if not body:
        raise DataError(f"{PLACE}: {file} has a header and no rows; rows below it would do")
    for line, row in body:
        if len(row) != len(header):
            raise DataError(
                f"{PLACE}: {file} line {line} has {len(row)} cells, the header {len(header)}; as many of "
                "both would do"
            )
    columns = {name: [row[place] for _, row in body] for place, name in enumerate(header)}
    return TableFile(str(file), columns, [line for line, _ in body])


def _check_header(file: str, header: Sequence[str]) -> None:
    if all(_number(name) is not None for name in header):
        raise DataError(
            f"{PLACE}: {file} has no header: its first row holds numbers alone; a row with the names of the "
            "columns before it would do"
        )
    for place, name in enumerate(header, start=1):
        if not name:
            raise DataError(f"{PLACE}: {file}: column {place} of {len(header)} has no name; one would do")
        if header.index(name) + 1 != place:
            raise DataError(f"{PLACE}: {file} has two columns '{name}'; names that differ would do")


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _short(cell: str) -> str:
    return cell if len(cell) <= 30 else f"{cell[:27]}..."
