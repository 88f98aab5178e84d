"""Kill a random process of a run of two again and again; hold the end against the run never killed.

    python benchmarks/spread_kills.py                 # 50 kills, half an hour; writes reports/spread_kills.md
    python benchmarks/spread_kills.py --kills 4 --seed 3 --report /tmp/kills.md

torchrun starts two processes with ``--max-restarts``; one of them, drawn at random, is killed at a moment
drawn at random, one to three times a run; torchrun restarts both, which go on by themselves. At the end plan,
weights, readings and decisions have to be to the byte those of the run in one process that was never killed,
and no temporary file may be left. The meter is the fake one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tpsprune.runs import write_text_atomically

REPORT = Path(__file__).parents[1] / "reports" / "spread_kills.md"
RECIPE: Final = """
name = "small"
[task.data]
kind = "digits"
[task.model]
kind = "cnn"
widths = [12, 16]
[train]
epochs = 6
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
epoch = 3.0
[prune]
calibration_items = 256
[retrain]
epochs = 2.0
[energy]
meter = "fake"
"""
EQUAL: Final = ("plan.json", "dense.safetensors", "ticket.safetensors", "readings.jsonl", "decisions.jsonl")
IMPORTS: Final = 0.25
"""Before this share of a run's time its processes import libraries and have nothing to lose."""
PATIENCE: Final = 600.0


def command(recipe: Path, out: Path, processes: int) -> list[str]:
    """Return the command of a run; two processes are restarted as often as they are killed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=5"]
    run = ["-m", "tpsprune", "train", str(recipe), "--out", str(out), "--quiet"]
    return [sys.executable, *(launcher if processes > 1 else ()), *run]


def processes_of(agent: int) -> list[int]:
    """Return the processes that torchrun has started, in the order of their ranks."""
    try:
        return [int(each) for each in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
    except FileNotFoundError:
        return []


def torment(recipe: Path, out: Path, kills: int, seconds: float, draw: random.Random) -> list[int]:
    """Run once with so many kills; return the ranks that were killed before the run had ended."""
    job = subprocess.Popen(command(recipe, out, 2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    killed: list[int] = []
    for _ in range(kills):
        try:
            job.wait(seconds * draw.uniform(IMPORTS, 1.0))
            break
        except subprocess.TimeoutExpired:
            rank = draw.randrange(2)
            found = processes_of(job.pid)
            if len(found) == 2:
                os.kill(found[rank], signal.SIGKILL)
                killed.append(rank)
    said = job.communicate(timeout=PATIENCE)[0].decode()
    if job.returncode:
        raise SystemExit(f"the run ended with {job.returncode}:\n{said[-3000:]}")
    return killed


def faults_of(folder: Path, straight: Path) -> list[str]:
    """Return what is not as it should be at the end of a run."""
    left = [f"{path} is left" for path in folder.rglob("*.tmp*")]
    names = (name for name in EQUAL if (folder / name).read_bytes() != (straight / name).read_bytes())
    return left + [f"{folder.name}: {name} differs from that of the straight run" for name in names]


def only(out: Path) -> Path:
    """Return the run folder in a folder of one."""
    (folder,) = (each for each in out.iterdir() if each.is_dir())
    return folder


def main(words: Sequence[str] | None = None) -> None:
    """Torment a run of two processes, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="kills in all (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the ranks (default: 0)")
    parser.add_argument("--report", type=Path, default=REPORT, help="file to write")
    options = parser.parse_args(words)
    os.environ["OMP_NUM_THREADS"] = "1"
    draw = random.Random(options.seed)
    faults: list[str] = []
    killed: list[int] = []
    runs = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        recipe = root / "small.toml"
        recipe.write_text(RECIPE, encoding="utf-8")
        subprocess.run(command(recipe, root / "straight", 1), check=True)
        begun = time.monotonic()
        subprocess.run(command(recipe, root / "two", 2), check=True, capture_output=True)
        seconds = time.monotonic() - begun
        faults += faults_of(only(root / "two"), only(root / "straight"))
        while len(killed) < options.kills:
            runs += 1
            out = root / f"killed-{runs}"
            wanted = min(draw.randint(1, 3), options.kills - len(killed))
            found = torment(recipe, out, wanted, seconds, draw)
            seconds *= 1.0 if len(found) == wanted else 0.9  # It ended first: the next kills come earlier.
            killed += found
            faults += faults_of(only(out), only(root / "straight"))
            shutil.rmtree(out)
            print(f"{len(killed)} of {options.kills} kills in {runs} runs, {len(faults)} faults", flush=True)
    outcome = "\n".join(f"- {fault}" for fault in faults) or "Nothing was left or different."
    write_text_atomically(
        options.report,
        f"# Kills of one of two processes\n\n`python benchmarks/spread_kills.py --kills {options.kills} "
        f"--seed {options.seed}`: SIGKILL of a process drawn at random, at a moment drawn at random, while "
        "torchrun runs two of them with `--max-restarts`; nothing is done by hand. At the end plan, "
        "weights, readings and decisions have to be to the byte those of the run of one process, in two "
        "shards, that was never "
        f"killed. Fake meter, small CNN on digits, retrained.\n\n{len(killed)} kills in {runs} runs: rank 0 "
        f"{killed.count(0)} times, rank 1 {killed.count(1)} times.\n\n{outcome}\n",
    )
    if faults:
        raise SystemExit(outcome)


if __name__ == "__main__":
    main()
