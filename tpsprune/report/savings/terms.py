"""The terms of a report: classes and standings in words, and which claim or run is meant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

from tpsprune.records import (
    Accuracy,
    Change,
    Claim,
    EnergyClass,
    RunLine,
    Savings,
    Standing,
    Step,
    classes_of,
    join_classes,
    joules_of,
)
from tpsprune.report import words
from tpsprune.report.forms import Number

Tone = Literal["saves", "costs", "refused", "neutral"]

_STANDINGS: Final[dict[Standing, str]] = {
    Standing.INVALID_MEASUREMENT: "The measurement does not hold",
    Standing.INSUFFICIENT_RUNS: "Runs that a claim needs are missing",
    Standing.RUNS_BROKEN_OFF: "Too many runs were broken off",
    Standing.ACCURACY_NOT_PRESERVED: "{quality} not shown to be kept",
    Standing.WITHIN_NOISE: "No difference beyond the noise",
    Standing.MODEL_SENSITIVE: "Depends on the power model",
    Standing.SHORTER_SCHEDULE_DOES_AS_WELL: "A shorter schedule may do as well",
    Standing.SMALLER_NET_DOES_AS_WELL: "A smaller net from scratch may do as well",
    Standing.SAVING_MODELLED: "Takes less energy (modelled)",
    Standing.SAVING_MEASURED: "Takes less energy (measured)",
    Standing.SAVING_SIMULATED: "A simulated meter: nothing is shown",
    Standing.COST_INCREASE_MODELLED: "Takes more energy (modelled)",
    Standing.COST_INCREASE_MEASURED: "Takes more energy (measured)",
    Standing.COST_INCREASE_SIMULATED: "A simulated meter: nothing is shown",
}


def capitalise(text: str) -> str:
    """Return words as a sentence begins.

    >>> capitalise("label accuracy"), capitalise("R²")
    ('Label accuracy', 'R²')
    """
    return text[:1].upper() + text[1:]


def standing_words(standing: Standing, quality: str = "accuracy", *, inside: bool = False) -> str:
    """Return a standing in words, as a sentence begins or, ``inside`` one, with a small letter.

    ``quality`` is what the figure of a model's quality is called.
    """
    sentence = _STANDINGS[standing]
    if inside:
        return (sentence[:1].lower() + sentence[1:]).format(quality=quality)
    return sentence.format(quality=capitalise(quality))


def tone_of(standing: Standing) -> Tone:
    """Return how a standing is shown; a simulated saving is none."""
    if standing.is_saving:
        return "saves"
    if standing in {Standing.COST_INCREASE_MODELLED, Standing.COST_INCREASE_MEASURED}:
        return "costs"
    return "refused"


def join_class_words(shown: Iterable[str]) -> str:
    """Return the classes of several sums as those of one sum.

    >>> join_class_words(["modelled + constant", "measured", "none"])
    'measured + modelled + constant'
    """
    return join_classes(EnergyClass(part) for each in shown for part in each.split(" + "))


def class_of(savings: Savings, shown: str) -> str:
    """Return an energy class of the records for a reader: for ``mixed``, the classes that are mixed."""
    if shown != EnergyClass.MIXED.value:
        return shown
    return join_classes(kind for run in savings.comparison.runs for kind in run.method.classes.values())


def class_of_verdict(savings: Savings) -> str:
    """Return the classes of the joules of the report's verdict."""
    return class_of(savings, savings.verdict.energy_class)


def class_of_step(savings: Savings, step: Step) -> str:
    """Return the classes of the joules of a step of the attribution, of both its arms together."""
    shown = [run.energy_class for run in savings.runs if run.counted and run.arm in {step.arm, step.baseline}]
    return join_class_words(class_of(savings, each) for each in shown)


def idle_class(savings: Savings) -> str:
    """Return the classes of the joules of the idle machine."""
    return classes_of(span.window for span in savings.comparison.idle)


def lost_class(savings: Savings) -> str:
    """Return the classes of the joules that are in no claim."""
    return classes_of(window for each in savings.comparison.broken_off for window in each.windows)


def lost_unknown(savings: Savings) -> int:
    """Return the number of runs in no claim whose energy is unknown, because no window of theirs is kept."""
    return sum(joules_of(each.windows) is None for each in savings.comparison.broken_off)


def claim_of(savings: Savings, arm: str, batch: int | None = None) -> Claim | None:
    """Return the claim about an arm's inference at ``batch``, or without one about its training."""
    return next((c for c in savings.claims if (c.arm, c.batch) == (arm, batch)), None)


def training_of(savings: Savings) -> Claim:
    """Return the training claim of the verdict's arm; the verdict where there is none."""
    return claim_of(savings, savings.verdict.arm) or savings.verdict


def inference_of(savings: Savings) -> Claim | None:
    """Return the inference claim of the verdict's arm at the first batch size that was fixed beforehand."""
    return next((c for c in savings.claims if c.kind == "inference" and c.arm == savings.verdict.arm), None)


def accuracy_of(savings: Savings) -> Accuracy | None:
    """Return the accuracy of the verdict's arm and its baseline: of several sizes, of the worst one."""
    arm = savings.verdict.arm
    names = {f"{arm}/{each.size:g}" for run in savings.comparison.runs for each in run.sizes} or {arm}
    found = [each for each in savings.accuracies if each.arm in names]
    return min(
        found,
        key=lambda each: each.difference_share if each.lower_share is None else each.lower_share,
        default=None,
    )


def metered_pairs(savings: Savings, claim: Claim) -> list[tuple[RunLine, RunLine]]:
    """Return the counted runs of a claim's baseline and arm, pair by pair, where both were metered."""
    runs: dict[Any, RunLine] = {
        (run.arm, run.pair): run for run in savings.runs if run.counted and run.joules is not None
    }
    return [
        (runs[claim.baseline, pair], runs[claim.arm, pair])
        for pair in sorted(pair for arm, pair in runs if arm == claim.arm)
        if (claim.baseline, pair) in runs
    ]


def claim_title(claim: Claim) -> str:
    """Return what a claim is of, for a row or an axis."""
    kind = claim.kind if claim.batch is None else f"{claim.kind}, batch {claim.batch}"
    return f"{claim.arm}: {kind}"


def format_change(change: Change | None, kind: str) -> Number:
    """Return a change in words with its class."""
    return Number("not known" if change is None else words.change(change.saving_share), kind)


def format_interval(change: Change | None, kind: str) -> Number:
    """Return the bounds of a change in words, with its class."""
    return Number("no interval" if change is None else words.change_between(change.low, change.high), kind)


def format_joules(claim: Claim, joules: float | None) -> str:
    """Return the joules of a claim: of a training, or of one inference."""
    if joules is None:
        return "not known"
    return words.joules(joules) if claim.kind == "training" else words.small_joules(joules)
