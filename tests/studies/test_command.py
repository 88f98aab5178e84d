"""The command: what it lists, refuses, prints, and how it is broken off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.studies.conftest import LABELS, NONE, OVERRIDES
from tpsprune import cli, recipe
from tpsprune.cli import main
from tpsprune_studies import speed_up


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = recipe.read

    monkeypatch.setattr(recipe, "read", lambda source: read(source, OVERRIDES))
    monkeypatch.setattr(speed_up, "make_arms", lambda *_, **__: (NONE, LABELS))
    monkeypatch.chdir(tmp_path)


def test_without_a_name_it_lists_the_studies_with_their_predictions() -> None:
    text = CliRunner().invoke(main, ["study"]).output
    assert "speed-up  TPS converges 2–5× faster on structured tasks" in text
    listed = json.loads(CliRunner().invoke(main, ["study", "--json"]).output)
    assert listed["speed-up"]["recipe"] == "modular-addition"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sped-up",), "no study 'sped-up' (did you mean 'speed-up'?)"),
        (
            ("zzz",),
            "no study 'zzz' (studies: speed-up, reach, dimension, draw-time, lead-time, coupling, worth, "
            "edge-position)",
        ),
        (("speed-up", "--seeds", "1"), "1 is not in the range x>=2"),
        (("speed-up", "--cap", "0"), "0 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["study", *words])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tiny_recipe")
def test_it_prints_predicted_beside_measured_and_then_json_without_training_again(tmp_path: Path) -> None:
    words = ["study", "speed-up", "--seeds", "2", "--cap", "2", "--out", "found"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert " pair seed 2 labels" in result.output
    assert "Predicted: TPS converges" in result.output
    assert "Measured:  undecided; to validation accuracy 0.95" in result.output
    assert "found/speed-up.md" in result.output
    picture = (tmp_path / "found" / "speed-up.svg").read_text()
    for label in ("optimiser steps", "labels: CPU-seconds", "(orange: predicted, 2 to 5)"):
        assert label in picture
    again = CliRunner().invoke(main, [*words, "--json"])
    assert json.loads(again.output) == json.loads((tmp_path / "found" / "speed-up.json").read_text())


@pytest.mark.usefixtures("tiny_recipe")
def test_an_interrupt_ends_with_the_word_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    monkeypatch.setattr("tpsprune_studies.conduct.conduct", interrupted)
    result = CliRunner().invoke(main, ["study", "speed-up"])
    assert result.exit_code == 130
    assert "the same command resumes" in result.output


def test_a_file_in_the_folders_place_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("")
    result = CliRunner().invoke(main, ["study", "speed-up", "--out", str(tmp_path / "reports" / "studies")])
    assert result.exit_code == 2
    assert "choose another place" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], "tpsprune_studies.command:study"),
        ([("study", "elsewhere:study"), ("train", "elsewhere:train")], "elsewhere:study"),
    ],
    ids=["no metadata", "entry points"],
)
def test_commands_of_other_packages_are_found_and_replace_none_of_ours(
    monkeypatch: pytest.MonkeyPatch, points: list[tuple[str, str]], expected: str
) -> None:
    found = [EntryPoint(name, value, cli.GROUP) for name, value in points]
    monkeypatch.setattr(cli, "entry_points", lambda *, group: [each for each in found if each.group == group])
    cli.commands.cache_clear()
    try:
        assert cli.commands()["study"] == expected
        assert cli.commands()["train"] == "tpsprune.cli.train:train"
    finally:
        cli.commands.cache_clear()
