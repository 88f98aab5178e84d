"""The figures of the main job: quick starts, the demo's cost, and the digits recipe over five seeds.

    python benchmarks/main_job.py            # about three minutes on two cores; writes reports/main_job.md

Everything is printed as measured in this one run; nothing here decides a test.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORT = Path(__file__).parents[1] / "reports" / "main_job.md"
SEEDS = range(5)
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """One command as a whole process: seconds by the clock and of the processors, peak memory."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def cost_of(*words: str) -> Cost:
    """Run ``tpsprune`` with these words and measure the process, its children included."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen([sys.executable, "-m", "tpsprune", *words], stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        wall_seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read().decode()
    if status != 0:
        raise SystemExit(f"tpsprune {' '.join(words)} ended with status {status}")
    return Cost(wall_seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


def result_of(cost: Cost) -> dict[str, Any]:
    """Return the result of a ``train --json``: its last line."""
    result: dict[str, Any] = json.loads(cost.output.splitlines()[-1])
    return result


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def starts() -> list[str]:
    """Return how quickly help and check return: medians over fresh processes."""
    lines = ["| command | seconds, median of 5 |", "| --- | --- |"]
    for words in (("--help",), ("check", "digits")):
        seconds = [cost_of(*words).wall_seconds for _ in range(REPEATS)]
        lines.append(f"| `tpsprune {' '.join(words)}` | {statistics.median(seconds):.2f} |")
    return lines


def digits(out: Path) -> list[str]:
    """Return the digits recipe over seeds: the ticket beside the dense model trained to the end."""
    lines = [
        "| seed | dense to the end | dense at the draw | straight after the cut (validation) | ticket "
        "| MACs share | drawn, ended | signals' share | CPU s | peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    tickets, wholes, shares = [], [], []
    for seed in SEEDS:
        common = ("train", "digits", "--set", f"seed={seed}", "--json", "--out", str(out), "--again")
        cost = cost_of(*common)
        ticket = result_of(cost)
        never = ("--set", "stop.draw={rule='none'}", "--set", "stop.draw_by_share=1.0")
        dense = result_of(cost_of(*common, *never))
        tickets.append(ticket["ticket"]["accuracy"])
        wholes.append(dense["dense"]["accuracy"])
        shares.append(ticket["macs_share"])
        lines.append(
            f"| {seed} | {wholes[-1]:.4f} | {ticket['dense']['accuracy']:.4f} "
            f"| {ticket['pruned_validation_accuracy']:.4f} | {tickets[-1]:.4f} | {shares[-1]:.3f} "
            f"| {ticket['drawn_at']['epoch']:g}, {ticket['stopped_at']['epoch']:g} "
            f"| {ticket['overhead']['signals']:.1%} | {cost.cpu_seconds:.1f} | {cost.peak_bytes / 1e6:.0f} |"
        )
    lines.append("")
    lines.append(
        f"Ticket test accuracy {spread(tickets)} at {statistics.mean(shares):.3f} of the MACs; the dense "
        f"model trained through the whole schedule {spread(wholes)} (mean ± standard deviation, "
        f"{len(tickets)} seeds)."
    )
    return lines


def main() -> None:
    """Measure, print, write the report."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        lines = [
            "# The main job, measured",
            "",
            f"`python benchmarks/main_job.py` on {os.cpu_count()} cores ({platform.machine()}), "
            f"PyTorch {torch.__version__}. CPU seconds and memory are those of the whole process.",
            "",
            "## Starting",
            "",
            *starts(),
            "",
            "## `tpsprune train digits`, five seeds",
            "",
            *digits(Path(folder)),
        ]
    text = "\n".join(lines) + "\n"
    print(text)
    REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
