"""What the signals cost and how far the sketched edge can be trusted.

    python benchmarks/signals.py           # about a quarter of an hour; writes reports/signals.md
    python benchmarks/signals.py --quick   # without the paired runs on Fashion-MNIST: two minutes
    python benchmarks/signals.py --each    # the table of each signal anew: a minute

Everything is printed as measured in this one run; nothing here decides a test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

import tpsprune
from tpsprune import data, recipe, training
from tpsprune.models.architectures import Mlp
from tpsprune.numerics.geometry import signed_fold
from tpsprune.numerics.spectra import edge, row_spectrum
from tpsprune.recipe.train import Signal
from tpsprune.signals.signal import View
from tpsprune.signals.updates import SpectralEdge
from tpsprune_studies.setup import Prepared, at_seed, prepare

REPORT = Path(__file__).parents[1] / "reports" / "signals.md"
WINDOW = 10
STEPS_APART = 25
SEEDS = range(3)
PAIRS = 3
WIDTHS = (950, 950)
BIG = 10**8
NETS = (("digits", 128), ("modular-addition", 256))
READ_STEPS, READINGS = 10, 24
EACH = "## Each signal"


def updates(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Train an MLP of a million parameters on digits; yield windows of updates, whole and sketched."""
    found = recipe.read("digits", (f"seed={seed}", "train.epochs=60", "train.learning_rate=1e-3"))
    training.prepare_process(found.train, seed, torch.device("cpu"))
    dataset = data.load(found.task.data)
    model = Mlp(64, WIDTHS, 10)
    parameters = list(model.parameters())
    whole, folded = [], []
    total = found.train.epochs * training.steps_per_epoch(len(dataset.train), found.train)
    execution = training.Execution.of(found.train, torch.device("cpu"))
    for tick in Prepared(found, dataset, model, execution).fit(total):
        if tick.step % STEPS_APART:
            continue
        whole = [*whole, torch.cat([each.detach().reshape(-1) for each in parameters])][-WINDOW - 1 :]
        folded = [*folded, signed_fold(parameters, seed=seed)][-WINDOW - 1 :]
        if len(whole) > WINDOW:
            yield tuple(
                torch.stack([later - earlier for earlier, later in pairwise(kept)])
                for kept in (whole, folded)
            )  # type: ignore[misc]


def sketch_lines() -> Iterator[str]:
    """Compare every σ_j / σ_{j+1}, the edge's ratio and its place, whole against sketched."""
    errors, edge_errors, places, windows = [], [], 0, 0
    count = sum(parameter.numel() for parameter in Mlp(64, WIDTHS, 10).parameters())
    for seed in SEEDS:
        for exact_wp, sketch_wm in updates(seed):
            exact, sketch = row_spectrum(exact_wp), row_spectrum(sketch_wm)
            ratios = [sigma[:-1] / sigma[1:] for sigma in (exact, sketch)]
            errors += ((ratios[1] / ratios[0]) - 1).abs().tolist()
            ours, theirs = edge(sketch, WINDOW // 2), edge(exact, WINDOW // 2)
            edge_errors.append(abs(ours.ratio / theirs.ratio - 1))
            places += ours.k == theirs.k
            windows += 1
    errors.sort()
    yield (
        f"- Sketch of 4,096 numbers against all {count:,} parameters (MLP on digits, {len(SEEDS)} seeds, "
        f"{windows} windows of {WINDOW} updates {STEPS_APART} steps apart): relative error of "
        f"σ_j/σ_(j+1), median {statistics.median(errors):.1%}, 95th percentile "
        f"{errors[int(0.95 * len(errors))]:.1%}, largest {errors[-1]:.1%}; of the edge's ratio, median "
        f"{statistics.median(edge_errors):.1%}, largest {max(edge_errors):.1%}; the edge at the same place "
        f"in {places} of {windows}."
    )


def memory_line() -> str:
    """Read the edge of a model of 10⁸ parameters; return what it keeps and what the peak grew by."""
    model = nn.Sequential(*(nn.Linear(10_000, 1000, bias=False) for _ in range(BIG // 10**7)))
    signal = SpectralEdge(window=WINDOW, seed=0)
    view = View(model=model, calibration_batches=(), step=0, epoch=0.0, consumers={})
    memory = signal.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    for step in range(WINDOW + 1):
        with torch.no_grad():
            model[0].get_parameter("weight").add_(1e-3)
        memory, _ = signal.step(memory, _at(view, step))
    spent = (time.process_time() - started) / (WINDOW + 1)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    kept = sum(each.numel() * each.element_size() for each in memory.snapshots) / 2**20
    return (
        f"- Edge of {BIG:,} parameters: {kept:.2f} MB kept for a window of {WINDOW} (allowed: "
        f"{4 * WINDOW} MB), peak memory {grown:.1f} MB above the model's, {spent:.2f} CPU-s a reading."
    )


def _at(view: View, step: int) -> View:
    return replace(view, step=STEPS_APART * step)


def cost_lines(name: str, *changes: str) -> Iterator[str]:
    """Train with and without signals, by turns; yield the difference and the run's own account."""
    ratios, shares = [], []
    for _ in range(PAIRS):
        with_signals, share = _spent(name, *changes)
        without, _ = _spent(name, *changes, "watch.signals=[]")
        ratios.append(with_signals / without - 1)
        shares.append(share)
    spread = statistics.stdev(ratios)
    yield (
        f"- `tpsprune train {name} {' '.join(f'--set {change}' for change in changes)}`, whole processes' "
        f"CPU-seconds with the default signals over those without, {PAIRS} pairs by turns: "
        f"{statistics.mean(ratios):+.1%} ± {spread:.1%} (mean, standard deviation); by the runs' own clocks "
        f"signals took {statistics.mean(shares):.2%} of the training's CPU-seconds."
    )


def each_lines() -> Iterator[str]:
    """Read every signal by itself on two trained nets; yield a table of processor seconds a reading."""
    names: tuple[Signal, ...] = get_args(Signal)
    columns: dict[str, dict[str, float]] = {}
    for recipe_name, items in NETS:
        prepared = prepare(at_seed(recipe.read(recipe_name), 0))
        inputs, labels = prepared.sample_calibration(items)
        watches = {
            name: tpsprune.Watch(prepared.model, [inputs], [labels], signals=[name], every_steps=READ_STEPS)
            for name in names
        }
        spent: dict[str, list[float]] = {name: [] for name in names}
        steps: list[float] = []
        resumed = time.process_time()
        for tick in prepared.fit(READ_STEPS * READINGS):
            steps.append(time.process_time() - resumed)
            for name, watch in watches.items() if tick.step % READ_STEPS == 0 else ():
                started = time.process_time()
                watch.step(tick.step, epoch=tick.epoch)
                spent[name].append(time.process_time() - started)
            resumed = time.process_time()
        for watch in watches.values():
            watch.close()
        step = statistics.median(steps)
        columns[recipe_name] = {
            name: statistics.median(found[READINGS // 2 :]) / step for name, found in spent.items()
        }
    yield EACH
    yield ""
    nets = ", ".join(f"{name} with {items} items" for name, items in NETS)
    yield (
        "Training steps that a reading takes, in processor time of this process, median of "
        f"{READINGS - READINGS // 2} readings, windows full; {nets}. `h1` counts its loops in a process of "
        "its own, whose time is not in here. A reading comes about once an epoch; the first four are on by "
        "default."
    )
    yield ""
    yield f"| signal | {' | '.join(columns)} |"
    yield f"| --- | {' | '.join(['---:'] * len(columns))} |"
    for name in names:
        yield f"| `{name}` | {' | '.join(f'{column[name]:.1f}' for column in columns.values())} |"


def _spent(name: str, *changes: str) -> tuple[float, float]:
    """Return the CPU-seconds of one run as a process with its children, and the share it reports itself."""
    with tempfile.TemporaryDirectory() as folder:
        words = [word for change in changes for word in ("--set", change)]
        command = [sys.executable, "-m", "tpsprune", "train", name, "--json", "--out", folder, *words]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        output = child.stdout.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} ended with status {status}")
        spent = json.loads(output.splitlines()[-1])["overhead"]
        return usage.ru_utime + usage.ru_stime, spent["signals"]


def main() -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--each", action="store_true", help="the table of each signal anew, and nothing else")
    options = parser.parse_args()
    if options.each:
        kept = REPORT.read_text(encoding="utf-8").partition(EACH)[0].rstrip()
        table = list(each_lines())
        print("\n".join(table))
        REPORT.write_text("\n".join([kept, "", *table]) + "\n", encoding="utf-8")
        return
    quick = options.quick
    head = [
        "# Signals: cost, and the sketched edge",
        "",
        f"`python benchmarks/signals.py`; torch {torch.__version__}, {os.cpu_count()} logical CPUs, "
        f"{platform.machine()}.",
        "",
    ]
    lines = []
    parts = [sketch_lines(), iter([memory_line()])]
    if not quick:
        parts += [
            cost_lines("digits", "stop.draw={rule='epoch', epoch=10}"),
            cost_lines(
                "fashion-mnist", "train.epochs=2", "watch.h1_every=1", "stop.draw={rule='epoch', epoch=1}"
            ),
        ]
    for part in parts:
        for line in part:
            print(line, flush=True)
            lines.append(line)
    if not quick:
        REPORT.write_text("\n".join([*head, *lines, "", *each_lines()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
