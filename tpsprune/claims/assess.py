"""The assessment of a comparison: a pure function of its journal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import fsum, isnan
from typing import Final

from tpsprune.claims.change import change_of
from tpsprune.claims.claim import claims_of
from tpsprune.claims.faults import quality_of
from tpsprune.claims.ladder import FEWEST_PAIRS, may_claim, may_not_claim
from tpsprune.claims.opponents import answer_of
from tpsprune.claims.pairs import CountedPairs, count_pairs
from tpsprune.claims.window_sums import grade_of
from tpsprune.numerics.small_samples import fewest_without_long_runs, fieller, needed_pairs
from tpsprune.records import (
    JOULES_PER_KWH,
    MISSED_AT_MOST,
    Answer,
    ArmRun,
    BreakEven,
    Claim,
    ComparisonRecord,
    Needed,
    PhaseMean,
    RunLine,
    Savings,
    Standing,
    Step,
    WallFit,
    classes_of,
    cpu_seconds_of,
    joules_of,
    seconds_of,
)

DETECTED_SAVINGS: Final = (0.05, 0.1, 0.2, 0.4)
PILOT_PAIRS: Final = 3
FEWEST_TO_CLAIM: Final = FEWEST_PAIRS + 1
STEPS: Final = (
    ("dense-stopped", "dense", "stopping by the same rules, watching and TPS included"),
    ("ticket", "dense-stopped", "the smaller net and where it stops, less what cutting it takes"),
    ("dense-patience", "dense", "ordinary early stopping"),
    ("ticket", "dense-patience", "what is left beyond ordinary early stopping"),
    ("ticket", "shape-scratch", "the ticket against its shape from scratch, equal epochs, shape for nothing"),
    ("ticket", "dense-joules", "the ticket against a shorter schedule of the dense model at equal cost"),
    ("ticket", "scratch-joules", "the ticket against its shape from scratch at equal cost"),
    ("ticket", "uniform-joules", "the ticket against uniform widths from scratch at equal cost"),
    ("ticket", "random-ticket", "the ticket against units drawn by lot, their number for nothing"),
    ("ticket", "early-bird", "the ticket against one drawn and pruned after Early-Bird"),
    ("ticket", "ticket-without-tps", "TPS"),
    ("ticket", "dense", "all of it"),
    ("family", "dense-each", "one training and its cuts against a training of every size"),
    ("family", "each-joules", "one training and its cuts against shorter trainings at equal cost"),
    ("fine-tune", "dense", "an encoder trained elsewhere, that training not counted"),
    ("frozen", "fine-tune", "the encoder left as it is, its features computed once"),
    ("frozen-ticket", "frozen", "its cut for this task"),
    ("frozen-ticket", "fine-tune-joules", "the frozen ticket against shorter fine-tuning at equal cost"),
)
"""Arm, baseline, and the one thing in which they differ."""

Costs = tuple[float, float]
"""Joules of the arm and of its baseline in one pair."""


def assess(comparison: ComparisonRecord, wall_fit: WallFit | None = None) -> Savings:
    """Return the verdict, every claim, and all other contents of a report.

    The unit is the pair: runs of the same seed, one after another. Windows within a run are parts of one
    figure, never repetitions. A pair counts once every arm of it is finished. ``wall_fit`` is
    the line of the wall meter's power on the software's, where the windows hold a wall meter's joules.
    """
    counted = count_pairs(comparison)
    grade = grade_of(counted.windows)
    claims = claims_of(counted)
    accuracies = (
        accuracy
        for arm in counted.others
        for accuracy in (counted.accuracy_of(arm), *counted.accuracies_of(arm))
    )
    return Savings(
        comparison=comparison,
        answer=_answer(counted, claims[0]),
        grade=grade,
        claims=claims,
        accuracies=tuple(accuracy for accuracy in accuracies if accuracy is not None),
        ledger=tuple(_ledger(counted)),
        attribution=_attribution(counted),
        break_even=tuple(_break_even(counted, claims)),
        quality=quality_of(counted),
        needed=_needed(claims[0]),
        runs=tuple(_run_line(counted, run) for run in sorted(comparison.runs, key=lambda run: run.position)),
        may_claim=may_claim(claims, grade),
        may_not_claim=may_not_claim(claims, grade, comparison),
        complete=_is_complete(counted),
        wall_fit=wall_fit,
    )


def _answer(counted: CountedPairs, verdict: Claim) -> Answer:
    found = answer_of(counted)
    if verdict.standing is not Standing.INVALID_MEASUREMENT:
        return found
    return replace(found, statement=f"{found.statement} The measurement of energy does not hold.")


def _is_complete(counted: CountedPairs) -> bool:
    """Return whether every requested pair is done, and the inference of every model of it."""
    comparison = counted.comparison
    done = {(span.arm, span.pair, span.batch) for span in comparison.inference}
    return (
        len(counted.pairs) >= comparison.pairs_asked
        and not comparison.under_way
        and all(
            (run.arm, run.pair, batch) in done
            for run in counted.runs
            if not run.failure
            for batch in counted.design.inference_batches
        )
    )


def _ledger(counted: CountedPairs) -> Iterator[PhaseMean]:
    """Yield what each phase of each arm took, mean over runs that left a model, in the order of phases."""
    for arm in counted.design.arms:
        runs = [run for run in counted.runs if run.arm == arm and not run.failure]
        for phase in dict.fromkeys(window.phase for run in runs for window in run.windows):
            windows = [[window for window in run.windows if window.phase == phase] for run in runs]
            joules = [joules_of(each) if each else 0.0 for each in windows]
            metered = [value for value in joules if value is not None]
            yield PhaseMean(
                arm=arm,
                phase=phase,
                joules=fsum(metered) / len(runs) if len(metered) == len(joules) else None,
                seconds=fsum(seconds_of(each) for each in windows) / len(runs),
                cpu_seconds=cpu_seconds_of(window for each in windows for window in each) / len(runs),
                energy_class=classes_of(window for each in windows for window in each),
            )


def _attribution(counted: CountedPairs) -> tuple[Step, ...]:
    """Return the steps that a change is made of: those whose arms both ran.

    Along a chain the logarithms of (1 − saving) add up. No step is a claim: the intervals are not
    corrected for multiple comparisons. The change of accuracy is in the detail of each step.
    """
    arms = counted.design.arms
    return tuple(
        _step(counted, arm, baseline, what)
        for arm, baseline, what in STEPS
        if arm in arms and baseline in arms
    )


def _step(counted: CountedPairs, arm: str, baseline: str, what: str) -> Step:
    couples = counted.couples(arm, baseline)
    found = [(joules_of(mine.windows), joules_of(other.windows)) for mine, other in couples]
    pairs = [(mine, other) for mine, other in found if mine and other]
    valid = all(window.valid for couple in couples for run in couple for window in run.windows)
    accuracy = counted.accuracy_of(arm, baseline)
    if accuracy is None:
        detail = "no pair has both"
    else:
        bound = "" if accuracy.lower_share is None else f", lower bound {100 * accuracy.lower_share:+.2f}"
        change = f"{100 * accuracy.difference_share:+.2f} points{bound}".replace("-", "−")
        detail = f"{counted.design.quality} {change}"
    return Step(
        what=what,
        arm=arm,
        baseline=baseline,
        change=change_of(pairs) if valid and len(pairs) == len(found) else None,
        detail=detail,
    )


def _break_even(counted: CountedPairs, claims: Sequence[Claim]) -> Iterator[BreakEven]:
    for arm in counted.others:
        for batch in counted.metered_batches:
            spans = counted.inferences(arm, batch)
            trainings, inferences = [], []
            for mine, other in spans:
                costs = [joules_of(counted.run(span.arm, span.pair).windows) for span in (mine, other)]
                costs += [span.joules_per_item for span in (mine, other)]
                metered = [value for value in costs if value is not None]
                if len(metered) == len(costs):
                    trainings.append((metered[0], metered[1]))
                    inferences.append((metered[2], metered[3]))
            yield break_even(
                arm=arm,
                batch=batch,
                trainings=trainings,
                inferences=inferences,
                per_day=counted.comparison.choices.per_day,
                energy_class=classes_of(span.window for pair in spans for span in pair),
                refused=_refused(claims, arm, batch),
            )


def _refused(claims: Sequence[Claim], arm: str, batch: int) -> str:
    """Return why there is no break-even; noise in the training claim alone is no reason."""
    for claim in claims:
        mine = claim.arm == arm and (claim.kind == "training" or claim.batch == batch)
        of_inference = claim.kind == "inference"
        noise = claim.standing in {Standing.WITHIN_NOISE, Standing.MODEL_SENSITIVE} and not of_inference
        if mine and claim.standing.is_refusal and not noise:
            what = "inference" if of_inference else "the training"
            return f"{what}: {str(claim.standing).replace('_', ' ').lower()}"
    return ""


def break_even(
    *,
    arm: str,
    batch: int,
    trainings: Sequence[Costs],
    inferences: Sequence[Costs],
    per_day: float | None,
    energy_class: str,
    refused: str = "",
) -> BreakEven:
    """Return N* = mean(E_arm − E_baseline) / mean(e_baseline − e_arm) with Fieller's 95 % interval.

    After N* inferences the extra energy of a training is paid back. E is the energy of a whole training, e
    that of one inference, both of the same pairs. All three numbers are at least 0: a training that took less
    beyond doubt has paid back before the first inference. There is no such number where an inference
    is not cheaper beyond doubt (its 95 % interval includes zero), nor where a claim that it rests on was
    ``refused``; ``reason`` names the cause. It does not see what serving takes besides the model: loading,
    waiting, the network.
    """
    extra = [mine - other for mine, other in trainings]
    saved = [other - mine for mine, other in inferences]
    estimate = BreakEven(
        arm=arm,
        batch=batch,
        extra_joules=statistics.fmean(extra) if extra else None,
        saved_joules=statistics.fmean(saved) if saved else None,
        inferences=None,
        low=None,
        high=None,
        per_day=per_day,
        days=None,
        reason=refused,
        energy_class=energy_class,
    )
    if refused:
        return estimate
    if estimate.extra_joules is None or estimate.saved_joules is None or len(extra) < 2:
        return replace(estimate, reason="fewer than two pairs have both a training and inference metered")
    bounds = fieller(extra, saved)
    if isnan(bounds.ratio):
        if estimate.saved_joules > 0:
            never = (
                "an inference is not cheaper beyond doubt: the 95 % interval of what it saves includes zero"
            )
        elif estimate.extra_joules > 0:
            never = "an inference is no cheaper and the training took more: it never pays back"
        else:
            never = "an inference is no cheaper; if it costs more, inference uses up what the training saved"
        return replace(estimate, reason=never)
    number, low, high = (max(value, 0.0) for value in (bounds.ratio, bounds.low, bounds.high))
    days = None if per_day is None else number / per_day
    at_once = "the training took less than the baseline's beyond doubt: paid back before the first inference"
    return replace(
        estimate, inferences=number, low=low, high=high, days=days, reason=at_once if high == 0 else ""
    )


def _needed(claim: Claim) -> tuple[Needed, ...]:
    """Return the pairs needed to claim each of several savings, from the deviation over at least three.

    However little runs scatter, rare long ones may be missing from few: see ``fewest_without_long_runs``.
    """
    change = claim.change
    if change is None or change.pairs < PILOT_PAIRS:
        return ()
    return tuple(
        Needed(
            share,
            needed_pairs(
                share, change.deviation, max(FEWEST_TO_CLAIM, fewest_without_long_runs(share, MISSED_AT_MOST))
            ),
        )
        for share in DETECTED_SAVINGS
    )


def _run_line(counted: CountedPairs, run: ArmRun) -> RunLine:
    joules, grid = joules_of(run.windows), counted.comparison.choices.grid
    why_not = run.failure or ("" if run.pair in counted.pairs else "its pair is not complete")
    return RunLine(
        position=run.position,
        pair=run.pair,
        arm=run.arm,
        seed=run.seed,
        joules=joules,
        energy_class=classes_of(run.windows),
        seconds=seconds_of(run.windows),
        cpu_seconds=cpu_seconds_of(run.windows),
        accuracy=run.accuracy,
        macs=run.macs,
        parameters=run.parameters,
        epochs=run.epochs,
        stopped_by=run.stopped_by,
        counted=not why_not,
        why_not=why_not,
        grams_co2=None if grid is None or joules is None else joules / JOULES_PER_KWH * grid.grams_per_kwh,
    )
