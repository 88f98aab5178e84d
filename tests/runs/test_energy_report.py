"""The schema of an energy report is strict, and what breaks it is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.report.savings_examples import savings
from tpsprune.claims.spent import MEANINGS
from tpsprune.errors import RunFolderError
from tpsprune.records import Standing
from tpsprune.report.savings.json_report import report_json
from tpsprune.runs import energy_report_schema, energy_report_text, read_energy_report


def report() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(report_json(savings(), {}, ())))
    return raw


def objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for each in schema for found in objects(each)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if "properties" in schema else []
    return own + [found for each in schema.values() for found in objects(each)]


def test_the_schema_is_a_schema_and_leaves_nothing_open() -> None:
    schema = energy_report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    found = objects(schema)
    assert len(found) > 20
    assert all(each["additionalProperties"] is False for each in found)
    assert all(each["required"] == list(each["properties"]) for each in found)
    assert schema["$defs"]["standing"]["enum"] == [each.value for each in Standing]


def test_a_report_becomes_text_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(energy_report_text(report()), encoding="utf-8")
    assert read_energy_report(path) == report()


def test_every_grade_of_an_assessment_is_one_of_the_schema() -> None:
    schema = energy_report_schema()
    letters = set(MEANINGS)
    assert "-" in letters
    for grades in (schema["properties"]["verdict"]["properties"]["grade"], schema["properties"]["grade"]):
        assert set(grades.get("enum") or grades["properties"]["letter"]["enum"]) == letters


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (lambda raw: raw.pop("grid"), "'grid' is a required property"),
        (lambda raw: raw.update(surprise=1), "'surprise' was unexpected"),
        (lambda raw: raw["claims"][0].update(standing="BRILLIANT"), "claims.0.standing"),
        (lambda raw: raw["claims"][0].update(energy_class="mixed"), "claims.0.energy_class"),
        (lambda raw: raw["runs"][0].update(grams_co2="some"), "runs.0.grams_co2"),
        (lambda raw: raw["design"].pop("recipe_sha256"), "design"),
        (lambda raw: raw["quality"].pop("lost_energy_class"), "quality"),
        (lambda raw: raw["exports"].update(energy_class=None), "exports.energy_class"),
        (lambda raw: raw["runs"][0].pop("weights_sha256"), "runs.0"),
        (lambda raw: raw["provenance"].update(journal_sha256=""), "provenance.journal_sha256"),
    ],
)
def test_what_breaks_the_schema_is_no_text_and_not_read(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], place: str
) -> None:
    raw = report()
    spoil(raw)
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match="does not fit its schema"):
        energy_report_text(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(RunFolderError) as refused:
        read_energy_report(path)
    assert "is not an energy report this tpsprune can read" in str(refused.value)
    assert place in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not there"),
        ("{", "is damaged: line 1"),
        ("[]", "is not an energy report"),
        ('{"schema": "tpsprune.energy_report/2"}', "was written by a newer tpsprune"),
    ],
)
def test_a_report_that_is_missing_damaged_or_newer_is_refused_in_words(
    tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=words):
        read_energy_report(path)
