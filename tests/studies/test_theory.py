"""The page of the theory: every system, every study, and what came out of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.studies.test_shipped import SHIPPED
from tpsprune.cli import main
from tpsprune.errors import RunFolderError
from tpsprune_studies.catalogue import STUDIES
from tpsprune_studies.theory import NOT_RUN, SYSTEMS, collect_outcomes, render_theory, write_theory


def test_every_study_stands_in_it_and_every_study_in_it_exists() -> None:
    assert {system.study for system in SYSTEMS if system.study} == set(STUDIES)
    assert len(SYSTEMS) >= 24
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)


def test_a_system_says_what_it_claims_and_has_a_study_or_words_of_its_own() -> None:
    for system in SYSTEMS:
        assert all((system.claim, system.source, system.built)), system.name
        if system.study:
            assert not any((system.measured, system.verdict, system.command)), system.name
        if system.measured:
            assert system.command, system.name


def test_the_shipped_page_is_what_the_figures_give() -> None:
    page = (SHIPPED.parent / "theory.md").read_text(encoding="utf-8")
    assert page == render_theory(collect_outcomes(SHIPPED), SHIPPED.name)


def test_the_command_writes_it_beside_the_folder_and_tells_what_has_not_run(tmp_path: Path) -> None:
    studies = tmp_path / "found"
    studies.mkdir()
    figures = {"sentence": "six times.", "verdict": "confirmed", "command": "tpsprune study speed-up"}
    (studies / "speed-up.json").write_text(json.dumps(figures), encoding="utf-8")
    done = CliRunner().invoke(main, ["study", "--theory", "--out", str(studies)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "theory.md").read_text(encoding="utf-8")
    assert "- **Measured**: six times." in page
    assert f"| {NOT_RUN} ([page](found/reach.md)) |" in page
    refused = CliRunner().invoke(main, ["study", "reach", "--theory"])
    assert refused.exit_code == 2
    assert "leave NAME out" in refused.output


def test_figures_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "reach.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"reach\.json is not the figures of a study"):
        write_theory(tmp_path)
