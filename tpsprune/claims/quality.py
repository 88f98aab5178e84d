"""What the data of a comparison are worth: windows that broke a rule, neighbours, runs set aside."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from tpsprune.claims.pairs import Counted
from tpsprune.claims.window_sums import joules_of, load_share, seconds_of
from tpsprune.records import BrokenOff, Quality, Window

__all__ = ["quality_of"]

MOST_NAMED = 20


def quality_of(counted: Counted) -> Quality:
    """Return the figures of the data's quality over the runs that count, and what was set aside."""
    comparison = counted.comparison
    answers = tuple(span.window for span in comparison.inference)
    idle = tuple(span.window for span in comparison.idle)
    cpus = counted.runs[0].logical_cpus if counted.runs else 1
    spans = [run.windows for run in counted.runs] + [(window,) for window in answers]
    loads = [load for span in spans if (load := load_share(span, cpus)) is not None]
    heat = [w.gpu_celsius for w in (*counted.windows, *answers) if w.gpu_celsius is not None]
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
        steal_share=_steal(spans, cpus),
        idle_watts=counted.idle_watts,
        idle_spans=len(idle),
        hottest_gpu_celsius=max(heat, default=None),
        set_aside=tuple(_words(each) for each in comparison.broken_off),
        lost_joules=fsum(lost) if lost else None,
    )


def _steal(spans: Sequence[tuple[Window, ...]], logical_cpus: int) -> float | None:
    """Return the largest share of the processors that a hypervisor gave to others in a run or in answers."""
    shares = []
    for span in spans:
        known = [window for window in span if window.steal_seconds is not None]
        if known and (seconds := seconds_of(known)):
            shares.append(fsum(window.steal_seconds or 0.0 for window in known) / (seconds * logical_cpus))
    return max(shares, default=None)


def _words(each: BrokenOff) -> str:
    when = f" after {len(each.windows)} windows" if each.windows else "; what it took is not known"
    how = each.why or f"broken off{when}"
    return f"'{each.arm}', seed {each.seed}: {how}"
