"""Files of a stranger: each is refused with one message and code 2; nothing outside is read or written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.claims.conftest import design, inference, run, window
from tests.pipeline.conftest import SMALL
from tpsprune.records import Choices, dump
from tpsprune.runs import ComparisonFolder, RunFolder

Invoke = Callable[..., Result]


def refused(done: Result) -> str:
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.output.count("Error:") == 1
    return done.output


@pytest.fixture
def stranger(tmp_path: Path, trained: RunFolder) -> Path:
    shutil.copytree(trained.path, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "*.svg"))
    return tmp_path / "run"


@pytest.fixture
def comparison(tmp_path: Path) -> ComparisonFolder:
    folder = ComparisonFolder(tmp_path / "theirs")
    folder.path.mkdir()
    folder.append("design", design())
    for pair in range(6):
        folder.append("run", run("dense", pair, 100.0 + pair))
        folder.append("run", run("ticket", pair, 50.0 + 2 * pair))
    return folder


def change(raw: Any, place: str, value: Any) -> Any:
    *parts, last = place.split(".")
    holder = raw
    for part in parts:
        holder = holder[int(part)] if isinstance(holder, list) else holder[part]
    holder[last] = value
    return raw


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("total.joules", "many", "total.joules must be a valid number"),
        ("total.joules", -1.0, "total.joules must be greater than or equal to 0"),
        ("seed", 2.5, "seed must be a valid integer"),
        ("groups", {}, "groups must be a valid"),
        ("dense.parameters", [], "dense.parameters must be a valid integer"),
        ("machine", [], "machine must be"),
    ],
)
def test_a_result_of_a_wrong_shape_is_refused_with_its_place(
    invoke: Invoke, stranger: Path, place: str, value: Any, words: str
) -> None:
    path = stranger / "result.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()), place, value)))
    assert words in refused(invoke("show", str(stranger)))


@pytest.mark.parametrize("content", [b"[" * 1_000_000, b"9" * 5_000, b'{"seed": 1e200}', b"[]", b"3", b"\0"])
def test_a_result_that_is_hardly_json_is_refused(invoke: Invoke, stranger: Path, content: bytes) -> None:
    (stranger / "result.json").write_bytes(content)
    refused(invoke("show", str(stranger)))


@pytest.mark.parametrize("name", ["result.json", "readings.jsonl"])
def test_a_pipe_a_device_and_a_link_are_not_read(invoke: Invoke, stranger: Path, name: str) -> None:
    path = stranger / name
    path.unlink()
    os.mkfifo(path)
    if name == "readings.jsonl":
        assert "it is no regular file" in refused(invoke("show", str(stranger)))
        path.unlink()
        path.symlink_to("/etc/hostname")
        assert "it is a link, which is not followed" in refused(invoke("show", str(stranger)))
    else:
        refused(invoke("show", str(stranger)))


def test_a_signal_named_by_a_stranger_is_shown_as_it_is(invoke: Invoke, stranger: Path) -> None:
    path = stranger / "readings.jsonl"
    lines = path.read_text().replace('"signal": "d_eff"', '"signal": "[/]\\u001b[2J$\\\\frac"')
    path.write_text(lines)
    done = invoke("show", str(stranger))
    assert done.exit_code == 0
    assert "[/]\\x1b[2J$\\frac" in done.output
    assert "\x1b" not in done.output


def test_groups_named_by_a_stranger_are_plotted_as_they_are(invoke: Invoke, stranger: Path) -> None:
    path = stranger / "result.json"
    raw = json.loads(path.read_text())
    raw["name"] = raw["groups"][0]["group"] = "$\\frac{$ [/] \x1b[2J"
    path.write_text(json.dumps(raw))
    assert invoke("show", str(stranger), "--picture").exit_code == 0
    done = invoke("show", str(stranger))
    assert done.exit_code == 0
    assert "[/] \\x1b[2J" in done.output


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"joules": {"cpu": -5.0}}, "joules.cpu must be greater than or equal to 0"),
        ({"joules": {"cpu": 1e120}}, "joules.cpu must be less than or equal to"),
        ({"joules": "many"}, "joules must be"),
        ({"seconds": -1.0}, "seconds must be greater than or equal to 0"),
        ({"phase": []}, "phase must be a valid string"),
    ],
)
def test_a_window_that_cannot_be_is_refused_before_a_run_goes_on(
    invoke: Invoke, tmp_path: Path, trained: RunFolder, line: dict[str, Any], words: str
) -> None:
    shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name)
    folder = RunFolder(tmp_path / "runs" / trained.path.name)
    folder.result.unlink()
    with folder.energy.path.open("a") as file:
        file.write(json.dumps(dump(window(1.0)) | line) + "\n")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    message = refused(invoke("train", "small.toml", "--resume"))
    assert words in message
    assert "--again" in message
    after = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path) and path.name != "lock"} == set()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": []}, r"kind []"),
        ({"kind": "nonsense"}, "kind 'nonsense'"),
        ({"arm": "stranger"}, "the design has no arm 'stranger'"),
        ({"pair": -1}, "pair must be greater than or equal to 0"),
        ({"pair": 10**9}, "pair must be less than or equal to"),
        ({"accuracy": "good"}, "accuracy must be a valid number"),
    ],
)
def test_a_run_that_cannot_be_is_refused_with_its_line(
    invoke: Invoke, comparison: ComparisonFolder, changes: dict[str, Any], words: str
) -> None:
    extra = {"schema": "tpsprune.comparison/1", "kind": "run", **dump(run("dense", 7, 1.0)), **changes}
    comparison.journal.append(extra)
    message = refused(invoke("report", str(comparison.path)))
    assert "line 14" in message
    assert words in message
    assert sorted(path.name for path in comparison.path.iterdir()) == ["journal.jsonl"]


@pytest.mark.parametrize(
    ("kind", "record", "words"),
    [
        ("run", run("dense", 3, 1.0), "the run of 'dense', pair 3, is there already"),
        ("design", design(), "a second design"),
        ("inference", inference("dense", 0, 1, 5.0), "the inference of 'dense', pair 0, in batches of 1"),
    ],
)
def test_a_line_that_stands_twice_is_named(
    invoke: Invoke, comparison: ComparisonFolder, kind: str, record: Any, words: str
) -> None:
    if kind == "inference":
        comparison.append(kind, record)
    comparison.append(kind, record)
    assert words in refused(invoke("report", str(comparison.path)))


def test_a_set_aside_run_may_be_made_once_more(invoke: Invoke, comparison: ComparisonFolder) -> None:
    comparison.append("redo", {"pair": 3, "why": "a test"})
    comparison.append("run", run("dense", 3, 1.0))
    assert invoke("report", str(comparison.path), "--json").exit_code == 0


@pytest.mark.parametrize("name", ["../../../etc/shadow", "/etc/shadow", "..", "", "a\\b"])
def test_readings_outside_the_folder_are_not_looked_at(
    invoke: Invoke, comparison: ComparisonFolder, name: str
) -> None:
    comparison.append("choices", replace(Choices(), wall_meter=name))
    message = refused(invoke("report", str(comparison.path)))
    assert "root:" not in message
    assert "wall_meter" in message or "Is a directory" in message or "no regular file" in message


def test_readings_behind_a_link_are_not_looked_at(
    invoke: Invoke, comparison: ComparisonFolder, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("root:secret\n")
    comparison.wall_meter.symlink_to(tmp_path / "secret")
    comparison.append("choices", Choices(wall_meter="wall_meter.csv"))
    message = refused(invoke("report", str(comparison.path)))
    assert "secret" not in message
    assert "it is a link, which is not followed" in message


@pytest.mark.parametrize("part", ["plots", "exports"])
def test_plots_are_not_written_through_a_link(
    invoke: Invoke, comparison: ComparisonFolder, tmp_path: Path, part: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (comparison.path / part).symlink_to(tmp_path / "elsewhere")
    assert f"{part} is a link, which is not followed" in refused(invoke("report", str(comparison.path)))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (comparison.path / "report.html").exists()


def test_a_lock_is_not_written_through_a_link(
    invoke: Invoke, comparison: ComparisonFolder, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("precious")
    comparison.runs.mkdir()
    (comparison.runs / "lock").symlink_to(tmp_path / "precious")
    message = refused(invoke("report", str(comparison.path), "--per-day", "3"))
    assert "lock: it is a link, which is not followed" in message
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_journal_behind_a_link_is_not_read(
    invoke: Invoke, comparison: ComparisonFolder, tmp_path: Path
) -> None:
    comparison.journal.path.rename(tmp_path / "journal")
    comparison.journal.path.symlink_to(tmp_path / "journal")
    assert "it is a link, which is not followed" in refused(invoke("report", str(comparison.path)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"\\u001b[2J\\u202e" = 1\n', "\\x1b[2J\\u202e"),
        ('"[/]" = 1\n', "[/]"),
        ('"one\\ntwo" = 1\n', "one\\ntwo"),
    ],
)
def test_keys_of_a_recipe_are_shown_escaped(invoke: Invoke, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "theirs.toml").write_text(text + SMALL)
    message = refused(invoke("check", "theirs.toml"))
    assert words in message
    assert "\x1b" not in message
    assert "\u202e" not in message


def test_cells_of_a_table_are_shown_escaped(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,\x1b[2Jx\n2,3\n")
    data = "task.data={kind='tabular', path='table.csv', target='b'}"
    message = refused(invoke("check", "small.toml", "--set", data, "--set", "task.model.kind='mlp'"))
    assert "'\\x1b[2Jx' in column 'b' is no number" in message
    assert "\x1b" not in message


@pytest.mark.parametrize("device", ["/dev/zero", "pipe"])
@pytest.mark.parametrize(
    "data",
    [
        "kind='text', path='{}'",
        "kind='tabular', path='{}', target='a'",
        "kind='image-folder', path='{}'",
    ],
)
def test_data_that_never_end_are_not_read(invoke: Invoke, tmp_path: Path, data: str, device: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = ("--set", f"task.data={{{data.format(device)}}}", "--no-widths")
    more = ("--set", "task.loss=next-token", "--set", "task.model.kind=transformer") if "text" in data else ()
    done = invoke("check", "small.toml", *words, *more)
    assert "no regular file" in refused(done)


def test_a_recipe_and_widths_that_never_end_are_not_read(invoke: Invoke, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    assert "is no regular file" in refused(invoke("check", "/dev/zero"))
    assert "no regular file" in refused(invoke("prune", "small.toml", "--target", "widths=pipe.json"))
    (tmp_path / "deep.json").write_text("[" * 1_000_000)
    assert "nested too deeply" in refused(invoke("prune", "small.toml", "--target", "widths=deep.json"))


def test_wall_meter_readings_that_never_end_are_not_read(
    invoke: Invoke, comparison: ComparisonFolder, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    done = invoke("report", str(comparison.path), "--wall-meter", "pipe.csv")
    assert "it is no regular file" in refused(done)


def test_twenty_thousand_layers_are_too_many(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text(SMALL.replace("[12, 16]", f"[{', '.join(['1'] * 20_000)}]"))
    assert "1000" in refused(invoke("check", "deep.toml", "--no-widths"))
