"""What ships, and what a run left: read into records and written again, to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tpsprune.export.manifest import manifest_text, read_manifest
from tpsprune.pruning import Plan
from tpsprune.records import (
    ArmRun,
    BrokenOff,
    Choices,
    Decision,
    Design,
    Diagnosis,
    Exported,
    IdleSpan,
    InferenceSpan,
    Reading,
    StepSpan,
    Window,
    dump,
    load,
)
from tpsprune.report.assessment import assess_journal
from tpsprune.report.savings.json_report import report_json
from tpsprune.runs import (
    ComparisonFolder,
    energy_report_text,
    read_energy_report,
    read_result,
    to_json_text,
)
from tpsprune.runs.comparison import KINDS

REPORTS = Path(__file__).parents[2] / "reports"
SAVINGS = sorted((REPORTS / "savings").iterdir())
RUN = Path(__file__).parent / "run"

Again = Callable[[Any], Any]


def again(record: Any) -> Again:
    return lambda raw: dump(load(record, raw))


LINES: dict[str, Again] = {
    "design": again(Design),
    "run": again(ArmRun),
    "idle": again(IdleSpan),
    "inference": again(InferenceSpan),
    "steps": again(StepSpan),
    "broken-off": again(BrokenOff),
    "choices": again(Choices),
    "redo": again(KINDS["redo"]),
    "begun": again(KINDS["begun"]),
    "pairs": again(KINDS["pairs"]),
}


def line_of(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


@pytest.mark.parametrize("folder", SAVINGS, ids=lambda folder: folder.name)
def test_a_comparisons_journal(folder: Path) -> None:
    for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines():
        raw = json.loads(line)
        head = {key: raw.pop(key) for key in ("schema", "kind")}
        written = {**head, **LINES[head["kind"]](raw)}
        if written.get("receipt") == "" and "receipt" not in raw:
            del written["receipt"]  # A version before receipts wrote the line.
        assert line_of(written) == line


@pytest.mark.parametrize("folder", SAVINGS, ids=lambda folder: folder.name)
def test_a_comparisons_report(folder: Path) -> None:
    text = (folder / "report.json").read_text(encoding="utf-8")
    shipped = json.loads(text)
    assert energy_report_text(read_energy_report(folder / "report.json")) == text
    provenance = shipped["provenance"]
    raw = report_json(assess_journal(ComparisonFolder(folder)), {}, (), provenance["journal_sha256"] or "")
    drawn = {key: shipped[key] for key in ("plots", "not_drawn")}
    assert to_json_text({**raw, **drawn}) == text


@pytest.mark.parametrize(
    ("journal", "record"), [("readings", Reading), ("decisions", Decision), ("energy", Window)]
)
def test_a_runs_journals(journal: str, record: Any) -> None:
    for line in (RUN / f"{journal}.jsonl").read_text(encoding="utf-8").splitlines():
        assert line_of(again(record)(json.loads(line))) == line


def test_a_runs_result_and_plan() -> None:
    text = (RUN / "plan.json").read_text(encoding="utf-8")
    assert to_json_text(Plan.from_json(json.loads(text)).to_json()) == text
    text = (RUN / "result.json").read_text(encoding="utf-8")
    assert to_json_text(dump(read_result(RUN / "result.json"))) == text


@pytest.mark.parametrize(("file", "record"), [("exported", Exported), ("doctor", Diagnosis)])
def test_what_commands_print(file: str, record: Any) -> None:
    text = (RUN / f"{file}.json").read_text(encoding="utf-8")
    assert to_json_text(again(record)(json.loads(text))) == text


def test_a_bundles_manifest() -> None:
    text = manifest_text(read_manifest(RUN))
    assert text == (RUN / "manifest.json").read_text(encoding="utf-8")
