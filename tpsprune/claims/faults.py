"""The quality of a comparison's data: faults of the measurement, losses, and runs set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import fsum
from typing import Final

from tpsprune.claims.broken_off import what_it_took
from tpsprune.claims.ladder import lost
from tpsprune.claims.pairs import CountedPairs
from tpsprune.claims.window_sums import load_share
from tpsprune.records import (
    ArmRun,
    ComparisonRecord,
    EnergyClass,
    Quality,
    Reason,
    Window,
    joules_of,
    seconds_of,
)

LEAST_INFERENCE_SECONDS: Final = 10.0
"""A GPU's counter moves every 0.1 s: shorter windows are off by more than one per cent."""
_SLACK: Final = 0.99
_MOST_NAMED: Final = 20


def faults_of(counted: CountedPairs, kind: str, arm: str, windows: Sequence[Window]) -> tuple[Reason, ...]:
    """Return every fault of the measurement behind one claim, each kind of fault once.

    A broken invariant in any window; a part not metered; another meter, device or class of a part from run to
    run or window to window; a throttled GPU; foreign load above the limit that was fixed, where the meter
    sees it (on a GPU it does not); inference in windows below ten seconds.
    """
    runs = tuple(run for pair in counted.couples(arm) for run in pair)
    return tuple(_faults(counted, kind, runs, windows))


def faults_by_pair(comparison: ComparisonRecord) -> dict[int, str]:
    """Return the pairs whose measurement has a fault by itself, and the first fault of each.

    Of the kinds of ``faults_of``, methods that differ from pair to pair are left out: no single pair has that
    fault.
    """
    found: dict[int, str] = {}
    counted = CountedPairs(comparison, ())
    for pair in sorted({run.pair for run in comparison.runs}):
        runs = tuple(run for run in comparison.runs if run.pair == pair)
        trained = tuple(window for run in runs for window in run.windows)
        inferred = tuple(span.window for span in comparison.inference if span.pair == pair)
        faults = (
            *_faults(counted, "training", runs, trained),
            *_faults(counted, "inference", runs, inferred),
        )
        if faults:
            found[pair] = faults[0].detail
    return found


def losses_of(counted: CountedPairs, arm: str) -> tuple[Reason, ...]:
    """Return what disqualifies the arm's models apart from the paired test of accuracy.

    A run that ended without a model, or a task that was not learned: then no figure means anything; and of a
    run that left several sizes one that lost accuracy.
    """
    reasons = []
    failed = [run for run in counted.runs if run.arm in {arm, counted.design.baseline} and run.failure]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        reasons.append(Reason("RUN_FAILED", f"{_name(failed[0])}: {failed[0].failure}{more}"))
    whole, sizes = counted.accuracy_of(arm), counted.accuracies_of(arm)
    required = counted.design.required_accuracy
    reasons += [
        Reason(
            "NOT_LEARNED",
            f"mean test {counted.design.quality} is {accuracy.mean:.3f} of '{accuracy.arm}' and "
            f"{accuracy.baseline_mean:.3f} of '{accuracy.baseline}', and the task asks for {required:g}",
        )
        for accuracy in (sizes or (whole,))
        if accuracy is not None and min(accuracy.mean, accuracy.baseline_mean) < required
    ]
    quality = counted.design.quality
    reasons += [reason for each in sizes for reason in lost(each, f"{quality} of '{each.arm}'")]
    return tuple(reasons)


def _faults(
    counted: CountedPairs, kind: str, runs: Sequence[ArmRun], windows: Sequence[Window]
) -> Iterator[Reason]:
    count, valid = len(windows), [window for window in windows if window.valid]
    if broken := [window for window in windows if not window.valid]:
        yield Reason(
            "INVALID_WINDOW",
            f"{len(broken)} of {count} windows broke an invariant; the first, of phase "
            f"'{broken[0].phase}': {broken[0].fault}",
        )
    if without := sum(window.total_joules is None for window in valid):
        yield Reason("NOT_METERED", f"{without} of {count} windows have no energy")
    elif any(window.total_joules == 0 for window in valid):
        yield Reason("NO_ENERGY", "a window has no energy at all")
    methods = [replace(run.method, excluded=()) for run in runs]
    kinds = {tuple(sorted(window.classes.items())) for window in valid if window.joules}
    if any(method != methods[0] for method in methods) or len(kinds) > 1:
        yield Reason(
            "METHOD_CHANGED",
            "runs were metered in different ways, or on different devices: their figures do not compare",
        )
    if throttled := sum(window.throttled is True for window in windows):
        yield Reason("THROTTLED", f"the GPU was throttled in {throttled} of {count} windows")
    load, name = max(_foreign_loads(kind, runs, windows), default=(0.0, ""))
    limit = counted.design.foreign_load_share
    if load > limit:
        yield Reason(
            "FOREIGN_LOAD",
            f"others took up to {100 * load:.0f} % of the machine's processors ({name}), and at most "
            f"{100 * limit:g} % was fixed beforehand",
        )
    short = [window for window in windows if window.seconds < _SLACK * LEAST_INFERENCE_SECONDS]
    if short and kind == "inference":
        yield Reason(
            "SHORT_WINDOW",
            f"{len(short)} windows of inference are shorter than {LEAST_INFERENCE_SECONDS:g} s "
            f"(the first {short[0].seconds:.1f} s)",
        )


def _foreign_loads(
    kind: str, runs: Sequence[ArmRun], windows: Sequence[Window]
) -> Iterator[tuple[float, str]]:
    """Yield the foreign load over each run or window of inference that sees it, and its name."""
    spans = [(_name(run), run.windows, run) for run in runs]
    if kind == "inference" and runs:
        spans = [(window.phase, (window,), runs[0]) for window in windows]
    for name, span, run in spans:
        load = load_share(span, run.logical_cpus)
        if load is not None and _sees_foreign_load(run):
            yield load, name


def _sees_foreign_load(run: ArmRun) -> bool:
    """Return whether foreign load is in the joules: counters see the whole device whatever the scope."""
    return run.method.scope == "machine" or EnergyClass.MEASURED in run.method.classes.values()


def _name(run: ArmRun) -> str:
    return f"'{run.arm}', seed {run.seed}"


def quality_of(counted: CountedPairs) -> Quality:
    """Return the figures of the data's quality over the runs that count, and what was set aside."""
    comparison = counted.comparison
    inference = tuple(span.window for span in comparison.inference)
    idle = tuple(span.window for span in comparison.idle)
    cpus = counted.runs[0].logical_cpus if counted.runs else 1
    spans = [run.windows for run in counted.runs] + [(window,) for window in inference]
    loads = [load for span in spans if (load := load_share(span, cpus)) is not None]
    heat = [w.gpu_celsius for w in (*counted.windows, *inference) if w.gpu_celsius is not None]
    lost = [joules for each in comparison.broken_off if (joules := joules_of(each.windows)) is not None]
    named = [
        f"'{run.arm}', seed {run.seed}, phase '{window.phase}': {window.fault}"
        for run in counted.runs
        for window in run.windows
        if not window.valid
    ]
    named += [f"inferences or idling: {window.fault}" for window in (*inference, *idle) if not window.valid]
    more = len(named) - _MOST_NAMED
    return Quality(
        windows=len(counted.windows) + len(inference) + len(idle),
        invalid=(*named[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])),
        foreign_load_share=max(loads, default=None),
        steal_share=_steal(spans, cpus),
        idle_watts=counted.idle_watts,
        idle_spans=len(idle),
        hottest_gpu_celsius=max(heat, default=None),
        set_aside=tuple(
            f"'{each.arm}', seed {each.seed}: " + (each.why or f"broken off ({what_it_took(each)})")
            for each in comparison.broken_off
        ),
        lost_joules=fsum(lost) if lost else None,
    )


def _steal(spans: Sequence[tuple[Window, ...]], logical_cpus: int) -> float | None:
    """Return the largest share of processors that a hypervisor took in a run or in inference."""
    shares = []
    for span in spans:
        read = [window for window in span if window.steal_seconds is not None]
        if read and (seconds := seconds_of(read)):
            shares.append(fsum(window.steal_seconds or 0.0 for window in read) / (seconds * logical_cpus))
    return max(shares, default=None)
