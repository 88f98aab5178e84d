"""Kill train, compare, export and report again and again, go on, and hold the ends against one never killed.

    python benchmarks/kills.py               # 100 kills, a quarter of an hour; writes reports/kills.md
    python benchmarks/kills.py --kills 8 --seed 3 --report /tmp/kills.md

Half of the kills come at a moment drawn at random, half just before or just after an fsync or a rename that
is drawn at random: there a file is most likely to be half written. After one to three kills the command is
given again until it ends. Then every file that depends on no clock has to be that of the straight run, byte
by byte; no temporary file may be left; and the locks have to be free. The meter is the fake one.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tpsprune.runs import write_text_atomically

REPORT = Path(__file__).parents[1] / "reports" / "kills.md"
RECIPE: Final = """
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
[compare]
inference_seconds = 0.05
idle_seconds = 0.05
[energy]
meter = "fake"
"""
CHILD: Final = """
import os, signal, sys
number, moment, counted, *words = sys.argv[1:]
calls = 0

def watched(call):
    def watch(*args, **kwargs):
        global calls
        calls += 1
        due = calls == int(number)
        if due and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return watch

for name in ("fsync", "rename", "replace"):
    setattr(os, name, watched(getattr(os, name)))
sys.argv = ["tpsprune", *words]
from tpsprune.cli import main
try:
    main()
finally:
    with open(counted, "w") as file:
        file.write(str(calls))
"""
ARMS: Final = ("dense", "ticket")
FIRST_SHARE: Final = 0.3
"""Before this share of a command's time it imports libraries and has nothing to lose."""


@dataclass
class Job:
    """A command that is killed, what makes the folder it is given in, and which files have to be equal."""

    name: str
    words: tuple[str, ...]
    compared: tuple[str, ...]
    made_of: Callable[[Path], object]
    calls: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))


COUNTED: Final = ("at random", "at an fsync or a rename", "ends", "left half written", "files equal")


def start(folder: Path, words: tuple[str, ...], number: int = 0, moment: str = "") -> subprocess.Popen[bytes]:
    """Start a command that kills itself before or after its n-th fsync or rename; 0 is never."""
    command = [sys.executable, "-c", CHILD, str(number), moment, str(folder.with_suffix(".calls")), *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def words_of(job: Job, folder: Path) -> tuple[str, ...]:
    """Return the command: a run that was begun is resumed."""
    begun = job.name == "train" and any(folder.glob("runs/*"))
    return (*job.words, "--resume") if begun else job.words


def kill_once(job: Job, folder: Path, draw: random.Random, *, at_a_call: bool) -> bool:
    """Give the command and kill it; return whether it was killed before it ended."""
    if at_a_call:
        child = start(
            folder, words_of(job, folder), draw.randint(1, job.calls), draw.choice(["before", "after"])
        )
    else:
        child = start(folder, words_of(job, folder))
        try:
            child.wait(job.seconds * draw.uniform(FIRST_SHARE, 1.0))
            job.seconds *= 0.9  # The machine has become quicker since: the next kills come earlier.
        except subprocess.TimeoutExpired:
            child.kill()
    child.communicate()
    killed = child.returncode == -signal.SIGKILL
    if killed:
        job.counts["at an fsync or a rename" if at_a_call else "at random"] += 1
        job.counts["left half written"] += len(list(folder.rglob("*.tmp-*")))
    return killed


def end(job: Job, folder: Path) -> None:
    """Give the command until it ends: once, or once more where all was done before the kill."""
    child = start(folder, words_of(job, folder))
    said = child.communicate()[0].decode()
    done = ("is finished, there is nothing to resume", "is there already and not empty")
    if child.returncode and not any(words in " ".join(said.split()) for words in done):
        raise SystemExit(f"{job.name} in {folder} ended with {child.returncode}:\n{said}")


def files_of(job: Job, folder: Path) -> dict[str, bytes]:
    """Return the files that depend on no clock, by name; run folders of a comparison by arm and seed."""
    found = {}
    for path in sorted(each for pattern in job.compared for each in folder.glob(pattern)):
        name = str(path.relative_to(folder))
        if job.name == "compare":
            # A run that a kill broke off is followed by another in its place, which takes its name here.
            name = f"{path.parents[1].name.partition('-')[2]}/{path.name}"
        found[name] = path.read_bytes()
    return found


def faults_of(job: Job, folder: Path, straight: dict[str, bytes]) -> Iterator[str]:
    """Yield what is not as it should be at the end."""
    for left in folder.rglob("*.tmp*"):
        yield f"{left} is left"
    for lock in folder.rglob("lock"):
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield f"{lock} is held"
    found = files_of(job, folder)
    for name in sorted({*found, *straight}):
        if found.get(name) == straight.get(name):
            job.counts["files equal"] += 1
        else:
            yield f"{name} differs from that of the straight run"
    job.counts["ends"] += 1


def measure(job: Job, folder: Path) -> dict[str, bytes]:
    """Run the command to its end; keep its time and its calls; return its files."""
    job.made_of(folder)
    begun = time.monotonic()
    end(job, folder)
    job.seconds = time.monotonic() - begun
    job.calls = int(folder.with_suffix(".calls").read_text())
    return files_of(job, folder)


def torment(job: Job, root: Path, kills: int, draw: random.Random) -> list[str]:
    """Kill a command so many times, in folders of one to three kills each; return what went wrong."""
    straight = measure(job, root / job.name / "straight")
    faults: list[str] = []
    done, number = 0, 0
    while done < kills:
        number += 1
        folder = root / job.name / f"killed-{number}"
        job.made_of(folder)
        for _ in range(min(draw.randint(1, 3), kills - done)):
            if not kill_once(job, folder, draw, at_a_call=done % 2 == 1):
                break
            done += 1
        end(job, folder)
        faults += faults_of(job, folder, straight)
        print(f"{job.name}: {done} of {kills} kills, {len(faults)} faults", flush=True)
        shutil.rmtree(folder)
    return faults


def list_jobs(root: Path) -> list[Job]:
    """Return the four commands; what export and report begin with is made by the two others."""

    def fresh(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "small.toml").write_text(RECIPE)

    def copy_of(name: str) -> Callable[[Path], object]:
        return lambda folder: shutil.copytree(root / name / "straight", folder)

    run_files = ("ticket.safetensors", "dense.safetensors", "plan.json", "readings.jsonl", "decisions.jsonl")
    train = ("train", "small.toml", "--device", "cpu", "--quiet")
    compare = (
        "compare",
        "small.toml",
        "--device",
        "cpu",
        "--quiet",
        "--pairs",
        "1",
        "--arms",
        ",".join(ARMS),
    )
    jobs = [
        Job("train", train, tuple(f"runs/*/{name}" for name in run_files), fresh),
        Job(
            "compare",
            compare,
            tuple(f"reports/small/runs/*-seed-*/*/{name}" for name in run_files[:4]),
            fresh,
        ),
    ]
    formats = ("--format", "safetensors", "--format", "torch-export")
    export = ("export", "runs/RUN", "--to", "tickets/small", *formats)
    report = ("report", "reports/small", "--country", "FRA")
    return [
        *jobs,
        Job("export", export, ("tickets/**/*.*",), copy_of("train")),
        Job(
            "report",
            report,
            ("reports/small/*.*", "reports/small/plots/*", "reports/small/exports/*"),
            copy_of("compare"),
        ),
    ]


def main() -> None:
    """Torment the four commands, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="kills in all (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments that are drawn (default: 0)")
    parser.add_argument("--report", type=Path, default=REPORT, help="file to write")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        jobs = list_jobs(root)

        def torment_two(first: int) -> list[str]:
            """Torment a command, then the one that begins with what it made."""
            faults: list[str] = []
            for place in (first, first + 2):
                job, seed = jobs[place], options.seed + place
                if job.name == "export":
                    (run,) = (root / "train" / "straight" / "runs").iterdir()
                    job.words = tuple(word.replace("RUN", run.name) for word in job.words)
                kills = options.kills * (place + 1) // len(jobs) - options.kills * place // len(jobs)
                print(f"{job.name}: seed {seed}", flush=True)
                faults += torment(job, root, kills, random.Random(seed))
            return faults

        with ThreadPoolExecutor(2) as pool:
            faults = [fault for found in pool.map(torment_two, (0, 1)) for fault in found]
    lines = [
        f"| {job.name} | {options.seed + place} | {' | '.join(map(str, job.counts.values()))} |"
        for place, job in enumerate(jobs)
    ]
    outcome = "\n".join(f"- {fault}" for fault in faults) or "Nothing was left, held or different."
    headings = ("command", "seed", *COUNTED)
    write_text_atomically(
        options.report,
        f"# Kills\n\n`python benchmarks/kills.py --kills {options.kills} --seed {options.seed}`: SIGKILL "
        "while a command runs, half at a moment drawn at random, half just before or after an fsync or a "
        "rename; then the same command (train with `--resume`) until it ends. *Left half written* counts the "
        "temporary folders found right after the kills; at the ends none may be left, locks have to be free, "
        "and files that depend on no clock (weights, plan, readings, decisions; the whole bundle; the whole "
        "report) equal to the byte those of a run that was never killed. Fake meter, small CNN on digits.\n\n"
        f"| {' | '.join(headings)} |\n| {' | '.join('---' for _ in headings)} |\n"
        + "\n".join(lines)
        + f"\n\n{outcome}\n",
    )
    if faults:
        raise SystemExit(outcome)


if __name__ == "__main__":
    main()
