"""The folder of a report: whole, the same each time, exports that their own formats can read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.savings_examples import ALL_OF_IT, EXAMPLES, savings, written
from tpsprune.errors import CannotWriteError
from tpsprune.report.savings_exports import boamps, model_card, sci
from tpsprune.report.savings_files import write_report
from tpsprune.report.savings_json import report_json
from tpsprune.report.savings_text import savings_lines
from tpsprune.runs import energy_report_schema, first_fault, read_energy_report

BARE = "nothing metered"


def test_equal_records_give_equal_files_and_plots_of_an_earlier_report_are_gone(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "phases.svg").write_text("old")
    (tmp_path / "plots" / "mine.svg").write_text("not ours")
    paths = write_report(EXAMPLES[BARE], tmp_path)
    again = {path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    assert again == written(BARE)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert there == set(again) | {"plots/mine.svg"}


def test_the_folder_holds_page_text_json_plots_and_exports() -> None:
    names = set(written(ALL_OF_IT))
    assert {"report.html", "report.md", "report.json"} <= names
    assert {"exports/boamps.json", "exports/sci.json", "exports/co2_eq_emissions.yaml"} <= names
    assert len([name for name in names if name.startswith("plots/")]) == 14


def test_a_folder_that_cannot_be_made_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(CannotWriteError, match="plots: a part of it is a file, not a folder"):
        write_report(EXAMPLES[BARE], tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_report_fits_its_schema_and_grams_need_a_grid(example: str) -> None:
    raw = json.loads(json.dumps(report_json(EXAMPLES[example], {}, ("why not",))))
    assert not first_fault(raw, energy_report_schema())
    grid = EXAMPLES[example].comparison.choices.grid
    grams = {str(run["grams_co2"]) for run in raw["runs"]} | {str(raw["exports"]["co2_eq_emissions_g"])}
    assert (grams == {"not claimed"}) == (grid is None)
    assert (raw["grid"] == "not claimed") == (grid is None)


def test_a_bound_without_end_is_null_and_a_class_is_never_mixed() -> None:
    found = savings()
    claim = found.claims[0]
    assert claim.change is not None
    open_ended = replace(claim, change=replace(claim.change, low=-inf), energy_class="mixed")
    raw = report_json(replace(found, claims=(open_ended, *found.claims[1:])), {}, ())
    assert raw["claims"][0]["change"]["low"] is None
    assert raw["claims"][0]["energy_class"] == "modelled + constant"
    assert not first_fault(raw, energy_report_schema())


def test_the_written_json_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(written(ALL_OF_IT)["report.json"], encoding="utf-8")
    report = read_energy_report(path)
    assert report["verdict"]["key"] == "training/ticket"
    assert report["claims"][0]["key"] == "training/ticket"
    assert [each["name"] for each in report["plots"]][:2] == ["pairs", "claims"]
    assert report["not_counted"][0]["why"] == "broken off"


def test_a_model_card_leaves_out_grams_that_nobody_may_claim() -> None:
    bare = model_card(savings())
    assert re.search(r"^  # emissions: not claimed", bare, re.MULTILINE)
    assert not re.search(r"^  emissions:", bare, re.MULTILINE)
    assert '  source: "codecarbon (modelled + constant) via tpsprune"' in bare
    assert "geographical_location" not in bare
    found = savings(grid=True)
    grams = [run.grams_co2 for run in found.runs if run.arm == "ticket" and run.counted]
    mean = sum(each for each in grams if each is not None) / len(grams)
    line = re.search(r"^  emissions: (\S+)", model_card(found), re.MULTILINE)
    assert line is not None
    assert float(line[1]) == pytest.approx(mean, rel=1e-4)
    assert '  geographical_location: "FRA"' in model_card(found)


@pytest.mark.parametrize("example", [ALL_OF_IT, BARE, "saving"])
def test_what_is_exported_as_boamps_codecarbon_can_read(example: str) -> None:
    models = pytest.importorskip("codecarbon.output_methods.boamps.models")
    raw = boamps(EXAMPLES[example])
    assert models.BoAmpsReport.from_dict(raw).to_dict() == raw
    assert raw["task"]["dataset"] == [{"dataUsage": "input", "dataType": "image"}]
    assert ("powerConsumption" in raw["measures"][0]) == (example != BARE)


def test_the_terms_of_an_sci_score_are_null_where_nobody_knows_them_and_named() -> None:
    bare, full = sci(savings()), sci(savings(grid=True))
    assert (bare["O_g"], bare["M_g"], bare["SCI_g_per_R"]) == (None, None, None)
    assert [each["what"] for each in bare["missing"]] == ["O", "M", "SCI"]
    assert [each["what"] for each in full["missing"]] == ["M", "SCI"]
    assert full["O_g"] == pytest.approx(full["E_kwh"] * full["I_g_per_kwh"])


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_terminal_shows_verdict_numbers_and_arms_within_eighty_columns(example: str) -> None:
    found = EXAMPLES[example]
    console = Console(width=80, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as capture:
        console.print(savings_lines(found))
    text = capture.get()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text
    assert found.verdict.standing.value in lines[0]
    assert all(any(line.startswith(arm) for line in lines) for arm in found.comparison.design.arms)
    for reason in found.verdict.reasons:
        assert f"{reason.code}: {reason.detail}" in text
    for number in ("Energy of a training:", "Energy of an answer:", "Test accuracy:"):
        assert number in text
    assert "5.0 % takes 31" in text
