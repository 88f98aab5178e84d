"""A run broken off anywhere goes on, and ends, bit for bit as one that never was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import SMALL, Small, harmful_model, make_small
from tests.pipeline.own_tasks import text_recipe
from tpsprune import pipeline
from tpsprune import recipe as recipe_reader
from tpsprune.errors import RunFolderError
from tpsprune.pipeline.state import load_checkpoint
from tpsprune.recipe import Recipe
from tpsprune.records import Event, Finished, Progress
from tpsprune.runs import RunFolder, read_result
from tpsprune.runs.tensors import load_tensors, save_tensors

SAME = ("ticket.safetensors", "dense.safetensors", "decisions.jsonl", "plan.json")
JOURNALS = ("readings.jsonl", "decisions.jsonl")
ROUNDS = ("prune.rounds=2", "prune.target.macs=0.4")


def only_folder(out: Path) -> RunFolder:
    (path,) = out.iterdir()
    return RunFolder(path)


def finish(recipe: Recipe, out: Path, *, resume: bool = False) -> RunFolder:
    *_, last = pipeline.train(recipe, out, device="cpu", resume=resume)
    assert isinstance(last, Finished)
    return only_folder(out)


def assert_same(first: RunFolder, second: RunFolder) -> None:
    for name in SAME:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
    assert journal(first, "readings.jsonl") == journal(second, "readings.jsonl")
    results = [read_result(folder.result) for folder in (first, second)]
    for key in ("macs_share", "drawn_at", "stopped_at", "groups", "pruned_validation_accuracy"):
        assert getattr(results[0], key) == getattr(results[1], key)
    assert results[0].ticket.accuracy == results[1].ticket.accuracy


def journal(folder: RunFolder, name: str) -> bytes:
    path = folder.path / name
    return path.read_bytes() if path.exists() else b""


def lasting(run: Iterator[Event]) -> Iterator[Event]:
    """Leave out the progress that is shown by the clock: how often depends on the machine."""
    return (event for event in run if not isinstance(event, Progress) or event.read)


def state_of(folder: RunFolder) -> dict[str, Any] | None:
    """Return all that the checkpoint holds but what the machine's clock read."""
    path = folder.state / "checkpoint.safetensors"
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    values = json.loads(metadata["state"])
    del values["clock"]
    if values["cut"]:
        del values["cut"]["dense_clock"]
    return {**values, **{name: tensor.numpy().tobytes() for name, tensor in tensors.items()}}


@dataclass(frozen=True)
class Job:
    """A run to be broken off: training, or pruning trained weights; at each event or at two of them."""

    overrides: tuple[str, ...] = ()
    prunes: bool = False
    is_text: bool = False
    everywhere: bool = False
    whole: bool = False

    def start(self, out: Path, dense: Path, *, resume: bool = False) -> Iterator[Event]:
        recipe = make_small(*self.overrides)
        if self.is_text:
            recipe = recipe_reader.parse(text_recipe(dense), "text.toml", self.overrides)
        if self.prunes:
            return lasting(pipeline.prune(recipe, dense, out, device="cpu", resume=resume))
        return lasting(pipeline.train(recipe, out, device="cpu", resume=resume))


JOBS = {
    "default": Job(everywhere=True, whole=True),
    "neurons-grokfast": Job(
        ("tps.variant=neurons", "tps.coupling=0.3", "train.optimizer=sgd", "train.grokfast_gain=0.5")
    ),
    "muon-rounds": Job((*ROUNDS, "train.optimizer=muon", "train.grokfast_gain=0.5")),
    "rewind": Job(("retrain.rewind=epoch:1",)),
    "rounds": Job(ROUNDS),
    "rounds-rewound": Job(("prune.rounds=2", "retrain.rewind=init", "retrain.epochs=1"), whole=True),
    "taught": Job(("retrain.teacher=dense", "retrain.rewind=epoch:1")),
    "head": Job(("retrain.adapter=head", "train.optimizer=sgd")),
    "singlora": Job(("retrain.adapter=singlora", "train.grokfast_gain=0.5", "train.clip_norm=1.0")),
    "rounds-lora-taught": Job((*ROUNDS, "retrain.adapter=lora", "retrain.teacher=dense"), whole=True),
    "text-taught": Job(  # dropout: a teacher is not to move the random numbers of the student
        ("train.epochs=4", "stop.draw.epoch=2.0", "retrain.teacher=dense", "retrain.adapter=singlora"),
        is_text=True,
    ),
    "text": Job(("train.epochs=4", "stop.draw.epoch=2.0"), is_text=True),
    "augmented-resnet": Job(
        ("task.model={kind='resnet', depth=8, width=8}", "task.data.augment=crop-flip", "train.epochs=3")
    ),
    "prune": Job(prunes=True, everywhere=True),
    "prune-rounds": Job(("prune.rounds=3", "prune.target.macs=0.3"), prunes=True),
    "prune-taught": Job(("retrain.epochs=2", "retrain.teacher=dense", "retrain.adapter=lora"), prunes=True),
    "prune-rounds-retrained": Job(("prune.rounds=2", "retrain.epochs=2"), prunes=True),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_run_left_at_any_event_goes_on_bit_for_bit_the_same(
    job: Job, trained: RunFolder, tmp_path: Path
) -> None:
    dense = tmp_path if job.is_text else trained.dense
    states: list[dict[str, Any] | None] = []
    for number, _ in enumerate(job.start(tmp_path / "straight", dense)):
        # What lies in the folder now is what a kill would leave.
        shutil.copytree(tmp_path / "straight", tmp_path / f"left-{number}")
        states.append(state_of(only_folder(tmp_path / "straight")))
    straight = only_folder(tmp_path / "straight")
    events = len(states)
    points = range(events - 1) if job.everywhere else sorted({max(events // 2 - 1, 0), events - 4})
    for point in points:
        out = tmp_path / f"left-{point}"
        folder = only_folder(out)
        run = job.start(out, dense, resume=True)
        if not (job.whole and point == events // 2):
            run = _until_next_checkpoint(run, folder)
        list(run)
        if folder.is_finished:
            assert_same(folder, straight)
        assert state_of(folder) in states[point:]
        for name in JOURNALS:
            assert journal(straight, name).startswith(journal(folder, name)), name


def _until_next_checkpoint(run: Iterator[Event], folder: RunFolder) -> Iterator[Event]:
    before = state_of(folder)
    for event in run:
        yield event
        if state_of(folder) != before:
            return


def test_a_run_killed_again_and_again_ends_bit_for_bit_the_same(trained: RunFolder, tmp_path: Path) -> None:
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
    folder = finish(make_small(), out, resume=True)
    assert_same(folder, trained)
    assert not list(out.rglob("*.tmp*")), "what the kills left is swept"
    spent = [len(f.energy.read()[0]) for f in (folder, trained)]
    assert spent[0] > spent[1], "energy of the lost work stays on the ledger"
    result = read_result(folder.result)
    assert result.attempts == 3
    assert any("attempts: energy of work that was lost is counted" in note for note in result.notes)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own imports warn
def test_a_compiled_run_pays_for_its_compiling_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    recipe = make_small("train.compile=true", "train.epochs=3", "task.model={kind='mlp', widths=[12]}")
    straight, left = tmp_path / "straight", tmp_path / "left"
    for event in pipeline.train(recipe, straight, device="cpu"):
        if type(event).__name__ == "Pruned":
            shutil.copytree(straight, left)
    first, second = only_folder(straight), finish(recipe, left, resume=True)
    assert_same(first, second)
    phases = [window["phase"] for window in first.energy.read()[0]]
    assert phases.count("compile") == 2, "the dense model, and the ticket as a module of its own"
    assert phases[phases.index("prune") :].count("compile") == 1


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("half-done")
    run = pipeline.train(make_small(), out, device="cpu")
    for _ in islice(lasting(run), 4):
        pass
    run.close()  # type: ignore[attr-defined]
    return out


@pytest.fixture
def left(half_done: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(half_done, tmp_path / "left")
    return only_folder(tmp_path / "left")


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


def test_two_processes_never_share_a_run_folder(small: Small, left: RunFolder) -> None:
    with left.locked(), pytest.raises(RunFolderError, match=r"is in use by process"):
        next(pipeline.train(small(), left.path.parent, device="cpu", resume=True))


def test_there_is_nothing_to_resume_where_nothing_was_begun(small: Small, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run of this recipe in .*start it without --resume"):
        next(pipeline.train(small(), tmp_path, device="cpu", resume=True))


def test_a_recipe_that_a_kill_kept_from_being_written_is_written_on_resume(
    small: Small, left: RunFolder
) -> None:
    left.recipe.unlink()
    run = pipeline.train(small(), left.path.parent, device="cpu", resume=True)
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert recipe_reader.parse(left.recipe.read_text(), "x") == small()


def test_code_that_the_folder_of_a_resumed_run_names_is_never_called(left: RunFolder, tmp_path: Path) -> None:
    left.recipe.write_text(recipe_reader.dumps(make_small(harmful_model(tmp_path / "harm"))))
    assert finish(make_small(), left.path.parent, resume=True).is_finished
    assert not (tmp_path / "harm").exists()


def _spoil_line(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[2:]]))


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("energy.jsonl", _spoil_line, r"energy.jsonl line 2 is no record of this journal .*--again"),
        ("readings.jsonl", _spoil_line, r"readings.jsonl line 2 is no record of this journal .*--again"),
        ("state/checkpoint.safetensors", _cut_short, r"cannot go on from it: start again with --again"),
    ],
)
def test_a_file_damaged_from_outside_is_reported_with_what_would_do(
    small: Small, left: RunFolder, name: str, damage: Callable[[Path], None], words: str
) -> None:
    damage(left.path / name)
    with pytest.raises(RunFolderError, match=words):
        list(pipeline.train(small(), left.path.parent, device="cpu", resume=True))
