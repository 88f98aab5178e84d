"""``compare`` and ``report``: one page, byte for byte; the gate; and every bad input one message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.test_door import assert_refused
from tests.pipeline.test_compare import QUICK, TWO, compared
from tpsprune.recipe.compare import ARMS, DEFAULT_ARMS
from tpsprune.runs import read_energy_report

Invoke = Callable[..., Result]
SETTINGS = tuple(word for setting in QUICK for word in ("--set", setting))
BOTH = "dense-each,family"


@pytest.fixture(scope="session")
def two_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_pairs")
    compared(folder, TWO, 2)
    return folder


@pytest.fixture
def copied(two_pairs: Path, tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(two_pairs, tmp_path / "copied", ignore=shutil.ignore_patterns("*.safetensors"))
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "runs" not in path.parts
    }


def test_compare_runs_reports_and_names_the_folder(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("compare", "small.toml", "--pairs", "1", *SETTINGS)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "Note: no claim can come of 1 pairs: 6 are the fewest"
    assert lines[1] == "warming up: a short run, thrown away"
    assert lines[2].startswith("1/5  ")
    assert "simulated" in lines[2]
    assert all(len(line) <= 80 for line in lines if not line.startswith(tuple("12345")))
    folder = tmp_path / "reports" / "small"
    report = read_energy_report(folder / "report.json")
    assert report["design"]["arms"] == list(DEFAULT_ARMS)
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert report["verdict"]["standing"] == "INSUFFICIENT_RUNS"
    again = invoke("compare", "small.toml", "--pairs", "1", "--gate", *SETTINGS)
    assert again.exit_code == 5, "a gate stays shut where nothing may be claimed"
    assert "1/2" not in again.output, "nothing is run twice"


def test_report_makes_the_same_files_from_the_journal_alone(invoke: Invoke, copied: Path) -> None:
    shutil.rmtree(copied / "runs")
    assert invoke("report", str(copied)).exit_code == 0
    first = files_of(copied)
    assert {"report.html", "report.md", "report.json"} <= set(first)
    assert invoke("report", str(copied)).exit_code == 0
    assert files_of(copied) == first


def test_a_choice_is_kept_and_carbon_comes_with_its_source(invoke: Invoke, copied: Path) -> None:
    assert "CO₂" not in _told(invoke("report", str(copied)))
    assert invoke("report", str(copied), "--country", "france", "--per-day", "1000").exit_code == 0
    chosen = files_of(copied)
    report = json.loads(invoke("report", str(copied), "--json").output)
    assert report["grid"]["country"] == "France"
    assert report["grid"]["grams_per_kwh"] == pytest.approx(56.039)
    assert files_of(copied) == chosen


def _told(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output.replace("Any figure of CO₂", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--country", "FRAA"), "no country 'FRAA'"),
        (("--country", "FRA", "--carbon-intensity", "50"), "two grids"),
        (("--carbon-intensity", "50"), "needs --carbon-source"),
        (("--carbon-source", "somewhere"), "add that too"),
        (("--per-day", "0"), "0"),
        (("--per-day", "nan"), "--per-day must be a finite number"),
        (("--carbon-intensity", "inf", "--carbon-source", "x"), "--carbon-intensity must be a finite number"),
        (("--wall-meter", "nowhere.csv"), "does not exist"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_and_nothing_is_written(
    invoke: Invoke, copied: Path, words: tuple[str, ...], message: str
) -> None:
    before = files_of(copied)
    assert_refused(invoke("report", str(copied), *words), message)
    assert files_of(copied) == before


def test_a_wall_meter_whose_clock_is_elsewhere_is_refused_with_both_spans(
    invoke: Invoke, copied: Path, tmp_path: Path
) -> None:
    readings = "time,watts\n" + "".join(f"2031-05-01T10:00:{second:02}Z,50\n" for second in range(60))
    (tmp_path / "plug.csv").write_text(readings)
    before = files_of(copied)
    assert_refused(invoke("report", str(copied), "--wall-meter", str(tmp_path / "plug.csv")), "2031-05-01")
    assert files_of(copied) == before


def test_a_wall_meter_that_covers_every_run_makes_the_report_class_a(
    invoke: Invoke, copied: Path, tmp_path: Path
) -> None:
    # The simulated clock begins at 2000-01-01 in every run, a window lasting ten seconds.
    readings = "time,watts\n" + "".join(f"{946684800 - 60 + 5 * tick},50\n" for tick in range(600))
    (tmp_path / "plug.csv").write_text(readings)
    result = invoke("report", str(copied), "--wall-meter", str(tmp_path / "plug.csv"))
    assert result.exit_code == 0, result.output
    (tmp_path / "plug.csv").unlink()
    report = json.loads(invoke("report", str(copied), "--json").output)
    assert report["grade"]["letter"] == "A"
    assert report["claims"][0]["energy_class"] == "measured"
    assert invoke("report", str(copied), "--forget").exit_code == 0
    assert json.loads(invoke("report", str(copied), "--json").output)["grade"]["letter"] == "S"


def test_wall_readings_that_do_not_fit_later_runs_report_how_to_leave_them_out(
    invoke: Invoke, copied: Path, tmp_path: Path
) -> None:
    readings = "time,watts\n" + "".join(f"{946684800 - 60 + 5 * tick},50\n" for tick in range(600))
    (tmp_path / "plug.csv").write_text(readings)
    assert invoke("report", str(copied), "--wall-meter", str(tmp_path / "plug.csv")).exit_code == 0
    (copied / "wall_meter.csv").write_text(readings[:200].rsplit("\n", 1)[0] + "\n")
    assert_refused(invoke("report", str(copied)), "--forget", "the runs are safe in the journal")


def test_a_folder_that_holds_no_comparison_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    assert_refused(invoke("report", str(tmp_path)), "holds no comparison", "tpsprune compare RECIPE")


def test_a_journal_of_a_newer_version_is_refused(invoke: Invoke, copied: Path) -> None:
    journal = copied / "journal.jsonl"
    journal.write_text(journal.read_text().replace("tpsprune.comparison/1", "tpsprune.comparison/9"))
    assert_refused(invoke("report", str(copied)), "newer tpsprune", "upgrade")


def test_a_journal_with_a_truncated_line_is_read_without_it_and_notes_it(
    invoke: Invoke, copied: Path
) -> None:
    journal = copied / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    assert invoke("report", str(copied)).exit_code == 0
    assert "truncated" in (copied / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pairs", "0"), "0 is not in the range"),
        (("--arms", "dense,tickt"), "did you mean 'ticket'"),
        (("--country", "Frence"), "did you mean"),
        (("--set", "compare.tolerence=0.1"), "did you mean 'tolerance'"),
        (("--set", "task.data.validation_share=0.0"), "validation_share"),
        (("--set", "energy.meter='replay'", "--set", "energy.replay='x.jsonl'"), "plays one run again"),
        (("--quiet", "--json"), "choose one of them"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_nothing_is_written(
    invoke: Invoke, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    assert_refused(invoke("compare", "small.toml", *words), message)
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("--sizes", "0.5"), ("Invalid value for --sizes: needs an arm of several sizes: family,",)),
        (("--arms", BOTH, "--sizes", "half"), ("--sizes: 'half': shares above 0 and below 1 are needed",)),
        (("--arms", BOTH, "--sizes", "0.5,1.5"), ("compare.sizes.1: must be less than 1 (found 1.5)",)),
        (("--arms", BOTH, "--sizes", "0.5,0.5"), ("compare.sizes: must be shares that differ",)),
        (("--arms", BOTH, "--sizes", "0.5,0.001"), ("macs=0.001 cannot be reached", "the least is")),
        (("--arms", BOTH, "--set", "prune.low_rank=true"), ("prune.low_rank",)),
        (("--arms", "dense-each,familly"), ("did you mean 'family'?", "'dense-each' depends on 'family'")),
        (("--arms", f"dense,{BOTH}"), ("'dense' one model; beside it there may be family,",)),
    ],
)
def test_sizes_that_cannot_be_compared_are_refused_and_nothing_is_written(
    invoke: Invoke, tmp_path: Path, words: tuple[str, ...], messages: tuple[str, ...]
) -> None:
    assert_refused(invoke("compare", "small.toml", *words), *messages)
    assert not (tmp_path / "reports").exists()


def test_a_training_and_its_cuts_are_told_size_by_size_on_the_page_and_for_programs(
    invoke: Invoke, tmp_path: Path
) -> None:
    short = ("train.epochs=1", "stop.draw.epoch=0.5", "prune.repair_steps=2")
    settings = (*SETTINGS, *(word for setting in short for word in ("--set", setting)))
    result = invoke("compare", "small.toml", "--arms", BOTH, "--sizes", "0.5,0.75", "--pairs", "1", *settings)
    assert result.exit_code == 0, result.output
    assert "1/2  family, seed 0:" in result.output
    assert " (0.75: 0." in result.output
    folder = tmp_path / "reports" / "small"
    report = read_energy_report(folder / "report.json")
    assert report["verdict"]["key"] == "training/family"
    assert [(each["arm"], each["baseline"]) for each in report["accuracies"]] == [
        ("family", "dense-each"),
        ("family/0.75", "dense-each/0.75"),
        ("family/0.5", "dense-each/0.5"),
    ]
    phases = {each["phase"] for each in report["ledger"] if each["arm"] == "family"}
    assert {"setup", "train", "evaluate", "prune", "repair", "benchmark"} <= phases
    page = (folder / "report.md").read_text()
    assert "| family/0.5 beside dense-each/0.5 | not shown | 0." in page
    assert "| family, seed 0 | 0.75 | 0." in page
    assert "No inference was metered." in page
    html = (folder / "report.html").read_text()
    assert "A row with a size is of that size alone, and each of them must be kept." in " ".join(html.split())
    before = files_of(folder)
    assert invoke("report", str(folder)).exit_code == 0
    assert files_of(folder) == before


def test_a_recipe_whose_own_data_have_no_validation_items_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "own_data_without_validation.py").write_text(
        "import torch\n"
        "def load():\n"
        "    items = (torch.randn(32, 8), torch.arange(32) % 2)\n"
        "    return {'train': items, 'validation': (items[0][:0], items[1][:0]), 'test': items}\n"
    )
    custom = (
        "--set",
        "task.data.kind='custom'",
        "--set",
        "task.data.factory='own_data_without_validation:load'",
        "--set",
        "task.model.kind='mlp'",
        "--set",
        "task.model.widths=[8]",
    )
    assert_refused(invoke("compare", "small.toml", *custom), "validation")
    assert not (tmp_path / "reports").exists()


def test_settings_from_outside_are_refused_before_anything_is_written(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODECARBON_PUE", "3")
    assert_refused(
        invoke("compare", "small.toml", "--set", "energy.meter='codecarbon'"), "unset CODECARBON_PUE"
    )
    assert not (tmp_path / "reports").exists()


def test_the_help_names_every_arm(invoke: Invoke) -> None:
    text = invoke("compare", "--help").output
    assert all(f"\n    {arm}  " in text for arm in ARMS)
