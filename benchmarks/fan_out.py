"""Processor seconds of the same trainings in processes here, below Dask's workers, and in a worker's thread.

    python -m benchmarks.fan_out             # some minutes; writes reports/fan_out.md
    python -m benchmarks.fan_out --rounds 1 --report /tmp/fan_out.md

The trainings of the study speed-up's first stage, cut short, two at a time, each way in turn and then in
reverse, so that a machine that drifts favours none. A training's processor seconds are its process's over its
steps, as the study has them: in a worker's thread those of the worker's other threads are among them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dask import config
from distributed import Client, LocalCluster

from tpsprune import recipe
from tpsprune.jobs import run_afar, run_in_parallel
from tpsprune.jobs.cluster import HERE, RETRIES, connect
from tpsprune.numerics.small_samples import Interval, ratio_interval
from tpsprune.records import dump
from tpsprune.runs import write_text_atomically
from tpsprune_studies.catalogue import load_study
from tpsprune_studies.conduct import _run_afar

REPORT = Path(__file__).parents[1] / "reports" / "fan_out.md"
TRAININGS = 4
STEPS = 500
PLACES = 2
HERE_WAY, BELOW_WAY, THREAD_WAY = (
    "two processes here (`--workers 2`)",
    "a process of its own below a Dask worker (`--workers dask:…`)",
    "the worker's own thread (not used)",
)
Way = Callable[[Callable[[], Sequence[Any]], Callable[[Any], Any]], Iterator[Any]]


def measure(way: Way, trials: Sequence[Any], do: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Return the finished trainings, in the order of their trials."""
    places = {json.dumps(dump(trial)): place for place, trial in enumerate(trials)}
    done: dict[int, dict[str, Any]] = {}
    for result in way(lambda: [trials[place] for place in places.values() if place not in done], do):
        training = result["training"]
        done[places[json.dumps(training["trial"])]] = training
    return [done[place] for place in sorted(done)]


def main() -> None:
    """Measure all ways, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    setup = load_study("speed-up").make_setup(recipe.read("modular-addition"), None, STEPS)
    trials = load_study("speed-up").plan(setup, ()).trials[:TRAININGS]
    do = partial(_run_afar, "speed-up", setup)
    found: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    with (
        config.set({RETRIES: 0}),
        LocalCluster(
            n_workers=PLACES, threads_per_worker=1, dashboard_address=HERE, worker_dashboard_address=HERE
        ) as local,
        connect(f"dask:{local.scheduler_address}") as cluster,
        Client(local, set_as_default=False) as client,
    ):
        ways: dict[str, Way] = {
            HERE_WAY: lambda due, do: run_in_parallel(due, do, PLACES),
            BELOW_WAY: lambda due, do: run_afar(due, do, cluster.submit, cluster.count_places),
            THREAD_WAY: lambda due, do: run_afar(
                due, do, lambda do, job: client.submit(do, job, pure=False), cluster.count_places
            ),
        }
        for number in range(options.rounds):
            for name in list(ways) if number % 2 == 0 else reversed(ways):
                found[name].append(measure(ways[name], trials, do))
                print(name, [round(each["cpu_seconds"], 2) for each in found[name][-1]], flush=True)
    write_text_atomically(options.report, render(found, options.rounds))


def render(found: dict[str, list[list[dict[str, Any]]]], rounds: int) -> str:
    """Return the report."""
    base = [each for one in found[HERE_WAY] for each in one]
    rows = []
    for name, measured in found.items():
        own = [each for one in measured for each in one]
        pairs = [(mine["cpu_seconds"], other["cpu_seconds"]) for mine, other in zip(own, base, strict=True)]
        ratio = "1" if name == HERE_WAY else format_ratio(ratio_interval(pairs))
        same = all(
            (mine["steps"], mine["validation_accuracy"]) == (other["steps"], other["validation_accuracy"])
            for mine, other in zip(own, base, strict=True)
        )
        mean = sum(mine for mine, _ in pairs) / len(pairs)
        rows.append(f"| {name} | {mean:.2f} | {ratio} | {'yes' if same else 'NO'} |")
    return "\n".join(
        [
            "# Trainings on a cluster: what a worker adds to their processor seconds",
            "",
            f"`python -m benchmarks.fan_out --rounds {rounds}`: {TRAININGS} trainings of at most {STEPS} "
            f"steps (study speed-up), {PLACES} at a time, {rounds} rounds, on {os.cpu_count()} logical "
            f"processors ({platform.machine()}), scheduler and workers on the same machine.",
            "",
            "| where | CPU-seconds a training | over those here (95 % interval, pairs) | same accuracies |",
            "| --- | ---: | ---: | --- |",
            *rows,
            "",
            "A process of its own imports torch and the study anew for each training: those seconds "
            f"({measure_imports():.1f} of a processor here) are in no training's figure, and are what a job "
            "costs beside its work.",
            "",
        ]
    )


def measure_imports() -> float:
    """Return the processor seconds of a process that imports the study and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import tpsprune_studies.speed_up"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def format_ratio(interval: Interval) -> str:
    """Return a ratio with its interval."""
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


if __name__ == "__main__":
    main()
