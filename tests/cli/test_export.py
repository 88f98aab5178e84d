"""``tpsprune export`` at the door: formats, JSON, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.test_door import assert_refused
from tpsprune import pipeline
from tpsprune.records import Exported, Exporting
from tpsprune.runs import RunFolder

Invoke = Callable[..., Result]
command_file = import_module("tpsprune.cli.export")


def test_the_doors_formats_are_the_halls() -> None:
    assert command_file.FORMATS == pipeline.FORMATS


def test_formats_go_into_one_folder_and_each_difference_is_printed(
    invoke: Invoke, trained: RunFolder, tmp_path: Path
) -> None:
    words = ("--format", "safetensors", "--format", "torch-export", "--format", "safetensors")
    result = invoke("export", str(trained.path), "--to", "ticket", *words)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "ticket").iterdir()} == {
        *("README.md", "manifest.json", "plan.json", "recipe.toml", "ticket.pt2", "ticket.safetensors")
    }
    for name in ("safetensors", "torch-export"):
        line = f"{name}: reloaded and compared on 1, 2, 7 and 16 random inputs: largest difference 0\n"
        assert result.output.count(line) == 1


def test_the_line_to_load_it_by_trusts_code_only_where_there_is_some(
    invoke: Invoke, trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke("export", str(trained.path), "--to", "ticket")
    assert "tpsprune.load('ticket')\"\n" in result.output
    exported = next(e for e in pipeline.export_steps(trained.path, tmp_path / "b") if isinstance(e, Exported))
    own = replace(exported, calls="nets:make")
    monkeypatch.setattr(pipeline, "export_steps", lambda *_, **__: iter([own]))
    assert "b', trust_code=True)\"\n" in invoke("export", str(trained.path), "--to", "c").output


def test_json_is_one_object(invoke: Invoke, trained: RunFolder, tmp_path: Path) -> None:
    result = invoke("export", str(trained.path), "--to", "ticket", "--json")
    found = json.loads(result.stdout)
    assert found["schema"] == "tpsprune.exported/1"
    assert found["folder"] == "ticket"
    assert found["compared"][0]["format"] == "safetensors"


def test_a_grid_is_checked_before_anything_is_read(invoke: Invoke) -> None:
    assert_refused(
        invoke("export", "nowhere", "--to", "x", "--country", "FRB"), "no country 'FRB'", "did you mean"
    )
    assert_refused(
        invoke("export", "nowhere", "--to", "x", "--carbon-intensity", "50"), "--carbon-intensity needs"
    )


def test_a_format_nobody_knows_is_refused(invoke: Invoke, trained: RunFolder, tmp_path: Path) -> None:
    assert_refused(
        invoke("export", str(trained.path), "--to", "x", "--format", "pickle"), "'pickle' is not one of"
    )
    assert not (tmp_path / "x").exists()


def test_a_format_that_does_not_fit_is_one_message(
    invoke: Invoke, trained: RunFolder, tmp_path: Path
) -> None:
    result = invoke("export", str(trained.path), "--to", "x", "--format", "hf")
    assert_refused(result, "format 'hf' is for models of the transformers library, and the ticket is a Cnn")
    assert not (tmp_path / "x").exists()


def test_steps_after_two_seconds_are_shown_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(command_file.time, "monotonic", lambda: now[0])
    with command_file._progress() as step:
        step(Exporting("onnx", "writing"))
        now[0] = 3.0
        step(Exporting("onnx", "reloading and comparing"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "onnx: reloading and comparing …\n"
