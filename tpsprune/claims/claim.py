"""One claim: the energy of an arm against its baseline, its standing on the ladder, and its sentence."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tpsprune.claims.broken_off import broken_off_of
from tpsprune.claims.change import ASSUMED, Usage, band_of, change_of, correct_for_several, saving
from tpsprune.claims.faults import faults_of, losses_of
from tpsprune.claims.ladder import Evidence, sentence_of, standing_of
from tpsprune.claims.opponents import does_as_well, opponents_not_run
from tpsprune.claims.pairs import CountedPairs
from tpsprune.claims.window_sums import grade_of
from tpsprune.recipe.compare import SHORTER_EACH, SHORTER_SCHEDULE, SHORTER_TUNING, SMALLER_NET, STOPPED_EARLY
from tpsprune.records import (
    ArmRun,
    BandPoint,
    Change,
    Claim,
    Reason,
    Support,
    Window,
    classes_of,
    cpu_seconds_of,
    joules_of,
    seconds_of,
)


@dataclass(frozen=True, slots=True)
class _Side:
    """What one side of one pair took: windows, and the items they served (1 for a training)."""

    run: ArmRun
    windows: tuple[Window, ...]
    items: int

    @property
    def joules(self) -> float | None:
        return self.above_idle(0.0)

    @property
    def seconds(self) -> float:
        return seconds_of(self.windows) / self.items

    @property
    def cpu_seconds(self) -> float:
        return cpu_seconds_of(self.windows) / self.items

    @property
    def usage(self) -> Usage:
        return self.windows, float(self.items)

    def above_idle(self, idle_watts: float) -> float | None:
        found = joules_of(self.windows)
        return None if found is None else (found - idle_watts * seconds_of(self.windows)) / self.items


@dataclass(frozen=True, slots=True)
class _Sample:
    """The data of one claim: its kind, its arm and batch, and both sides of every pair that has them."""

    kind: str
    arm: str
    batch: int | None
    sides: tuple[tuple[_Side, _Side], ...]

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.arm}/{self.batch}"

    @property
    def windows(self) -> tuple[Window, ...]:
        return tuple(window for pair in self.sides for side in pair for window in side.windows)

    def pairs_of(self, figure: str) -> list[tuple[float, float]]:
        """Return one figure of both sides, where both have it and are above zero."""
        found = [(getattr(mine, figure), getattr(other, figure)) for mine, other in self.sides]
        return [(mine, other) for mine, other in found if mine and other and mine > 0 and other > 0]


def claims_of(counted: CountedPairs) -> tuple[Claim, ...]:
    """Return the claims of a report: training of each arm, the one fixed beforehand first, then inference.

    Holm's correction runs over all of them. A claim of inference is made for each batch that was metered.
    Each has the grade of its own windows, and an error rate divided by the number of interim looks.
    """
    samples = tuple(_samples(counted))
    changes = correct_for_several(
        {each.key: change_of(each.pairs_of("joules"), counted.design.alpha) for each in samples}
    )
    return tuple(_claim(counted, sample, changes[sample.key]) for sample in samples)


def _samples(counted: CountedPairs) -> Iterator[_Sample]:
    for arm in counted.others:
        couples = counted.couples(arm)
        sides = [tuple(_Side(run, run.windows, 1) for run in couple) for couple in couples]
        yield _Sample("training", arm, None, tuple((mine, other) for mine, other in sides))
    for arm in counted.others:
        for batch in counted.metered_batches:
            sides = [
                tuple(_Side(counted.run(each.arm, each.pair), (each.window,), each.items) for each in spans)
                for spans in counted.inferences(arm, batch)
            ]
            yield _Sample("inference", arm, batch, tuple((mine, other) for mine, other in sides))


def _claim(counted: CountedPairs, sample: _Sample, change: Change | None) -> Claim:
    design, windows = counted.design, sample.windows
    faults = faults_of(counted, sample.kind, sample.arm, windows)
    joules = sample.pairs_of("joules")
    # A figure that is missing in one pair must not leave a claim to the others.
    assessed = change if len(joules) == len(sample.sides) else None
    failed = len(counted.pairs) - len(counted.couples(sample.arm))
    band: tuple[BandPoint, ...] = ()
    if assessed is not None and not faults:
        run = sample.sides[0][0].run
        usages = [(mine.usage, other.usage) for mine, other in sample.sides]
        band = band_of(usages, run.method, run.logical_cpus)
    standing, reasons = standing_of(
        Evidence(
            pairs=0 if assessed is None else assessed.pairs,
            pairs_ended=len(sample.sides) + failed,
            pairs_asked=counted.comparison.pairs_asked,
            change=assessed,
            accuracy=counted.accuracy_of(sample.arm),
            quality=design.quality,
            of_training=sample.kind == "training",
            band=band,
            needs_band=any(kind in ASSUMED for window in windows for kind in window.classes.values()),
            grade=grade_of(windows).letter,
            alpha=design.alpha / counted.comparison.looks,
            faults=faults,
            broken_off=broken_off_of(counted, sample.arm),
            losses=losses_of(counted, sample.arm),
            **_beside_opponents(counted, sample),
        )
    )
    claim = Claim(
        kind=sample.kind,
        arm=sample.arm,
        baseline=design.baseline,
        batch=sample.batch,
        standing=standing,
        statement="",
        reasons=reasons,
        energy_class=classes_of(windows),
        joules=statistics.fmean(mine for mine, _ in joules) if joules else None,
        baseline_joules=statistics.fmean(other for _, other in joules) if joules else None,
        change=change,
        idle_subtracted=_above_idle(counted, sample),
        band=band,
        support=tuple(_support(sample, change)),
    )
    return replace(claim, statement=sentence_of(claim, design.quality))


def _beside_opponents(counted: CountedPairs, sample: _Sample) -> dict[str, tuple[Reason, ...]]:
    """Return what speaks against a claim that training is cheaper: opponents not run, or as good."""
    if sample.kind != "training":
        return {}
    return {
        "opponents_missing": tuple(opponents_not_run(counted, sample.arm)),
        "shorter_schedules": tuple(
            does_as_well(counted, sample.arm, (*SHORTER_SCHEDULE, *SHORTER_TUNING, *STOPPED_EARLY))
        ),
        "smaller_nets": tuple(does_as_well(counted, sample.arm, (*SMALLER_NET, *SHORTER_EACH))),
    }


def _above_idle(counted: CountedPairs, sample: _Sample) -> Change | None:
    """Return the change with the idle baseline taken off both; ``None`` where that leaves nothing."""
    found: list[tuple[float | None, float | None]] = []
    for mine, other in sample.sides:
        watts = counted.idle_watts_on(mine.run.machine)
        if watts is None:
            return None
        found.append((mine.above_idle(watts), other.above_idle(watts)))
    pairs = [(mine, other) for mine, other in found if mine and other and mine > 0 and other > 0]
    return change_of(pairs) if len(pairs) == len(found) else None


def _support(sample: _Sample, change: Change | None) -> Iterator[Support]:
    """Yield what else was counted and differs: seconds, processor seconds, and operations or epochs."""
    if change is None:
        return
    is_training = sample.kind == "training"
    field, words = ("epochs", "epochs trained") if is_training else ("macs", "operations (MACs)")
    found = [(getattr(mine.run, field), getattr(other.run, field)) for mine, other in sample.sides]
    for what, pairs in (
        ("time", sample.pairs_of("seconds")),
        ("CPU-seconds", sample.pairs_of("cpu_seconds")),
        (words, [(mine, other) for mine, other in found if mine and other]),
    ):
        saved = saving(pairs) if pairs else 0.0
        if saved:
            yield Support(what, saved, (saved > 0) == (change.saving_share > 0))
