"""One claim: what an arm took beside the baseline, put through the ladder, and said in a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum

from tpsprune.claims.band import ASSUMED, Spent, band_of
from tpsprune.claims.change import change_of, corrected, saving
from tpsprune.claims.faults import faults_of, losses_of
from tpsprune.claims.ladder import Evidence, standing_of
from tpsprune.claims.pairs import Counted
from tpsprune.claims.statement import statement_of
from tpsprune.claims.window_sums import class_words, grade_of, joules_of, seconds_of
from tpsprune.records import ArmRun, Change, Claim, InferenceSpan, Support, Window

__all__ = ["claims_of"]


@dataclass(frozen=True, slots=True)
class _Side:
    """What one side of one pair spent: windows, and the items they answered (1 for a training)."""

    run: ArmRun
    windows: tuple[Window, ...]
    items: int

    @property
    def joules(self) -> float | None:
        found = joules_of(self.windows)
        return None if found is None else found / self.items

    @property
    def seconds(self) -> float:
        return seconds_of(self.windows) / self.items

    @property
    def cpu_seconds(self) -> float:
        return fsum(window.cpu_seconds for window in self.windows) / self.items

    def above_idle(self, idle_watts: float) -> float | None:
        found = joules_of(self.windows)
        return None if found is None else (found - idle_watts * seconds_of(self.windows)) / self.items

    @property
    def spent(self) -> Spent:
        return self.windows, float(self.items)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of one arm: its kind, its batch, and both sides of every pair that has an answer."""

    kind: str
    arm: str
    batch: int | None
    sides: tuple[tuple[_Side, _Side], ...]

    @property
    def key(self) -> tuple[str, str, int | None]:
        return self.kind, self.arm, self.batch

    @property
    def windows(self) -> tuple[Window, ...]:
        return tuple(window for pair in self.sides for side in pair for window in side.windows)

    def pairs_of(self, figure: str) -> list[tuple[float, float]]:
        """Return one figure of both sides, where it is known and above zero on both."""
        found = [(getattr(mine, figure), getattr(other, figure)) for mine, other in self.sides]
        return [(mine, other) for mine, other in found if mine and other and mine > 0 and other > 0]


def claims_of(counted: Counted) -> tuple[Claim, ...]:
    """Return the claims of a report: training of each arm, the one fixed beforehand first, then answers.

    Holm's correction runs over all of them. A claim of answers is made for each batch that was metered. Each
    has the grade of its own windows, and an error rate divided by how often one could look.
    """
    questions = tuple(_questions(counted))
    changes = corrected(
        {
            _name(question): change_of(question.pairs_of("joules"), counted.design.alpha)
            for question in questions
        }
    )
    return tuple(_claim(counted, question, changes[_name(question)]) for question in questions)


def _questions(counted: Counted) -> Iterator[_Question]:
    for arm in counted.others:
        sides = tuple((_training(mine), _training(other)) for mine, other in counted.couples(arm))
        yield _Question("training", arm, None, sides)
    metered = {span.batch for span in counted.comparison.inference}
    for arm in counted.others:
        for batch in counted.design.inference_batches:
            if batch in metered:
                sides = tuple(
                    (_answer(counted, mine), _answer(counted, other))
                    for mine, other in counted.answers(arm, batch)
                )
                yield _Question("inference", arm, batch, sides)


def _training(run: ArmRun) -> _Side:
    return _Side(run, run.windows, 1)


def _answer(counted: Counted, span: InferenceSpan) -> _Side:
    return _Side(counted.run(span.arm, span.pair), (span.window,), span.items)


def _claim(counted: Counted, question: _Question, change: Change | None) -> Claim:
    accuracy = counted.accuracy_of(question.arm)
    faults = faults_of(counted, question.kind, question.arm, question.windows)
    # A figure that is missing in one pair must not silently leave the others to speak for it.
    assessed = change if len(question.pairs_of("joules")) == len(question.sides) else None
    bandable = assessed is not None and not faults
    band = (
        band_of(
            [(mine.spent, other.spent) for mine, other in question.sides],
            question.sides[0][0].run.method,
            question.sides[0][0].run.logical_cpus,
        )
        if bandable
        else ()
    )
    standing, reasons = standing_of(
        Evidence(
            pairs=0 if assessed is None else assessed.pairs,
            pairs_ended=_ended(counted, question),
            pairs_asked=counted.comparison.pairs_asked,
            change=assessed,
            accuracy=accuracy,
            quality=counted.design.quality,
            band=band,
            needs_band=any(
                kind in ASSUMED for window in question.windows for kind in window.classes.values()
            ),
            grade=grade_of(question.windows).letter,
            alpha=counted.design.alpha / counted.comparison.looks,
            faults=faults,
            losses=losses_of(counted, question.arm),
        )
    )
    joules = question.pairs_of("joules")
    claim = Claim(
        kind=question.kind,
        arm=question.arm,
        baseline=counted.design.baseline,
        batch=question.batch,
        standing=standing,
        statement="",
        reasons=reasons,
        energy_class=class_words(question.windows),
        joules=statistics.fmean(mine for mine, _ in joules) if joules else None,
        baseline_joules=statistics.fmean(other for _, other in joules) if joules else None,
        change=change,
        idle_subtracted=_above_idle(counted, question),
        band=band,
        support=tuple(_support(question, change)),
    )
    return statement_of(claim, counted.design.quality)


def _ended(counted: Counted, question: _Question) -> int:
    """Return in how many pairs the question is answered, be it by a run that left no model."""
    failed = len(counted.pairs) - len(counted.couples(question.arm))
    return len(question.sides) + failed


def _name(question: _Question) -> str:
    return "/".join(map(str, question.key))


def _above_idle(counted: Counted, question: _Question) -> Change | None:
    """Return the change with the idle baseline taken off both; ``None`` where that leaves nothing."""
    if counted.idle_watts is None:
        return None
    pairs = [
        (mine.above_idle(counted.idle_watts), other.above_idle(counted.idle_watts))
        for mine, other in question.sides
    ]
    if not all(mine is not None and other is not None and mine > 0 and other > 0 for mine, other in pairs):
        return None
    return change_of([(mine, other) for mine, other in pairs if mine is not None and other is not None])


def _support(question: _Question, change: Change | None) -> Iterator[Support]:
    """Yield what else was counted and differs: seconds, processor seconds, and operations or epochs."""
    if change is None:
        return
    counted: list[tuple[str, Sequence[tuple[float, float]]]] = [
        ("time", question.pairs_of("seconds")),
        ("CPU-seconds", question.pairs_of("cpu_seconds")),
    ]
    field, words = (
        ("epochs", "epochs trained") if question.kind == "training" else ("macs", "operations (MACs)")
    )
    found = [(getattr(mine.run, field), getattr(other.run, field)) for mine, other in question.sides]
    counted.append((words, [(mine, other) for mine, other in found if mine and other]))
    for what, pairs in counted:
        saved = saving(pairs) if pairs else 0.0
        if saved:
            yield Support(what, saved, (saved > 0) == (change.saving_share > 0))
