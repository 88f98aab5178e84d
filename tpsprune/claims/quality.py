"""What the data of a comparison are worth: windows that broke a rule, neighbours, runs set aside."""

from __future__ import annotations

from math import fsum

from tpsprune.claims.counted import Counted
from tpsprune.claims.spent import joules_of, load_share, seconds_of
from tpsprune.records import ArmRun, BrokenOff, Quality

__all__ = ["quality_of"]

MOST_NAMED = 20


def quality_of(counted: Counted) -> Quality:
    """Return the figures of the data's quality over the runs that count, and what was set aside."""
    comparison = counted.comparison
    loads = [load for run in counted.runs if (load := load_share(run.windows, run.logical_cpus)) is not None]
    heat = [window.gpu_celsius for window in counted.windows if window.gpu_celsius is not None]
    answers = tuple(span.window for span in comparison.inference)
    idle = tuple(span.window for span in comparison.idle)
    lost = [joules for each in comparison.broken_off if (joules := joules_of(each.windows)) is not None]
    named = [
        f"'{run.arm}', seed {run.seed}, phase '{window.phase}': {window.fault}"
        for run in counted.runs
        for window in run.windows
        if not window.valid
    ]
    named += [f"answers or idling: {window.fault}" for window in (*answers, *idle) if not window.valid]
    more = len(named) - MOST_NAMED
    return Quality(
        windows=len(counted.windows) + len(answers) + len(idle),
        invalid=(*named[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])),
        foreign_load_share=max(loads, default=None),
        steal_share=_steal(counted.runs),
        idle_watts=counted.idle_watts,
        idle_spans=len(idle),
        hottest_gpu_celsius=max(heat, default=None),
        set_aside=tuple(_words(each) for each in comparison.broken_off),
        lost_joules=fsum(lost) if lost else None,
    )


def _steal(runs: tuple[ArmRun, ...]) -> float | None:
    """Return the largest share of the processors that a hypervisor gave to others in a counted run."""
    shares = []
    for run in runs:
        known = [window for window in run.windows if window.steal_seconds is not None]
        if known and (seconds := seconds_of(known)):
            shares.append(
                fsum(window.steal_seconds or 0.0 for window in known) / (seconds * run.logical_cpus)
            )
    return max(shares, default=None)


def _words(each: BrokenOff) -> str:
    how = each.why or f"broken off after {len(each.windows)} windows"
    return f"'{each.arm}', seed {each.seed}: {how}"
