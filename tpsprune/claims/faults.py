"""What makes a measurement invalid, and what makes a model no equal of its baseline's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from tpsprune.claims.counted import Counted
from tpsprune.claims.spent import load_share
from tpsprune.records import ArmRun, ComparisonRecord, EnergyClass, Reason, Window

__all__ = ["LEAST_ANSWER_SECONDS", "faults_by_pair", "faults_of", "losses_of"]

LEAST_ANSWER_SECONDS: Final = 10.0
"""A GPU's counter moves every 0.1 s: shorter windows are off by more than one per cent."""
SLACK: Final = 0.99
Faults: TypeAlias = Iterator[tuple[str, str]]
"""A code and a sentence for each kind of fault."""


def faults_of(counted: Counted, kind: str, arm: str, windows: Sequence[Window]) -> tuple[Reason, ...]:
    """Return every fault of the measurement behind one claim, each kind of fault once.

    A broken invariant in any window; a part not metered; another meter, device or class of a part from run to
    run or window to window; a GPU that was throttled; neighbours above the limit that was fixed, where the
    meter sees them (those on a GPU it does not); answers in windows below ten seconds.
    """
    runs = tuple(run for pair in counted.couples(arm) for run in pair)
    return _faults(counted, kind, runs, windows)


def faults_by_pair(comparison: ComparisonRecord) -> dict[int, str]:
    """Return the pairs whose measurement has a fault by itself, and the first of each, in words.

    All kinds of ``faults_of`` but one: that methods differ from pair to pair is no pair's own fault.
    """
    found: dict[int, str] = {}
    counted = Counted(comparison, ())
    for pair in sorted({run.pair for run in comparison.runs}):
        runs = tuple(run for run in comparison.runs if run.pair == pair)
        trained = tuple(window for run in runs for window in run.windows)
        answered = tuple(span.window for span in comparison.inference if span.pair == pair)
        faults = (
            *_faults(counted, "training", runs, trained),
            *_faults(counted, "inference", runs, answered),
        )
        if faults:
            found[pair] = faults[0].detail
    return found


def _faults(
    counted: Counted, kind: str, runs: Sequence[ArmRun], windows: Sequence[Window]
) -> tuple[Reason, ...]:
    return tuple(
        Reason(code, detail)
        for code, detail in (
            *_invalid(windows),
            *_not_metered(windows),
            *_changed(runs, windows),
            *_throttled(windows),
            *_foreign(counted, kind, runs, windows),
            *(_short(windows) if kind == "inference" else ()),
        )
    )


def losses_of(counted: Counted, arm: str) -> tuple[Reason, ...]:
    """Return what speaks against the arm's models beside the paired test of accuracy.

    A run that ended without a model, and a task that was not learned: then no figure speaks for anything.
    """
    reasons = []
    failed = [run for run in counted.runs if run.arm in {arm, counted.design.baseline} and run.failure]
    if failed:
        reasons.append(Reason("RUN_FAILED", f"{_name(failed[0])}: {failed[0].failure}{_more(failed)}"))
    accuracy = counted.accuracy_of(arm)
    required = counted.design.required_accuracy
    if accuracy is not None and min(accuracy.mean, accuracy.baseline_mean) < required:
        reasons.append(
            Reason(
                "NOT_LEARNED",
                f"mean test {counted.design.quality} is {accuracy.mean:.3f} of '{arm}' and "
                f"{accuracy.baseline_mean:.3f} of '{accuracy.baseline}', and the task asks for {required:g}",
            )
        )
    return tuple(reasons)


def _invalid(windows: Sequence[Window]) -> Faults:
    broken = [window for window in windows if not window.valid]
    if broken:
        first = broken[0]
        yield (
            "INVALID_WINDOW",
            f"{len(broken)} of {len(windows)} windows broke an invariant; the first, of phase "
            f"'{first.phase}': {first.fault}",
        )


def _not_metered(windows: Sequence[Window]) -> Faults:
    without = [window for window in windows if window.total_joules is None and window.valid]
    if without:
        yield "NOT_METERED", f"{len(without)} of {len(windows)} windows have no energy"
    elif any(window.total_joules == 0 for window in windows if window.valid):
        yield "NO_ENERGY", "a window has no energy at all"


def _changed(runs: Sequence[ArmRun], windows: Sequence[Window]) -> Faults:
    methods = [replace(run.method, excluded=()) for run in runs]
    kinds = {tuple(sorted(window.classes.items())) for window in windows if window.valid and window.joules}
    if any(method != methods[0] for method in methods) or len(kinds) > 1:
        yield (
            "METHOD_CHANGED",
            "runs were metered in different ways, or on different devices: their figures do not compare",
        )


def _throttled(windows: Sequence[Window]) -> Faults:
    throttled = sum(window.throttled is True for window in windows)
    if throttled:
        yield "THROTTLED", f"the GPU was throttled in {throttled} of {len(windows)} windows"


def _foreign(counted: Counted, kind: str, runs: Sequence[ArmRun], windows: Sequence[Window]) -> Faults:
    """Yield neighbours above the limit, over a run or a window of answers, where the meter sees them."""
    limit = counted.design.foreign_load_share
    spans = [(_name(run), run.windows, run) for run in runs]
    if kind == "inference" and runs:
        spans = [(window.phase, (window,), runs[0]) for window in windows]
    loads = [
        (load, name)
        for name, span, run in spans
        if _sees_neighbours(run) and (load := load_share(span, run.logical_cpus)) is not None
    ]
    load, name = max(loads, default=(0.0, ""))
    if load > limit:
        yield (
            "FOREIGN_LOAD",
            f"others took up to {100 * load:.0f} % of the machine's processors ({name}), and at most "
            f"{100 * limit:g} % was fixed beforehand",
        )


def _sees_neighbours(run: ArmRun) -> bool:
    """Return whether neighbours are in the joules: counters see the whole device whatever the scope."""
    return run.method.scope == "machine" or EnergyClass.MEASURED in run.method.classes.values()


def _short(windows: Sequence[Window]) -> Faults:
    short = [window for window in windows if window.seconds < SLACK * LEAST_ANSWER_SECONDS]
    if short:
        yield (
            "SHORT_WINDOW",
            f"{len(short)} windows of answers are shorter than {LEAST_ANSWER_SECONDS:g} s "
            f"(the first {short[0].seconds:.1f} s)",
        )


def _name(run: ArmRun) -> str:
    return f"'{run.arm}', seed {run.seed}"


def _more(runs: Sequence[ArmRun]) -> str:
    return f" (and {len(runs) - 1} more)" if len(runs) > 1 else ""
