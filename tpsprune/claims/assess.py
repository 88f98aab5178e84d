"""From a comparison as measured to what it lets one say: pure, and equal for equal journals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import fsum

from tpsprune.claims.attribution import attribution_of
from tpsprune.claims.break_even import break_even
from tpsprune.claims.claim import claims_of
from tpsprune.claims.counted import Counted, counted_of
from tpsprune.claims.ladder import FEWEST_PAIRS
from tpsprune.claims.limits import may_claim, may_not_claim
from tpsprune.claims.quality import quality_of
from tpsprune.claims.spent import class_words, grade_of, joules_of, seconds_of
from tpsprune.numerics.small_samples import needed_pairs
from tpsprune.records import (
    ArmRun,
    BreakEven,
    Claim,
    Comparison,
    Needed,
    PhaseMean,
    RunLine,
    Savings,
    Standing,
    WallFit,
)

__all__ = ["assess"]

ASKED_SAVINGS = (0.05, 0.1, 0.2, 0.4)
PILOT_PAIRS = 3
JOULES_PER_KWH = 3.6e6
FEWEST_TO_CLAIM = FEWEST_PAIRS + 1


def assess(comparison: Comparison, wall_fit: WallFit | None = None) -> Savings:
    """Return the verdict, every claim, and all that a report shows of a comparison.

    The unit is the pair: runs of the same seed, one after another. Windows within a run are parts of one
    figure, never repetitions. A pair counts once every arm of it is finished. ``wall_fit`` says that the
    windows hold a wall meter's joules, and how those went with the software's.
    """
    counted = counted_of(comparison)
    grade = grade_of(counted.windows)
    claims = claims_of(counted)
    quality = quality_of(counted)
    return Savings(
        comparison=comparison,
        grade=grade,
        claims=claims,
        accuracies=tuple(
            accuracy for arm in counted.others if (accuracy := counted.accuracy_of(arm)) is not None
        ),
        ledger=tuple(_ledger(counted)),
        attribution=attribution_of(counted),
        break_even=tuple(_break_even(counted, claims)),
        quality=quality,
        needed=_needed(claims[0]),
        runs=tuple(_run_line(counted, run) for run in sorted(comparison.runs, key=lambda run: run.position)),
        may_claim=may_claim(claims, grade),
        may_not_claim=may_not_claim(claims, grade, comparison),
        complete=_is_complete(counted),
        wall_fit=wall_fit,
    )


def _is_complete(counted: Counted) -> bool:
    """Return whether all that was asked for is done: every pair, and the answers of every model left."""
    comparison = counted.comparison
    answered = {(span.arm, span.pair, span.batch) for span in comparison.inference}
    return (
        len(counted.pairs) >= comparison.pairs_asked
        and not comparison.under_way
        and all(
            (run.arm, run.pair, batch) in answered
            for run in counted.runs
            if not run.failure
            for batch in counted.design.inference_batches
        )
    )


def _ledger(counted: Counted) -> Iterator[PhaseMean]:
    """Yield what each phase of each arm took, mean over runs that left a model, in the order of phases."""
    for arm in counted.design.arms:
        runs = [run for run in counted.runs if run.arm == arm and not run.failure]
        for phase in dict.fromkeys(window.phase for run in runs for window in run.windows):
            windows = [[window for window in run.windows if window.phase == phase] for run in runs]
            joules = [joules_of(each) if each else 0.0 for each in windows]
            known = [value for value in joules if value is not None]
            yield PhaseMean(
                arm=arm,
                phase=phase,
                joules=fsum(known) / len(runs) if len(known) == len(joules) else None,
                seconds=fsum(seconds_of(each) for each in windows) / len(runs),
                cpu_seconds=fsum(window.cpu_seconds for each in windows for window in each) / len(runs),
                energy_class=class_words(window for each in windows for window in each),
            )


def _break_even(counted: Counted, claims: Sequence[Claim]) -> Iterator[BreakEven]:
    metered = {span.batch for span in counted.comparison.inference}
    for arm in counted.others:
        for batch in (batch for batch in counted.design.inference_batches if batch in metered):
            trainings, answers = [], []
            spans = counted.answers(arm, batch)
            for mine, other in spans:
                extra = [joules_of(counted.run(span.arm, span.pair).windows) for span in (mine, other)]
                each = [span.joules_per_item for span in (mine, other)]
                if None not in extra and None not in each:
                    trainings.append((extra[0] or 0.0, extra[1] or 0.0))
                    answers.append((each[0] or 0.0, each[1] or 0.0))
            yield break_even(
                arm=arm,
                batch=batch,
                trainings=trainings,
                answers=answers,
                per_day=counted.comparison.choices.per_day,
                energy_class=class_words(span.window for pair in spans for span in pair),
                refused=_refused(claims, arm, batch),
            )


def _refused(claims: Sequence[Claim], arm: str, batch: int) -> str:
    """Return in words why a break-even has nothing to rest on: noise in the training alone is no reason."""
    for claim in claims:
        mine = claim.arm == arm and (claim.kind == "training" or claim.batch == batch)
        of_answers = claim.kind == "inference"
        noise = claim.standing in {Standing.WITHIN_NOISE, Standing.MODEL_SENSITIVE} and not of_answers
        if mine and claim.standing.is_refusal and not noise:
            what = "answers" if of_answers else "the training"
            return f"{what}: {str(claim.standing).replace('_', ' ').lower()}"
    return ""


def _needed(claim: Claim) -> tuple[Needed, ...]:
    """Return how many pairs would show which saving, from the scatter of at least three."""
    change = claim.change
    if change is None or change.pairs < PILOT_PAIRS:
        return ()
    return tuple(
        Needed(asked, needed_pairs(asked, change.deviation, FEWEST_TO_CLAIM)) for asked in ASKED_SAVINGS
    )


def _run_line(counted: Counted, run: ArmRun) -> RunLine:
    joules = joules_of(run.windows)
    grid = counted.comparison.choices.grid
    counts = run.pair in counted.pairs
    why_not = run.failure or ("" if counts else "its pair is not complete")
    return RunLine(
        position=run.position,
        pair=run.pair,
        arm=run.arm,
        seed=run.seed,
        joules=joules,
        energy_class=class_words(run.windows),
        seconds=seconds_of(run.windows),
        cpu_seconds=fsum(window.cpu_seconds for window in run.windows),
        accuracy=run.accuracy,
        macs=run.macs,
        parameters=run.parameters,
        epochs=run.epochs,
        stopped_by=run.stopped_by,
        counted=counts and not run.failure,
        why_not=why_not,
        grams_co2=None if grid is None or joules is None else joules / JOULES_PER_KWH * grid.grams_per_kwh,
    )
