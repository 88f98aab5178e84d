"""Grams of CO₂ equivalents for a kilowatt-hour: a country's average by codecarbon, or the user's own.

The table is read as a file of the installed package: importing codecarbon takes a third of a second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Final, NamedTuple

from tpsprune.errors import MeterError, did_you_mean
from tpsprune.records import Grid

_TABLE: Final = Path("data", "private_infra", "global_energy_mix.json")
_CODE_LETTERS: Final = 3
_REMEDY: Final = "give your own factor in grams per kilowatt-hour, with its source"


class _Row(NamedTuple):
    name: str
    grams_per_kwh: float
    year: int


def grid_of(country: str) -> Grid:
    """Return the yearly average factor of a country, by ISO 3166-1 code of three letters or English name.

    In any case of letters. Location-based: the greenhouse gases of a country's electricity production over
    a year, by kilowatt-hour, in the last year that the table has (2022 or 2023 for most, see ``year``).
    The table is Our World in Data's, as packaged with codecarbon. It does not see the hour, the region
    within a country, imports, losses on the grid, contracts or certificates; the factors of very small
    grids are coarse, and one of them is 0.

    Raises:
        MeterError: no such country in the table; or the table is not there, or not as expected.

    Cost: reading 130 kB of JSON, a few milliseconds.
    Source: https://ourworldindata.org/grapher/carbon-intensity-electricity
    """
    table = _read_table()
    wanted = " ".join(country.split()).casefold()
    for code, row in table.items():
        if wanted in {code.casefold(), row.name.casefold()}:
            return Grid(
                grams_per_kwh=row.grams_per_kwh,
                country=row.name,
                year=row.year,
                source=(
                    f"codecarbon {version('codecarbon')} {_TABLE.name}, {code}: location-based average of "
                    "the country's electricity production over the year (Our World in Data)"
                ),
            )
    raise MeterError(f"no country '{country}' in codecarbon's table of grids{_hint(wanted, table)}")


def own_grid(grams_per_kwh: float, source: str) -> Grid:
    """Return a factor of the user's own; country and year are not known and are empty.

    Raises:
        MeterError: the factor is not finite or negative, or no source is named.
    """
    if not (isfinite(grams_per_kwh) and grams_per_kwh >= 0):
        raise MeterError(
            "grams of CO₂ equivalents per kilowatt-hour must be a finite number from 0"
            f" (found {grams_per_kwh:g})"
        )
    if not source.strip():
        raise MeterError(
            f"a factor of {grams_per_kwh:g} g/kWh needs its source: who publishes it, for what place and year"
        )
    return Grid(grams_per_kwh=float(grams_per_kwh), country="", year=None, source=source.strip())


def _read_table() -> Mapping[str, _Row]:
    spec = find_spec("codecarbon")
    if spec is None or not spec.submodule_search_locations:
        raise MeterError(f"codecarbon, whose table of grids is wanted, is not installed: {_REMEDY}")
    path = Path(spec.submodule_search_locations[0]) / _TABLE
    try:
        rows = {
            code: _Row(str(row["country_name"]), float(row["carbon_intensity"]), int(row["year"]))
            for code, row in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeterError(
            f"{path}: not the table of grids that was expected ({error!r}): {_REMEDY}"
        ) from error
    return rows


def _hint(wanted: str, table: Mapping[str, _Row]) -> str:
    if wanted.isalpha() and len(wanted) < _CODE_LETTERS:
        return f": a code has three letters, as FRA; or give the English name, as France; or {_REMEDY}"
    if len(wanted) == _CODE_LETTERS:
        near = did_you_mean(wanted.upper(), table)
    else:
        near = did_you_mean(wanted.title(), (row.name for row in table.values()))
    return near or f": give a code of three letters, as FRA, or an English name, as France; or {_REMEDY}"
