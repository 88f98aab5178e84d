"""The pairs of a comparison that count, and the data of one arm and its baseline in them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from tpsprune.numerics.small_samples import lower_bound
from tpsprune.records import (
    Accuracy,
    ArmRun,
    ComparisonRecord,
    Design,
    InferenceSpan,
    Window,
    joules_of,
    seconds_of,
)


@final
@dataclass(frozen=True)
class CountedPairs:
    """A comparison with the pairs that count: those of which every arm's run has ended."""

    comparison: ComparisonRecord
    pairs: tuple[int, ...]

    @property
    def design(self) -> Design:
        """What was fixed beforehand."""
        return self.comparison.design

    @property
    def others(self) -> tuple[str, ...]:
        """Every arm but the baseline, the one fixed beforehand first."""
        primary = self.design.primary
        return (primary, *(arm for arm in self.design.arms[1:] if arm != primary))

    @cached_property
    def runs(self) -> tuple[ArmRun, ...]:
        """The runs of the pairs that count, by pair and arm."""
        return tuple(self.run(arm, pair) for pair in self.pairs for arm in self.design.arms)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Every window of those runs."""
        return tuple(window for run in self.runs for window in run.windows)

    @cached_property
    def idle_watts(self) -> float | None:
        """Mean watts of the idle windows; ``None`` where there are none, or they were not metered."""
        windows = [span.window for span in self.comparison.idle if span.window.valid]
        joules = joules_of(windows)
        return None if joules is None else joules / seconds_of(windows)

    def idle_watts_on(self, machine: str) -> float | None:
        """Return the mean watts of a machine at rest; ``None`` where that was not metered."""
        windows = [
            span.window
            for span in self.comparison.idle
            if span.window.valid and self.machine_of(span.pair) == machine
        ]
        joules = joules_of(windows)
        return None if joules is None else joules / seconds_of(windows)

    def machine_of(self, pair: int) -> str:
        """Return which machine of a cluster made a pair; empty without a cluster."""
        return next((run.machine for run in self.comparison.runs if run.pair == pair), "")

    @cached_property
    def metered_batches(self) -> tuple[int, ...]:
        """The batch sizes of the design at which inference was metered."""
        metered = {span.batch for span in self.comparison.inference}
        return tuple(batch for batch in self.design.inference_batches if batch in metered)

    def run(self, arm: str, pair: int) -> ArmRun:
        """Return the run of an arm in a pair that counts."""
        run = self.comparison.run_of(arm, pair)
        assert run is not None, "a pair counts once every arm of it has ended"
        return run

    def couples(self, arm: str, baseline: str | None = None) -> tuple[tuple[ArmRun, ArmRun], ...]:
        """Return the runs of an arm and of the baseline where both left a model."""
        base = baseline or self.design.baseline
        found = ((self.run(arm, pair), self.run(base, pair)) for pair in self.pairs)
        return tuple((mine, other) for mine, other in found if not (mine.failure or other.failure))

    def inferences(self, arm: str, batch: int) -> tuple[tuple[InferenceSpan, InferenceSpan], ...]:
        """Return the inference of an arm and of the baseline where both were metered."""
        spans = {(span.arm, span.pair): span for span in self.comparison.inference if span.batch == batch}
        found = [(spans.get((arm, pair)), spans.get((self.design.baseline, pair))) for pair in self.pairs]
        return tuple((mine, other) for mine, other in found if mine and other)

    def accuracy_of(self, arm: str, baseline: str | None = None) -> Accuracy | None:
        """Return the test accuracy of an arm and of its baseline; ``None`` where no pair has both.

        Preserved where the one-sided 95 % lower bound of the mean paired difference (Student's t) is not
        below −tolerance: a small mean difference shows nothing by itself.
        """
        base = baseline or self.design.baseline
        found = [(mine.accuracy, other.accuracy) for mine, other in self.couples(arm, base)]
        return self._compare(arm, base, found)

    def accuracies_of(self, arm: str) -> tuple[Accuracy, ...]:
        """Return the accuracy beside the baseline of each size that both left, as of arm ``ARM/SIZE``.

        Empty where a run leaves one model.
        """
        base = self.design.baseline
        couples = [
            (
                {each.size: each.accuracy for each in mine.sizes},
                {each.size: each.accuracy for each in other.sizes},
            )
            for mine, other in self.couples(arm, base)
        ]
        sizes = dict.fromkeys(size for mine, other in couples for size in mine if size in other)
        found = (
            self._compare(
                f"{arm}/{size:g}",
                f"{base}/{size:g}",
                [(mine.get(size), other.get(size)) for mine, other in couples],
            )
            for size in sizes
        )
        return tuple(each for each in found if each is not None)

    def _compare(
        self, arm: str, base: str, couples: Sequence[tuple[float | None, float | None]]
    ) -> Accuracy | None:
        found = [(mine, other) for mine, other in couples if mine is not None and other is not None]
        if not found:
            return None
        differences = [mine - other for mine, other in found]
        lower = lower_bound(differences) if len(differences) > 1 else None
        tolerance = self.design.tolerance_share
        return Accuracy(
            arm=arm,
            baseline=base,
            pairs=len(found),
            mean=statistics.fmean(mine for mine, _ in found),
            baseline_mean=statistics.fmean(other for _, other in found),
            difference_share=statistics.fmean(differences),
            lower_share=lower,
            tolerance_share=tolerance,
            preserved=lower is not None and lower >= -tolerance,
        )


def count_pairs(comparison: ComparisonRecord) -> CountedPairs:
    """Return the comparison with the pairs that count, in order."""
    arms = comparison.design.arms
    ended = {(run.arm, run.pair) for run in comparison.runs}
    pairs = sorted({pair for _, pair in ended})
    return CountedPairs(
        comparison, tuple(pair for pair in pairs if all((arm, pair) in ended for arm in arms))
    )
