"""``torchrun -m tpsprune train``: two processes make the run that one makes; a killed one is made good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tpsprune.cli import main
from tpsprune.errors import PeersError
from tpsprune.pipeline import train
from tpsprune.recipe import read
from tpsprune.records import Event
from tpsprune.runs import read_json

RECIPE = """
name = "small"
[task.data]
kind = "digits"
[task.model]
kind = "cnn"
widths = [12, 16]
[train]
epochs = 2
batch_size = 64
learning_rate = 2e-2
threads = 1
shards = 2
checkpoint_seconds = 0
[watch]
calibration_items = 64
h1_points = 16
edge_window = 4
every_steps = 10
[stop.draw]
rule = "epoch"
epoch = 1.0
[prune]
calibration_items = 256
[energy]
meter = "fake"
"""
EQUAL = ("plan.json", "dense.safetensors", "ticket.safetensors", "readings.jsonl", "decisions.jsonl")
SECONDS = 240
pytestmark = pytest.mark.xdist_group("duo")


def command(recipe: Path, out: Path, *more: str, processes: int = 2) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *more]
    run = ["-m", "tpsprune", "train", str(recipe), "--out", str(out), "--quiet"]
    return [sys.executable, *(launcher if processes > 1 else ()), *run]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that works through both shards."""
    out = tmp_path_factory.mktemp("alone")
    subprocess.run(command(recipe, out, processes=1), check=True, timeout=SECONDS)
    (folder,) = out.iterdir()
    return folder


def folder_of(out: Path) -> Path:
    (folder,) = (each for each in out.iterdir() if each.is_dir())
    return folder


def assert_equal(folder: Path, other: Path) -> None:
    differ = [name for name in EQUAL if (folder / name).read_bytes() != (other / name).read_bytes()]
    assert not differ


def test_two_processes_make_the_run_of_one_to_the_bit(recipe: Path, alone: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(recipe, tmp_path), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = folder_of(tmp_path)
    assert_equal(folder, alone)
    ours, theirs = (read_json(each / "result.json") for each in (folder, alone))
    assert ours["total"]["joules"] == theirs["total"]["joules"]  # one machine, metered once
    assert ours["ticket"]["accuracy"] == theirs["ticket"]["accuracy"]
    assert ours["machine"]["processes"] == [2]
    assert theirs["machine"]["processes"] == [1]


def test_a_run_of_shards_is_shown_and_exported_like_any_other(alone: Path, tmp_path: Path) -> None:
    for words in (["show", str(alone)], ["export", str(alone), "--to", str(tmp_path / "ticket")]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        assert words[0] == "export" or " · 1 process, 2 shards\n" in done.output
    assert (tmp_path / "ticket" / "manifest.json").is_file()


def test_a_killed_process_ends_as_the_run_that_was_never_killed(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    job = subprocess.Popen(
        command(recipe, tmp_path, "--max-restarts=2"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        wait_for_a_checkpoint(tmp_path)
        victim = children(job.pid)[-1]
        os.kill(victim, signal.SIGKILL)
        _, said = job.communicate(timeout=SECONDS)
    finally:
        job.kill()
    assert job.returncode == 0, said[-2000:]
    folder = folder_of(tmp_path)
    assert_equal(folder, alone)
    result = read_json(folder / "result.json")
    assert result["attempts"] == 2
    assert result["machine"]["processes"] == [2, 2]


@pytest.mark.parametrize(
    ("method", "said"),
    [("sum", "rank 1 does not answer ("), ("call_roll", "rank 1 has not come to the end of '")],
)
def test_a_process_that_falls_silent_is_named(recipe: Path, tmp_path: Path, method: str, said: str) -> None:
    launched = command(recipe, tmp_path)
    launched[launched.index("tpsprune")] = "tests.scale.impatient"
    with (tmp_path / "stderr").open("w", encoding="utf-8") as stderr:
        job = subprocess.Popen(
            launched, stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, "SILENT_IN": method}
        )
        try:
            end = time.monotonic() + SECONDS
            while "Error:" not in (found := Path(stderr.name).read_text(encoding="utf-8")):
                assert time.monotonic() < end
                assert job.poll() is None
                time.sleep(0.1)
            for each in children(job.pid):
                os.kill(each, signal.SIGKILL)
            job.wait(SECONDS)
        finally:
            job.kill()
    assert said in found
    assert "goes on with --resume" in found


def test_batches_that_do_not_divide_are_refused_before_a_folder_is_made(tmp_path: Path, recipe: Path) -> None:
    def run() -> list[Event]:
        return list(train(read(str(recipe), ("train.batch_size=63",)), tmp_path / "runs", device="cpu"))

    with pytest.raises(PeersError, match="use 62 or 64"):
        run()
    assert not (tmp_path / "runs").exists()


def wait_for_a_checkpoint(out: Path, name: str = "checkpoint.safetensors") -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if list(out.glob(f"*/state/{name}")):
            return
        time.sleep(0.02)
    pytest.fail("no checkpoint was written")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
