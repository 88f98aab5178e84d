"""What exporting and loading a ticket of 25 million parameters costs: seconds, and memory.

    python benchmarks/export.py          # some five minutes; writes reports/export.md

Each figure is of a process of its own; memory is the most it held above what it held just before, imports
among that. Nothing here decides a test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tpsprune import models, pruning, recipe
from tpsprune.pruning.plan import signature_of
from tpsprune.records import (
    Cost,
    EnergyMethod,
    Milestone,
    ModelFigures,
    RunResult,
    TaskFacts,
)
from tpsprune.runs import to_json_text, write_result, write_text_atomically
from tpsprune.runs.tensors import file_bytes, save_tensors

REPORT = Path(__file__).parents[1] / "reports" / "export.md"
FACTS = TaskFacts(input_kind="image", input_shape=(3, 32, 32), classes=10)
MODELS = {
    "mlp": "task.model={kind='mlp', widths=[3800, 3500]}",
    "resnet": "task.model={kind='resnet', depth=20, width=154}",
}
FORMATS = {
    "safetensors": ("safetensors",),
    "torch-export": ("torch-export",),
    "onnx": ("onnx",),
    "all three": ("safetensors", "torch-export", "onnx"),
}
CHILD = """
import json, sys, time
import torch, tpsprune
from tpsprune import pipeline
from pathlib import Path
torch.set_num_threads(2)

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

job, run, target, *formats = sys.argv[1:]
torch.nn.Linear(8, 8)(torch.ones(1, 8))
Path("/proc/self/clear_refs").write_text("5")
before, started, cpu = held("VmRSS"), time.perf_counter(), time.process_time()
if job == "export":
    pipeline.export(Path(run), Path(target), formats)
else:
    model = tpsprune.load(target)
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": held("VmHWM") - before}))
"""


def make_run(folder: Path, name: str) -> int:
    """Write the run folder of a ticket with weights drawn at random and nothing cut; return its bytes."""
    read = recipe.read("digits", [MODELS[name]])
    torch.manual_seed(0)
    model = models.build(read.task.model, FACTS)
    state = model.state_dict()
    plan = pruning.Plan(target="nothing", groups=(), new_biases=(), versions={}, model=signature_of(model))
    folder.mkdir(parents=True)
    write_text_atomically(folder / "recipe.toml", recipe.dumps(read))
    write_text_atomically(folder / "plan.json", to_json_text(plan.to_json()))
    save_tensors(folder / "ticket.safetensors", state, {})
    parameters = sum(each.numel() for each in model.parameters())
    figures = ModelFigures(
        accuracy=0.1, parameters=parameters, macs=1, bytes=file_bytes(state), latency_seconds={}
    )
    milestone = Milestone(step=0, epoch=0.0, rule="none", reason="made for a benchmark")
    outcome = RunResult(
        name=name,
        seed=0,
        device="cpu",
        machine={},
        task=FACTS,
        dense=figures,
        ticket=figures,
        pruned_validation_accuracy=0.1,
        groups=(),
        unpruned=(),
        drawn_at=milestone,
        stopped_at=milestone,
        epochs={},
        energy={},
        method=EnergyMethod(meter="none", scope="none"),
        total=Cost(joules=None, seconds=0.0, cpu_seconds=0.0),
        projected_dense=None,
        overhead={},
        attempts=1,
    )
    write_result(folder / "result.json", outcome)
    return file_bytes(state)


def measured(
    job: str, run: Path, target: Path, formats: tuple[str, ...], repeats: int
) -> tuple[float, float]:
    """Return the median seconds and the median bytes above the level, of processes of their own."""
    found = []
    for repeat in range(repeats):
        place = target.with_name(f"{target.name}-{repeat}") if job == "export" else target
        command = [sys.executable, "-c", CHILD, job, str(run), str(place), *formats]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    wall, cpu, held = (
        statistics.median(each[name] for each in found) for name in ("seconds", "cpu", "bytes")
    )
    return f"{wall:.1f} ({cpu:.1f})", held


def hashing() -> float:
    """Return how many megabytes of SHA-256 this machine computes in a second."""
    block = bytes(2**26)
    started = time.perf_counter()
    hashlib.sha256(block).digest()
    return len(block) / 1e6 / (time.perf_counter() - started)


def rows(repeats: int) -> Iterator[str]:
    """Measure, and yield the table's rows."""
    for name in MODELS:
        with tempfile.TemporaryDirectory() as place:
            run = Path(place) / "run"
            size = make_run(run, name)
            parameters = json.loads((run / "result.json").read_text())["ticket"]["parameters"]
            for words, formats in FORMATS.items():
                target = Path(place) / words.replace(" ", "-")
                seconds, held = measured("export", run, target, formats, repeats)
                load = "– | –"
                if "safetensors" in formats:
                    again, loaded = measured("load", run, target.with_name(f"{target.name}-0"), (), repeats)
                    load = f"{again} | {loaded / size:.2f}"
                written = sum(path.stat().st_size for path in target.with_name(f"{target.name}-0").iterdir())
                row = (
                    f"| {name}, {parameters / 1e6:.1f} M, {size / 1e6:.0f} MB | {words} | "
                    f"{written / 1e6:.0f} | {seconds} | {held / size:.2f} | {load} |"
                )
                print(row, flush=True)
                yield row


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    table = "\n".join(rows(repeats))
    REPORT.write_text(
        "# Exporting and loading a ticket of 25 million parameters\n\n"
        f"`python benchmarks/export.py --repeats {repeats}` on {os.cpu_count()} logical CPUs, torch "
        f"{torch.__version__}, SHA-256 at {hashing():.0f} MB/s. Weights drawn at random and nothing cut, for "
        "images of 3×32×32. Export: reading the run, writing every format, reloading each and comparing it "
        "in batches of 1, 2, 7 and 16. Medians of processes of their own; memory is the most that was held "
        "above the level just before, in sizes of the ticket: libraries that a format imports and the hidden "
        "layers of a batch of 16 among it. Wall seconds hang on what else the machine did; processor seconds "
        "less.\n\n"
        "| ticket | formats | MB written | export, s (CPU s) | export, memory "
        "| load, s (CPU s) | load, memory |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        f"{table}\n",
        encoding="utf-8",
    )
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
