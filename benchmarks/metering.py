"""What metering costs: whole runs of the digits recipe with codecarbon and without a meter, by turns.

    python benchmarks/metering.py           # some five minutes; writes reports/metering.md
    python benchmarks/metering.py --pairs 3

Processor seconds are of whole processes, children among them; nothing here decides a test.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tpsprune import energy, recipe
from tpsprune.numerics.small_samples import ratio_interval
from tpsprune.records import Window
from tpsprune.runs import Journal

REPORT = Path(__file__).parents[1] / "reports" / "metering.md"
WINDOWS = 200
METERS = ("codecarbon", "none")


def run(meter: str, seed: int) -> tuple[float, float, int]:
    """Return the processor seconds of a whole process, those within its windows, and how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        words = ("train", "digits", "--quiet", "--out", folder, "--set", f"seed={seed}")
        command = [sys.executable, "-m", "tpsprune", *words, "--set", f"energy.meter={meter}"]
        before = children()
        subprocess.run(command, check=True)
        whole = children() - before
        journal = next(Path(folder).glob("*/energy.jsonl"))
        windows = Journal(journal).parsed(Window)
    return whole, sum(window.cpu_seconds for window in windows), len(windows)


def children() -> float:
    """Return processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def lines(pairs: int) -> Iterator[str]:
    """Measure, and yield what the page says."""
    found: dict[str, list[tuple[float, float, int]]] = {meter: [] for meter in METERS}
    for pair in range(pairs):
        for meter in METERS if pair % 2 else METERS[::-1]:
            found[meter].append(run(meter, pair))
            print(f"pair {pair + 1} of {pairs}, {meter}: {found[meter][-1][0]:.2f} CPU-s", flush=True)
    for place, words in ((0, "whole processes, start-up of the meter among it"), (1, "within the windows")):
        ratio = ratio_interval(
            (mine[place], other[place]) for mine, other in zip(*(found[m] for m in METERS), strict=True)
        )
        medians = [statistics.median(each[place] for each in found[meter]) for meter in METERS]
        yield (
            f"- {words}: {medians[0]:.2f} CPU-s with codecarbon, {medians[1]:.2f} without (medians of "
            f"{pairs} runs each); with over without {ratio.mean:.3f} (95 % interval {ratio.low:.3f} to "
            f"{ratio.high:.3f})"
        )
    started, cpu = time.perf_counter(), time.process_time() + children()
    meter = energy.build(recipe.read("digits").energy, 0)
    own, wall = time.process_time() + children() - cpu, time.perf_counter() - started
    yield (
        f"- starting the meter, once in a process and outside every window: {wall:.1f} s, "
        f"{own:.2f} CPU-s, most of them a child process that asks what processor this is"
    )
    cpu = time.process_time()
    for _ in range(WINDOWS):
        with meter.window("train"):
            pass
    each = (time.process_time() - cpu) / WINDOWS
    meter.shut()
    count = found["codecarbon"][0][2]
    share = count * each / statistics.median(whole for whole, _, _ in found["codecarbon"])
    yield (
        f"- opening and closing a window: {1000 * each:.1f} ms of processor time; a run of the recipe has "
        f"{count}, {share:.2%} of its CPU-seconds"
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    pairs = parser.parse_args().pairs
    body = "\n".join(lines(pairs))
    REPORT.write_text(
        "# Metering: what it costs\n\n"
        f"`python benchmarks/metering.py --pairs {pairs}` on {os.cpu_count()} logical CPUs: `tpsprune train "
        f'digits` with codecarbon and with `energy.meter = "none"`, the same seeds, by turns.\n\n{body}\n',
        encoding="utf-8",
    )
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
