"""A run broken off anywhere ends bit for bit as one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.pipeline.conftest import SMALL
from tpsprune import pipeline
from tpsprune import recipe as recipe_reader
from tpsprune.errors import RunFolderError
from tpsprune.pipeline.state import load_checkpoint
from tpsprune.recipe import Recipe
from tpsprune.records import Event, Finished, Progress
from tpsprune.runs import RunFolder, read_result
from tpsprune.runs.tensors import save_tensors

Small = Callable[..., Recipe]
SAME = ("ticket.safetensors", "dense.safetensors", "readings.jsonl", "decisions.jsonl", "plan.json")


def folder_of(out: Path) -> RunFolder:
    (path,) = out.iterdir()
    return RunFolder(path)


def finish(recipe: Recipe, out: Path, *, resume: bool = False) -> RunFolder:
    for event in pipeline.train(recipe, out, device="cpu", resume=resume):
        last = event
    assert isinstance(last, Finished)
    return folder_of(out)


def assert_same(first: RunFolder, second: RunFolder) -> None:
    for name in SAME:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
    results = [read_result(folder.result) for folder in (first, second)]
    for key in ("macs_share", "drawn_at", "stopped_at", "groups", "cut_validation_accuracy"):
        assert getattr(results[0], key) == getattr(results[1], key)
    assert results[0].ticket.accuracy == results[1].ticket.accuracy


def lasting(run: Iterator[Event]) -> Iterator[Event]:
    """Leave out the progress that is shown by the clock: how often depends on the machine."""
    return (event for event in run if not isinstance(event, Progress) or event.read)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("tps.variant=neurons", "tps.coupling=0.3", "train.optimizer=sgd", "train.grokfast_gain=0.5"),
        ("retrain.rewind=epoch:1",),
        ("prune.rounds=2", "prune.target.macs=0.4"),
        ("prune.rounds=2", "retrain.rewind=init", "retrain.epochs=1"),
    ],
    ids=["plain", "neurons-grokfast", "rewind", "rounds", "rounds-rewound"],
)
def test_a_run_left_at_any_event_and_resumed_ends_bit_for_bit_the_same(
    small: Small, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    recipe = small(*overrides)
    events = len(list(lasting(pipeline.train(recipe, tmp_path / "straight", device="cpu"))))
    straight = folder_of(tmp_path / "straight")
    # Before the first step and after the last all recipes are alike.
    more = () if overrides else (1, 2, events // 3, events - 1)
    for leave_after in sorted({*more, events // 2, events - 3}):
        out = tmp_path / f"left-after-{leave_after}"
        run = pipeline.train(recipe, out, device="cpu")
        for _ in islice(lasting(run), leave_after):
            pass
        run.close()  # type: ignore[attr-defined]
        assert_same(finish(recipe, out, resume=True), straight)


def test_a_run_killed_again_and_again_ends_bit_for_bit_the_same(small: Small, tmp_path: Path) -> None:
    straight = finish(small(), tmp_path / "straight")
    recipe_file = tmp_path / "small.toml"
    recipe_file.write_text(SMALL)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "tpsprune", "train", str(recipe_file), "--out", str(out), "--quiet"]
    command += ["--device", "cpu"]

    def windows() -> int:
        return sum(path.read_bytes().count(b"\n") for path in out.glob("*/energy.jsonl"))

    for _ in range(2):
        enough = windows() + 4
        child = subprocess.Popen([*command, *(["--resume"] if out.exists() else [])])
        while child.poll() is None and windows() < enough:
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "the run was killed before its end"
    folder = finish(small(), out, resume=True)
    assert_same(folder, straight)
    spent = [len(f.energy.read()[0]) for f in (folder, straight)]
    assert spent[0] > spent[1], "energy of the lost work stays on the bill"
    result = read_result(folder.result)
    assert result.attempts == 3
    assert any("attempts: energy of work that was lost is on the bill" in note for note in result.notes)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("{}", "is a checkpoint of schema None; this version reads 'tpsprune.state/3'"),
        ('{"schema": "tpsprune.state/2"}', "checkpoint of schema 'tpsprune.state/2'; .*--again"),
        ('{"schema": "tpsprune.state/3"}', "is damaged: stage is missing; .*--again"),
        ("{", "is damaged: line 1 is not JSON"),
        ("[]", "is a checkpoint of schema None"),
    ],
)
def test_a_checkpoint_that_is_none_of_ours_is_refused(tmp_path: Path, state: str, words: str) -> None:
    folder = RunFolder.create(tmp_path, "small", "0")
    save_tensors(folder.state / "checkpoint.safetensors", {}, {"state": state})
    with pytest.raises(RunFolderError, match=words):
        load_checkpoint(folder)


def test_two_processes_never_share_a_run_folder(small: Small, tmp_path: Path) -> None:
    run = pipeline.train(small(), tmp_path, device="cpu")
    next(run)
    with pytest.raises(RunFolderError, match=r"is in use by process"):
        next(pipeline.train(small(), tmp_path, device="cpu", resume=True))
    run.close()  # type: ignore[attr-defined]


def test_there_is_nothing_to_resume_where_nothing_was_begun(small: Small, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run of this recipe in .*start it without --resume"):
        next(pipeline.train(small(), tmp_path, device="cpu", resume=True))


def left_half_done(recipe: Recipe, out: Path) -> RunFolder:
    run = pipeline.train(recipe, out, device="cpu")
    for _ in islice(lasting(run), 4):
        pass
    run.close()  # type: ignore[attr-defined]
    return folder_of(out)


def test_a_recipe_that_a_kill_kept_from_being_written_is_written_on_resume(
    small: Small, tmp_path: Path
) -> None:
    left_half_done(small(), tmp_path).recipe.unlink()
    assert recipe_reader.parse(finish(small(), tmp_path, resume=True).recipe.read_text(), "x") == small()


@pytest.mark.parametrize("name", ["energy.jsonl", "readings.jsonl"])
def test_a_journal_changed_from_outside_is_told_with_its_line(
    small: Small, tmp_path: Path, name: str
) -> None:
    path = left_half_done(small(), tmp_path).path / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[2:]]))
    with pytest.raises(RunFolderError, match=rf"{name} line 2 is no record of this journal .*--again"):
        finish(small(), tmp_path, resume=True)


def test_a_damaged_checkpoint_is_told_with_what_would_do(small: Small, tmp_path: Path) -> None:
    checkpoint = left_half_done(small(), tmp_path).state / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(RunFolderError, match=r"the run cannot go on from it: start anew with --again"):
        finish(small(), tmp_path, resume=True)
