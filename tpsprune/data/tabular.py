"""Tables: a vector an item, columns of numbers standardised, categories one-hot, one column to predict.

Shapes: n rows, f features.
"""

from __future__ import annotations

import csv
import errno
import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tpsprune.data.dataset import (
    Dataset,
    Preparation,
    Split,
    expand_home,
    require_every_class,
    require_rest,
    sklearn_data,
    split_off,
    stratified_order,
)
from tpsprune.errors import DataError, did_you_mean
from tpsprune.recipe.task import TabularData, labels_wanted
from tpsprune.records import TaskFacts
from tpsprune.runs import read_bytes

MOST_WORDS: Final = 256
"""The most categories of a column; more are names, one for each row."""
MOST_NAMED: Final = 20
MAX_BYTES: Final = 2**26
GROWTH: Final = 16
"""The bytes that a table may take for each that its file may have."""
TARGET: Final = "task.data.target"


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """All rows: features, of which ``scaled_f`` are standardised, and labels, classes or numbers (n,).

    ``names_f`` are the columns that features come from.
    """

    name: str
    names_f: tuple[str, ...]
    features_nf: Tensor
    scaled_f: Tensor
    labels_n: Tensor

    def split(self) -> Split:
        return Split(self.features_nf, self.labels_n)


def tabular_dataset(data: TabularData, loss: str = "cross-entropy") -> Dataset:
    """Return the rows, test and validation drawn off with ``split_seed``, classes in proportion.

    Columns of numbers, and a target that is a number, are in standard deviations of the training split
    about its mean; a column that never varies there is 0. Of a column of text each category is a feature, 1
    or 0, in sorted order; classes are numbered in the order of theirs. R² is the same in any unit of the
    target, and a model's outputs are in those of this one.

    Raises:
        DataError: the file is not as ``read_table`` has it, a column that is named is not there, the target
            is not what the loss wants, or the shares leave a split empty or without some class.
    """
    require_rest(data)
    classed = labels_wanted(data, loss) == "classes" if data.source is None else data.source != "diabetes"
    table = _of_file(data, classed=classed) if data.source is None else _of_source(data.source)
    generator = torch.Generator().manual_seed(data.split_seed)
    whole = table.split()

    def drawn(split: Split, share: float, key: str) -> tuple[Split, Split]:
        order_n = (
            stratified_order(split.labels, generator)
            if classed
            else torch.randperm(len(split), generator=generator)
        )
        return split_off(split, order_n, share, f"task.data.{key}")

    pool, test = drawn(whole, data.test_share, "test_share")
    train, validation = drawn(pool, data.validation_share / (1 - data.test_share), "validation_share")
    if classed:
        for role, part in (("test", test), ("validation", validation), ("training", train)):
            key = "test_share" if part is test else "validation_share"
            require_every_class(part, role, whole, f"task.data.{key}")
    features = _scaling(train.inputs, table.scaled_f)
    target = None if classed else _scaling(train.labels[:, None], torch.tensor([True]))

    def scaled(part: Split) -> Split:
        inputs_nf = _scaled(part.inputs, table.names_f, features)
        if target is None:
            return replace(part, inputs=inputs_nf)
        return Split(inputs_nf, _scaled(part.labels[:, None], [data.target or "target"], target)[:, 0])

    return Dataset(
        name=table.name,
        facts=TaskFacts(
            input_kind="vector",
            input_shape=(table.features_nf.shape[1],),
            classes=int(table.labels_n.max()) + 1 if classed else 1,
            loss=loss,
        ),
        train=scaled(train),
        validation=scaled(validation),
        test=scaled(test),
        prepare=Preparation(),
    )


def _scaling(values_nf: Tensor, scaled_f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit, mean and deviation (f,) of columns to be scaled; 1, 0, 1 of others.

    The unit is a power of two near the largest number, so that no square overflows or vanishes and no digit
    is lost; mean and deviation are in it. A column that never varies has deviation 1.
    """
    exponent_f = torch.frexp(values_nf.abs().amax(0)).exponent.numpy()
    unit_f = torch.where(scaled_f, torch.from_numpy(np.ldexp(1.0, exponent_f - 1)), 1.0)
    values_nf = values_nf / unit_f
    mean_f = torch.where(scaled_f, values_nf.mean(0), 0.0)
    deviation_f = torch.where(scaled_f, values_nf.std(0, correction=0), 1.0)
    return unit_f, mean_f, torch.where(deviation_f > 0, deviation_f, 1.0)


def _scaled(values_nf: Tensor, names_f: Sequence[str], scaling: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return values in standard deviations about the mean.

    Raises:
        DataError: one is further from it than single precision reaches.
    """
    unit_f, mean_f, deviation_f = scaling
    scaled_nf = ((values_nf / unit_f - mean_f) / deviation_f).float()
    if not bool(scaled_nf.isfinite().all()):
        row, column = (~scaled_nf.isfinite()).nonzero()[0].tolist()
        raise DataError(
            f"task.data: column '{names_f[column]}' holds {values_nf[row, column].item():g}, nowhere near "
            "the numbers of the training split; leave out that row or column"
        )
    return scaled_nf


def _of_file(data: TabularData, *, classed: bool) -> _Table:
    assert data.path is not None, "rules hold that there is a path or a source"
    assert data.target is not None, "rules hold that a path has a target"
    most_bytes = data.max_bytes or MAX_BYTES
    table = read_table(data.path, most_bytes)
    table.column(data.target, TARGET)
    for key, names in (("categorical", data.categorical), ("leave_out", data.leave_out)):
        for name in names:
            table.require(name, f"task.data.{key}")
            if name == data.target and (key == "leave_out" or not classed):
                raise DataError(f"task.data.{key}: '{name}' is the target")
    most_features = GROWTH * most_bytes // (8 * len(table))
    features: list[Tensor] = []
    scaled: list[bool] = []
    of_column: list[str] = []
    for name in table.columns:
        if name == data.target or name in data.leave_out:
            continue
        numbers = None if name in data.categorical else table.numbers(name, "task.data.path")
        columns_nw = (
            _one_hot(table, name, most_features - len(scaled))
            if numbers is None
            else torch.tensor(numbers, dtype=torch.float64)[:, None]
        )
        features.append(columns_nw)
        scaled += [numbers is not None] * columns_nw.shape[1]
        of_column += [name] * columns_nw.shape[1]
    if not features:
        raise DataError(f"task.data.path: {table.name} has no column but the target; expected one or more")
    labels_n = _classes(table, data) if classed else _numbers(table, data.target)
    stem = Path(table.name).stem
    return _Table(stem, tuple(of_column), torch.cat(features, dim=1), torch.tensor(scaled), labels_n)


def _one_hot(table: TableFile, name: str, most_features: int) -> Tensor:
    cells = table.column(name, "task.data.path")
    kinds = sorted(set(cells))
    if len(kinds) > MOST_WORDS:
        raise DataError(
            f"task.data.path: {table.name}: column '{name}' holds {len(kinds)} different words: names "
            f"rather than kinds (expected at most {MOST_WORDS}); set task.data.leave_out = ['{name}']"
        )
    if len(kinds) > most_features:
        raise DataError(
            f"task.data.path: {table.name}: with a feature for each of {len(kinds)} words of column '{name}' "
            f"the table outgrows {GROWTH} times task.data.max_bytes; set task.data.leave_out = ['{name}'] "
            "or raise task.data.max_bytes"
        )
    rank = {kind: place for place, kind in enumerate(kinds)}
    places_n = torch.tensor([rank[cell] for cell in cells])
    return torch.nn.functional.one_hot(places_n, len(kinds)).double()


def _classes(table: TableFile, data: TabularData) -> Tensor:
    assert data.target is not None, "rules hold that a path has a target"
    cells = table.column(data.target, TARGET)
    numbers = None if data.target in data.categorical else table.numbers(data.target, TARGET)
    if numbers is None:
        kinds = sorted(set(cells))
    else:
        # Numbers in their own order, so that 10 comes after 9.
        number_of = dict(zip(cells, numbers, strict=True))
        kinds = sorted(number_of, key=number_of.__getitem__)
        for one, other in pairwise(kinds):
            if number_of[one] == number_of[other]:
                raise DataError(
                    f"{TARGET}: '{data.target}' holds '{one}' and '{other}', which are one number; write "
                    f"it in one way or set task.data.categorical = ['{data.target}']"
                )
    if len(kinds) < 2:
        raise DataError(f"{TARGET}: '{data.target}' holds only one class; expected two classes or more")
    if 2 * len(kinds) > len(table):
        raise DataError(
            f"{TARGET}: '{data.target}' holds {len(kinds)} different values in {len(table)} rows, too many "
            "for classes; if they are numbers to be estimated, set task.loss = 'mse'"
        )
    rank = {kind: place for place, kind in enumerate(kinds)}
    return torch.tensor([rank[cell] for cell in cells])


def _numbers(table: TableFile, target: str) -> Tensor:
    numbers = table.numbers(target, TARGET)
    if numbers is None:
        raise DataError(
            f"{TARGET}: '{target}' holds words ('{table.columns[target][0]}'); use numbers or set "
            "task.loss = 'cross-entropy'"
        )
    if len(set(numbers)) < 2:
        raise DataError(f"{TARGET}: '{target}' never varies: there is nothing to estimate")
    return torch.tensor(numbers, dtype=torch.float64)


def _of_source(source: str) -> _Table:
    """Return a table that comes with scikit-learn.

    Raises:
        DataError: scikit-learn is not installed whole.
    """
    home = sklearn_data()
    try:
        if source == "diabetes":
            with gzip.open(home / "diabetes_data_raw.csv.gz", "rt", encoding="ascii") as file:
                features = np.loadtxt(file)
            with gzip.open(home / "diabetes_target.csv.gz", "rt", encoding="ascii") as file:
                labels_n = torch.from_numpy(np.loadtxt(file))
        else:
            name = {"breast-cancer": "breast_cancer.csv", "wine": "wine_data.csv"}[source]
            table = np.loadtxt(home / name, delimiter=",", skiprows=1)
            features, labels_n = table[:, :-1], torch.from_numpy(table[:, -1]).to(torch.int64)
    except (OSError, ValueError) as error:
        raise DataError(
            f"task.data.source: scikit-learn's table '{source}' is not there or cannot be read; "
            "run `pip install scikit-learn`"
        ) from error
    features_nf = torch.from_numpy(np.ascontiguousarray(features))
    names = tuple(f"feature {place}" for place in range(1, features_nf.shape[1] + 1))
    return _Table(source, names, features_nf, torch.ones(len(names), dtype=torch.bool), labels_n)


PLACE: Final = "task.data.path"


@dataclass(frozen=True, slots=True)
class TableFile:
    """Cells by the name of their column, as written but for spaces round them, and the line of each row."""

    name: str
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def require(self, name: str, place: str) -> None:
        """Refuse the name of a column that is not there; ``place`` is where in the recipe it stands."""
        if name not in self.columns:
            hint = (
                did_you_mean(name, self.columns) or f" (columns: {', '.join([*self.columns][:MOST_NAMED])})"
            )
            raise DataError(f"{place}: {self.name} has no column '{name}'{hint}")

    def column(self, name: str, place: str) -> Sequence[str]:
        """Return the cells of a column, none of them empty; ``place`` is where in the recipe it is named.

        Raises:
            DataError: there is no such column, or a cell of it is empty.
        """
        self.require(name, place)
        cells = self.columns[name]
        for line, cell in zip(self.lines, cells, strict=True):
            if not cell:
                raise DataError(
                    f"{PLACE}: {self.name} line {line}: column '{name}' is empty; fill it or "
                    f"set task.data.leave_out = ['{name}']"
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
                fault = "no number, and other cells are" if value is None else "no finite number"
                raise DataError(
                    f"{PLACE}: {self.name} line {line}: '{_short(cell)}' in column '{name}' is {fault}; "
                    f"use a number or set task.data.categorical = ['{name}']"
                )
        return [value for value in found if value is not None]


def read_table(path: str, most_bytes: int = MAX_BYTES) -> TableFile:
    """Read a CSV file: commas between cells, quotes where a cell holds one, column names in the first row.

    Blank lines are passed over.

    Raises:
        DataError: it is not there, longer than ``most_bytes``, not UTF-8, empty, without a header, a row has
            another number of cells, or two columns have one name.
    """
    file = expand_home(path, PLACE)
    try:
        text = read_bytes(file, most_bytes).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{PLACE}: {file} line {reader.line_num}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{PLACE}: {file} is not there; expected a CSV file with a header") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{PLACE}: {file} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        hint = "; task.data.max_bytes = BYTES reads more" if error.errno == errno.EFBIG else ""
        raise DataError(f"{PLACE}: {file} cannot be read: {error.strerror or error}{hint}") from error
    if not rows:
        raise DataError(f"{PLACE}: {file} is empty; expected a header and rows below it")
    (_, header), *body = rows
    _check_header(str(file), header)
    if not body:
        raise DataError(f"{PLACE}: {file} has a header and no rows; expected rows below it")
    for line, row in body:
        if len(row) != len(header):
            raise DataError(
                f"{PLACE}: {file} line {line} has {len(row)} cells, the header {len(header)}; expected "
                "equally many"
            )
    columns = {name: [row[place] for _, row in body] for place, name in enumerate(header)}
    return TableFile(str(file), columns, [line for line, _ in body])


def _check_header(file: str, header: Sequence[str]) -> None:
    if all(_number(name) is not None for name in header):
        raise DataError(
            f"{PLACE}: {file} has no header: its first row holds numbers alone; add a row with the names of "
            "the columns before it"
        )
    seen: set[str] = set()
    for place, name in enumerate(header, start=1):
        if not name:
            raise DataError(f"{PLACE}: {file}: column {place} of {len(header)} has no name; expected one")
        if name in seen:
            raise DataError(f"{PLACE}: {file} has two columns '{name}'; expected names that differ")
        seen.add(name)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _short(cell: str) -> str:
    return cell if len(cell) <= 30 else f"{cell[:27]}..."
