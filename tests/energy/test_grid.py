from __future__ import annotations

import copy
import subprocess
import sys
from importlib import util
from importlib.metadata import version
from math import inf, nan
from pathlib import Path

import pytest

from tpsprune.energy import grid
from tpsprune.energy.grid import grid_of, own_grid
from tpsprune.errors import MeterError
from tpsprune.records import Grid


@pytest.mark.parametrize("word", ["FRA", "fra", " Fra ", "France", "FRANCE", "france"])
def test_a_country_is_found_by_code_or_name_in_any_case(word: str) -> None:
    found = grid_of(word)
    assert (found.country, found.grams_per_kwh, found.year) == ("France", 56.039, 2023)


def test_a_name_of_several_words_is_found_however_it_is_spaced() -> None:
    assert grid_of("united  states") == grid_of("USA")


def test_the_source_names_version_file_code_and_basis() -> None:
    assert grid_of("deu").source == (
        f"codecarbon {version('codecarbon')} global_energy_mix.json, DEU: location-based average of the "
        "country's electricity production over the year (Our World in Data)"
    )


def test_every_row_of_the_table_is_found_by_its_code_and_by_its_name() -> None:
    table = grid._read_table()
    assert len(table) > 200
    for code in list(table)[::20]:
        assert grid_of(code) == grid_of(table[code].name)
    assert all(0 <= row.grams_per_kwh < 2000 and row.year > 2000 for row in table.values())
    assert len({row.name for row in table.values()}) == len(table)


def test_codecarbon_is_not_imported_for_it() -> None:
    code = (
        "import sys; from tpsprune.energy.grid import grid_of; grid_of('NOR'); "
        "assert 'codecarbon' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("FRR", r"^no country 'FRR' in codecarbon's table of grids \(did you mean 'FR[A-Z]'\?\)$"),
        ("germny", r"^no country 'germny' in codecarbon's table of grids \(did you mean 'Germany'\?\)$"),
        ("united kingdon", r"\(did you mean 'United Kingdom'\?\)$"),
        ("FR", r"'FR' in codecarbon's table of grids: a code has three letters, as FRA; or give the English"),
        (
            "",
            r"no country '' in codecarbon's table of grids: give a code of three letters, as FRA, or an Eng",
        ),
        (
            "zzzzzzz",
            r"an English name, as France; or give your own factor in grams per kilowatt-hour, with its",
        ),
    ],
)
def test_an_unknown_country_is_refused_with_what_would_do(word: str, words: str) -> None:
    with pytest.raises(MeterError, match=words):
        grid_of(word)


def test_without_codecarbon_it_is_refused_with_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "find_spec", lambda name: None)
    with pytest.raises(
        MeterError, match=r"is not installed: give your own factor in grams per kilowatt-hour"
    ):
        grid_of("FRA")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "[]",
        "{",
        '{"FRA": {"country_name": "France"}}',
        '{"FRA": 1}',
        '{"FRA": {"country_name": "France", "carbon_intensity": null, "year": 2023}}',
    ],
)
def test_a_table_that_is_not_as_expected_is_refused_with_its_place(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "data" / "private_infra" / "global_energy_mix.json"
    table.parent.mkdir(parents=True)
    if text is not None:
        table.write_text(text)
    found = util.find_spec("codecarbon")
    assert found is not None
    # A copy: what is found once codecarbon has been imported is the module's own.
    spec = copy.copy(found)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(grid, "find_spec", lambda name: spec)
    with pytest.raises(
        MeterError, match=r"global_energy_mix\.json: not the table of grids that was expected"
    ):
        grid_of("FRA")


def test_an_own_factor_keeps_its_source() -> None:
    assert own_grid(0, " our roof, 2024 ") == Grid(
        grams_per_kwh=0.0, country="", year=None, source="our roof, 2024"
    )


@pytest.mark.parametrize("grams", [-1.0, nan, inf])
def test_an_own_factor_that_is_no_factor_is_refused(grams: float) -> None:
    with pytest.raises(MeterError, match=r"must be a finite number from 0 \(found (-1|nan|inf)\)$"):
        own_grid(grams, "me")


def test_an_own_factor_without_a_source_is_refused() -> None:
    with pytest.raises(MeterError, match=r"^a factor of 30 g/kWh needs its source: who publishes it"):
        own_grid(30, "  ")
