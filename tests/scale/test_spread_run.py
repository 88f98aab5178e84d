"""``torchrun -m tpsprune train --set train.spread=shard``: killed, and taken up by fewer processes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.scale.nets import RECIPE
from tests.scale.test_torchrun import (
    SECONDS,
    assert_equal,
    children,
    command,
    folder_of,
    wait_for_a_checkpoint,
)
from tpsprune.runs import read_json
from tpsprune.runs.tensors import load_tensors

pytestmark = pytest.mark.xdist_group("duo")
SPREAD = ("--set", "train.spread=shard")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spread") / "residual.toml"
    path.write_text(RECIPE.replace(":Residual", ":wide"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    done = subprocess.run(
        [*command(recipe, out), *SPREAD], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder_of(out)


def test_a_spread_run_ends_with_a_ticket_that_one_process_loads(unbroken: Path) -> None:
    result = read_json(unbroken / "result.json")
    assert result["machine"]["processes"] == [2]
    assert result["ticket"]["latency_seconds"] == {}
    assert any("no latency was measured" in each for each in result["notes"])
    ticket, _ = load_tensors(unbroken / "ticket.safetensors")
    dense, _ = load_tensors(unbroken / "dense.safetensors")
    assert sum(each.numel() for each in ticket.values()) < 0.7 * sum(each.numel() for each in dense.values())
    kinds = {each.suffix for each in unbroken.rglob("*") if each.is_file()}
    assert kinds <= {".toml", ".json", ".jsonl", ".safetensors", ".png", ".svg", ""}


def test_files_or_memory_give_one_ticket_and_files_leave_nothing(
    recipe: Path, unbroken: Path, tmp_path: Path
) -> None:
    in_memory = ("--set", "train.spread=shard", "--set", "prune.gather=host")
    done = subprocess.run(
        [*command(recipe, tmp_path), *in_memory], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = folder_of(tmp_path)
    for name in ("dense.safetensors", "ticket.safetensors", "plan.json", "readings.jsonl"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name
    sizes = [read_json(each / "result.json")["ticket"]["bytes"] for each in (folder, unbroken)]
    assert sizes == [(folder / "ticket.safetensors").stat().st_size] * 2
    assert [each.name for each in unbroken.parent.iterdir()] == [unbroken.name]


def test_a_killed_process_ends_as_the_spread_run_that_was_never_killed(
    recipe: Path, unbroken: Path, tmp_path: Path
) -> None:
    job = subprocess.Popen(
        [*command(recipe, tmp_path, "--max-restarts=1"), *SPREAD],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for_a_checkpoint(tmp_path, "current.json")
        os.kill(children(job.pid)[-1], signal.SIGKILL)
        _, said = job.communicate(timeout=SECONDS)
    finally:
        job.kill()
    assert job.returncode == 0, said[-2000:]
    folder = folder_of(tmp_path)
    assert_equal(folder, unbroken)
    assert read_json(folder / "result.json")["machine"]["processes"] == [2, 2]


def test_a_weight_tied_outside_of_the_blocks_is_in_a_checkpoint_once(recipe: Path, tmp_path: Path) -> None:
    tied = tmp_path / "tied.toml"
    tied.write_text(recipe.read_text(encoding="utf-8").replace(":wide", ":Tied"), encoding="utf-8")
    job = subprocess.Popen(
        [*command(tied, tmp_path / "runs", "--max-restarts=1"), *SPREAD, "--set", "prune.target.macs=0.8"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for_a_checkpoint(tmp_path / "runs", "current.json")
        os.kill(children(job.pid)[-1], signal.SIGKILL)
        _, said = job.communicate(timeout=SECONDS)
    finally:
        job.kill()
    assert job.returncode == 0, said[-2000:]
    folder = folder_of(tmp_path / "runs")
    assert read_json(folder / "result.json")["machine"]["processes"] == [2, 2]
    dense, _ = load_tensors(folder / "dense.safetensors")
    assert torch.equal(dense["stem.weight"], dense["back.weight"])


def test_one_process_takes_up_what_two_have_begun(recipe: Path, unbroken: Path, tmp_path: Path) -> None:
    job = subprocess.Popen(
        [*command(recipe, tmp_path), *SPREAD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_a_checkpoint(tmp_path, "current.json")
        for each in children(job.pid):
            os.kill(each, signal.SIGKILL)
        job.communicate(timeout=SECONDS)
    finally:
        job.kill()
    launcher = command(recipe, tmp_path)
    launcher[launcher.index("--nproc-per-node=2")] = "--nproc-per-node=1"
    done = subprocess.run(
        [*launcher, *SPREAD, "--resume"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = folder_of(tmp_path)
    assert read_json(folder / "result.json")["machine"]["processes"] == [2, 1]
    assert (folder / "decisions.jsonl").read_bytes() == (unbroken / "decisions.jsonl").read_bytes()
    ours, theirs = (load_tensors(each / "dense.safetensors")[0] for each in (folder, unbroken))
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, atol=1e-3, rtol=0)
