"""The folder of a report: whole, the same each time, exports that their own formats can read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.claims.conftest import comparison, design
from tests.report.savings_examples import ALL_OF_IT, EXAMPLES, at_the_wall, savings, simulated, written
from tpsprune.claims import assess
from tpsprune.errors import CannotWriteError
from tpsprune.records import ComparisonRecord, EnergyMethod, EnergyReport, Grid, Savings, load
from tpsprune.report.savings.exports import boamps, model_card, sci
from tpsprune.report.savings.json_report import report_json
from tpsprune.report.savings.pages import write_report
from tpsprune.report.tables import savings_summary
from tpsprune.runs import read_energy_report

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


@pytest.mark.parametrize(
    ("file", "folder", "words"),
    [
        ("plots", "", "plots: a part of it is a file, not a folder"),
        ("", "plots/phases.svg", r"phases\.svg"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_in_words(
    tmp_path: Path, file: str, folder: str, words: str
) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    if file:
        (tmp_path / file).write_text("in the way")
    with pytest.raises(CannotWriteError, match=words):
        write_report(EXAMPLES[BARE], tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_breaks_its_schema_leaves_nothing_half_written(tmp_path: Path) -> None:
    found = EXAMPLES[BARE]
    with pytest.raises(ValueError, match=r"verdict\.grade must match"):
        write_report(replace(found, grade=replace(found.grade, letter="Z")), tmp_path)
    assert not list(tmp_path.iterdir())


def without_joules() -> Savings:
    found = comparison([100.0] * 6, [80.0] * 6)
    unmetered = EnergyMethod(meter="none", scope="none")
    runs = tuple(
        replace(
            each,
            method=unmetered,
            windows=tuple(replace(window, joules={}, classes={}) for window in each.windows),
        )
        for each in found.runs
    )
    return assess(replace(found, runs=runs))


@pytest.mark.parametrize(
    "made",
    [lambda: assess(ComparisonRecord(design=design())), without_joules],
    ids=["a design alone", "no joules"],
)
def test_a_comparison_without_joules_has_a_report_that_says_so(
    tmp_path: Path, made: Callable[[], Savings]
) -> None:
    found = made()
    write_report(found, tmp_path)
    report = read_energy_report(tmp_path / "report.json")
    assert (report["verdict"]["grade"], report["grade"]["letter"]) == ("-", "-")
    assert report["exports"]["training_joules"] is None
    page, text = ((tmp_path / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "<strong>–</strong>" in page
    assert "Grade **–**: nothing was metered\n" in text
    assert found.verdict.standing.value in page
    assert "[none]" not in page
    assert "*(none)*" not in text
    assert ", ." not in text
    lines = terminal(found).splitlines()
    assert "grade – (nothing was metered)" in " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 80


def test_the_hash_of_the_journal_is_in_the_report_where_the_caller_knows_it(tmp_path: Path) -> None:
    write_report(EXAMPLES[BARE], tmp_path, journal_sha256="ab" * 32)
    assert read_energy_report(tmp_path / "report.json")["provenance"]["journal_sha256"] == "ab" * 32
    assert "ab" * 32 in (tmp_path / "report.html").read_text(encoding="utf-8")
    bare = written(BARE)
    assert json.loads(bare["report.json"])["provenance"]["journal_sha256"] is None
    assert "SHA-256 of the journal" not in bare["report.html"]


def figures(value: Any) -> list[dict[str, Any]]:
    """Return every object that holds joules, watts or kilowatt-hours itself."""
    if isinstance(value, list):
        return [found for each in value for found in figures(each)]
    if not isinstance(value, dict):
        return []
    own = (
        [value] if any(re.search(r"joules|watts|_kwh$", key) for key in value if key[-5:] != "class") else []
    )
    return own + [found for key, each in value.items() if key != "details" for found in figures(each)]


@pytest.mark.parametrize("example", [ALL_OF_IT, "at the wall"])
def test_no_energy_stands_in_the_json_without_a_class_beside_it(example: str) -> None:
    raw = report_json(EXAMPLES[example], {}, ())
    del raw["grid"]
    found = figures(raw)
    assert len(found) > 20
    assert not [each for each in found if not any("class" in key for key in each)]
    quality = raw["quality"]
    assert quality["lost_energy_class"] == quality_class(EXAMPLES[example])
    assert quality["idle_energy_class"] == raw["verdict"]["class"]
    assert {each["energy_class"] for each in (*raw["attribution"], *raw["needed"])} == {
        raw["verdict"]["class"]
    }


def quality_class(found: Savings) -> str:
    windows = [window for each in found.comparison.broken_off for window in each.windows]
    return "measured + modelled + constant" if "gpu" in windows[0].classes else "modelled + constant"


def test_a_run_in_the_json_says_what_it_left_was_given_noted_and_drew() -> None:
    found = savings()
    first = replace(found.comparison.runs[1], weights_sha256="cd" * 32, given="the widths")
    assert first.arm == "ticket"
    runs = (found.comparison.runs[0], first, *found.comparison.runs[2:])
    raw = report_json(replace(found, comparison=replace(found.comparison, runs=runs)), {}, ())
    shown = {key: raw["runs"][1][key] for key in ("weights_sha256", "given", "notes", "drawn_epoch")}
    assert shown == {
        "weights_sha256": "cd" * 32,
        "given": "the widths",
        "notes": ["a note of <b>run</b> & co"],
        "drawn_epoch": 8.0,
    }


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_report_fits_its_schema_and_grams_need_a_grid(example: str) -> None:
    raw = json.loads(json.dumps(report_json(EXAMPLES[example], {}, ("why not",))))
    assert load(EnergyReport, raw)
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
    assert load(EnergyReport, raw)


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


def test_exports_name_the_meter_that_metered() -> None:
    assert '  source: "wall meter (measured) via tpsprune"' in model_card(at_the_wall())
    measure = boamps(at_the_wall())["measures"][0]
    assert measure["measurementMethod"] == "wall meter"
    assert "version" not in measure
    measure = boamps(savings())["measures"][0]
    assert (measure["measurementMethod"], measure["version"]) == ("codecarbon", "3.3.2")


def test_of_a_simulated_meter_neither_joules_nor_grams_are_exported_and_it_is_stated_why() -> None:
    found = simulated(grid=True)
    card = model_card(found)
    assert "  # emissions: none, because the meter was simulated" in card
    assert not re.search(r"^  emissions:", card, re.MULTILINE)
    assert '  source: "fake (simulated) via tpsprune"' in card
    raw = boamps(found)
    assert raw["header"]["reportStatus"] == "draft"
    assert raw["task"]["taskDescription"].endswith("no energy is given, because the meter was simulated")
    assert not {"powerConsumption", "powerCalibrationMeasurement"} & set(raw["measures"][0])
    terms = sci(found)
    assert (terms["E_kwh"], terms["O_g"]) == (None, None)
    assert [(each["what"], each["why"]) for each in terms["missing"]][:2] == [
        ("E", "the meter was simulated"),
        ("O", "the meter was simulated"),
    ]
    exports = report_json(found, {}, ())["exports"]
    assert (exports["training_joules"], exports["co2_eq_emissions_g"]) == (None, None)
    assert boamps(savings())["header"]["reportStatus"] == "final"


def test_logical_processors_are_not_exported_as_processors() -> None:
    parts = boamps(savings())["infrastructure"]["components"]
    assert savings().comparison.design.machine["logical_cpus"] == 2
    assert [(each["componentType"], each["nbComponent"]) for each in parts] == [("cpu", 1), ("ram", 1)]


KINDS = {
    **dict.fromkeys(("digits", "idx", "image-folder"), "image"),
    "modular": "token",
    **dict.fromkeys(("custom", "digits-of-mine"), "other"),
}


@pytest.mark.parametrize(("kind", "data_type"), KINDS.items())
def test_every_kind_of_data_is_exported_as_what_it_is(kind: str, data_type: str) -> None:
    found = savings()
    text = f'[task.data]\nkind = "{kind}"\n'
    recipe = replace(found.comparison.design, recipe_text=text)
    raw = boamps(replace(found, comparison=replace(found.comparison, design=recipe)))
    assert raw["task"]["dataset"] == [{"dataUsage": "input", "dataType": data_type}]


def test_a_share_that_is_right_is_an_accuracy_to_others_and_a_share_of_variance_is_none() -> None:
    tasks = {}
    for loss in ("cross-entropy", "bce", "mse", "theirs:loss"):
        found = savings()
        text = f'name = "x"\n[task]\nloss = "{loss}"\n[task.data]\nkind = "tabular"\n'
        design = replace(found.comparison.design, recipe_text=text)
        tasks[loss] = boamps(replace(found, comparison=replace(found.comparison, design=design)))["task"]
    assert ["measuredAccuracy" in task for task in tasks.values()] == [True, True, False, False]
    assert tasks["mse"]["taskFamily"] == "regression"
    assert "taskFamily" not in tasks["theirs:loss"]


def test_a_factor_of_ones_own_names_no_country() -> None:
    found = savings(grid=True)
    grid = Grid(grams_per_kwh=50.0, country="", year=None, source="my contract, 2025")
    own = replace(
        found, comparison=replace(found.comparison, choices=replace(found.comparison.choices, grid=grid))
    )
    assert "geographical_location" not in model_card(own)
    assert "country" not in boamps(own)["environment"]


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


def terminal(found: Savings) -> str:
    console = Console(width=80, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as capture:
        console.print(savings_summary(found))
    return capture.get()


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_terminal_shows_verdict_numbers_and_arms_within_eighty_columns(example: str) -> None:
    found = EXAMPLES[example]
    text = terminal(found)
    lines, words = text.splitlines(), " ".join(text.split())
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text
    assert words.startswith(found.answer.statement)
    assert found.verdict.standing.value in text
    assert all(any(line.startswith(arm) for line in lines) for arm in found.comparison.design.arms)
    for reason in found.verdict.reasons:
        assert f"{reason.code}: {reason.detail}" in words
    for number in ("Energy of a training:", "Energy of an inference:", "Test accuracy:"):
        assert number in text
    assert "0.1 % takes more than 1,000" in words
