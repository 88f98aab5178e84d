"""The ladder of refusals: a claim is what is left when no rung turns it down; and its sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log1p
from typing import Final

from tpsprune.recipe.compare import FROZEN, OPPOSED
from tpsprune.records import Accuracy, BandPoint, Change, Claim, ComparisonRecord, Grade, Reason, Standing

FEWEST_PAIRS: Final = 5
REFUSALS: Final = {
    Standing.INVALID_MEASUREMENT: "the measurement is invalid",
    Standing.INSUFFICIENT_RUNS: "runs that it needs are missing",
    Standing.RUNS_BROKEN_OFF: "too many runs were broken off",
    Standing.ACCURACY_NOT_PRESERVED: "{quality} is not shown to be preserved",
    Standing.WITHIN_NOISE: "within noise",
    Standing.MODEL_SENSITIVE: "the sign hangs on the power model",
    Standing.SHORTER_SCHEDULE_DOES_AS_WELL: "a shorter schedule may do as well for the same cost",
    Standing.SMALLER_NET_DOES_AS_WELL: "a smaller net from scratch may do as well for the same cost",
}
GRADE_LIMITS: Final = (
    ("DE", "That any energy was measured: power is assumed, and time is what differs."),
    ("E", "More than a saving of time: most joules are assumed watts times seconds."),
    ("C", "That all of it was measured: a part is modelled or assumed."),
    ("S", "Anything: the meter was simulated."),
    ("-", "Anything of energy: none was metered."),
)
"""What does not follow at which grades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a standing rests on. ``faults`` are of the measurement, ``losses`` of the model's quality.

    ``broken_off`` is why runs that were begun and broken off leave no claim, if they do.

    ``pairs`` have both models, ``pairs_ended`` are over, be it without one. ``grade`` is the letter of how
    the joules were obtained; ``band`` the saving under other power models, which a claim on modelled or
    assumed joules needs (``needs_band``).
    """

    pairs: int
    pairs_ended: int
    pairs_asked: int
    change: Change | None
    accuracy: Accuracy | None
    band: tuple[BandPoint, ...]
    grade: str
    needs_band: bool = False
    alpha: float = 0.05
    faults: tuple[Reason, ...] = ()
    broken_off: tuple[Reason, ...] = ()
    losses: tuple[Reason, ...] = ()
    opponents_missing: tuple[Reason, ...] = ()
    shorter_schedules: tuple[Reason, ...] = ()
    smaller_nets: tuple[Reason, ...] = ()
    """Opponents at equal cost that do as well, which refuse a saving and no increase."""
    quality: str = "accuracy"
    """What ``accuracy`` is called in this task."""
    of_training: bool = True
    """Whether it is about trainings, a rare kind of which may be long; a window of inference is a mean."""


def standing_of(evidence: Evidence) -> tuple[Standing, tuple[Reason, ...]]:
    """Return where the claim stands, and every reason of the rung that decided, or of the claim itself.

    In this order: a broken measurement; runs broken off, more than one; fewer than five pairs; accuracy lost,
    or not shown to be kept; an interval with zero in it or without the arithmetic mean in it, a p-value
    (Student's t corrected for all claims, sign flips) not below α, so few pairs that rare long runs which
    they may lack would reverse it, or an effect smaller than these pairs show with power 0.8; a sign that
    another power model reverses; for the training of a pruned model, a shorter schedule or a smaller net from
    scratch that does as well for as much, or was not run. What passes is a saving or, by the same rungs, an
    increase: ``MEASURED`` at grades A and B.
    """
    for standing, found in _rungs(evidence):
        if reasons := tuple(found):
            return standing, reasons
    change = evidence.change
    assert change is not None, "without a change there are too few runs"
    kind = {"A": "MEASURED", "B": "MEASURED", "S": "SIMULATED"}.get(evidence.grade, "MODELLED")
    verb = "SAVING" if change.saving_share > 0 else "COST_INCREASE"
    detail = (
        f"{change.pairs} pairs, t p = {change.p_t:.2g}, sign-flip p = {change.p_sign_flip:.2g}, "
        f"grade {evidence.grade}"
    )
    return Standing(f"{verb}_{kind}"), (Reason("ALL_RUNGS_HELD", detail),)


def _rungs(evidence: Evidence) -> Iterator[tuple[Standing, Iterable[Reason]]]:
    yield Standing.INVALID_MEASUREMENT, evidence.faults
    yield Standing.RUNS_BROKEN_OFF, evidence.broken_off
    yield Standing.INSUFFICIENT_RUNS, _too_few(evidence)
    yield Standing.ACCURACY_NOT_PRESERVED, (*evidence.losses, *lost(evidence.accuracy, evidence.quality))
    yield Standing.WITHIN_NOISE, _noise(evidence)
    yield Standing.MODEL_SENSITIVE, _sensitive(evidence)
    assert evidence.change is not None, "five pairs have a change"
    if evidence.change.saving_share > 0:
        yield Standing.SHORTER_SCHEDULE_DOES_AS_WELL, evidence.shorter_schedules
        yield Standing.SMALLER_NET_DOES_AS_WELL, evidence.smaller_nets
        yield Standing.INSUFFICIENT_RUNS, evidence.opponents_missing


def _too_few(evidence: Evidence) -> Iterator[Reason]:
    if evidence.pairs < FEWEST_PAIRS:
        detail = f"{evidence.pairs} pairs are done, and below {FEWEST_PAIRS} nothing is claimed"
        yield Reason("TOO_FEW_PAIRS", detail)
    elif evidence.pairs_ended < evidence.pairs_asked:
        detail = f"{evidence.pairs_ended} of {evidence.pairs_asked} pairs are done: too early to test"
        yield Reason("INCOMPLETE", detail)


def lost(accuracy: Accuracy | None, quality: str) -> Iterator[Reason]:
    """Yield why an accuracy is not shown to be preserved, if it is not."""
    if accuracy is None:
        yield Reason("ACCURACY_UNKNOWN", f"no pair has the test {quality} of both")
    elif not accuracy.preserved:
        bound = "unknown" if accuracy.lower_share is None else in_points(accuracy.lower_share)
        yield Reason(
            "ACCURACY_BOUND",
            f"test {quality} changed by {in_points(accuracy.difference_share)}, with a one-sided 95 % "
            f"bound of {bound}; at most −{100 * accuracy.tolerance_share:g} was fixed beforehand",
        )


def _noise(evidence: Evidence) -> Iterator[Reason]:
    change, alpha = evidence.change, evidence.alpha
    assert change is not None, "five pairs have a change"
    if change.low <= 0 <= change.high:
        detail = f"the 95 % interval of the saving is {_percent(change.low)} to {_percent(change.high)}"
        yield Reason("INTERVAL_INCLUDES_ZERO", detail)
    if not change.means_agree:
        yield Reason(
            "MEANS_DISAGREE",
            f"the geometric mean of paired ratios saves {_percent(change.saving_share)}, and the ratio of "
            f"mean joules {_percent(change.arithmetic_share)}, which is not in the interval "
            f"{_percent(change.low)} to {_percent(change.high)}",
        )
    if change.p_sign_flip >= alpha:
        few = "; six pairs are the fewest that can be below 0.05" if change.pairs < FEWEST_PAIRS + 1 else ""
        yield Reason("SIGN_FLIP", f"sign flips give p = {change.p_sign_flip:.3f}, not below {alpha:g}{few}")
    p_value = change.p_t if change.p_holm is None else change.p_holm
    if p_value >= alpha:
        detail = f"Student's t corrected for all claims gives p = {p_value:.3f}, not below {alpha:g}"
        yield Reason("SEVERAL_CLAIMS", detail)
    if evidence.of_training and change.reversing_share <= change.missing_share:
        yield Reason(
            "RARE_LONG_RUNS",
            f"{change.pairs} pairs may lack a kind of run that makes up {100 * change.missing_share:.0f} %, "
            f"and runs twice as long, {100 * change.reversing_share:.0f} % of all, would reverse this",
        )
    # On the scale of log-ratios, on which saving and increase mirror.
    if abs(log1p(-change.saving_share)) < abs(log1p(-change.detectable_share)):
        least = change.detectable_share
        seen = least if change.saving_share >= 0 else least / (1.0 - least)
        yield Reason(
            "BELOW_DETECTABLE",
            f"{change.pairs} pairs that scatter like these show a change of {100 * seen:.1f} % with power "
            f"0.8, and this is one of {100 * abs(change.saving_share):.1f} %",
        )


def _sensitive(evidence: Evidence) -> Iterator[Reason]:
    if not evidence.band:
        if evidence.needs_band:
            unknown = "power is modelled or assumed, and the meter does not state with what watts"
            yield Reason("BAND_UNKNOWN", unknown)
        return
    least, most = (pick(evidence.band, key=lambda point: point.saving_share) for pick in (min, max))
    if least.saving_share <= 0 <= most.saving_share:
        yield Reason(
            "SIGN_CHANGES",
            f"power is modelled, and the sign depends on the model: {_percent(least.saving_share)} with "
            f"{least.model}, {_percent(most.saving_share)} with {most.model}",
        )


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")


def in_points(share: float) -> str:
    """Return a difference of shares in percentage points."""
    return f"{100 * share:+.2f} points".replace("-", "−")


def sentence_of(claim: Claim, quality: str = "accuracy") -> str:
    """Return a claim in a sentence: a saving, a cost and a refusal in the same form.

    ``quality`` is what the figure of a model's quality is called.
    """
    subject = (
        f"Training '{claim.arm}'"
        if claim.kind == "training"
        else f"An inference of '{claim.arm}' at batch {claim.batch}"
    )
    refusal = REFUSALS.get(claim.standing)
    if refusal is not None:
        seen = "" if claim.change is None else f" Seen: {_words(claim.change)}."
        return f"{subject}: no claim against '{claim.baseline}', {refusal.format(quality=quality)}.{seen}"
    assert claim.change is not None, "what stands has a change"
    simulated = "simulated: " if str(claim.standing).endswith("SIMULATED") else ""
    told = f"{subject} took {simulated}{_words(claim.change)} than '{claim.baseline}'"
    if claim.kind == "training" and claim.arm in OPPOSED and claim.change.saving_share > 0:
        opponents = "no shorter schedule and no smaller net from scratch does"
        if claim.arm == "family":
            opponents = "no shorter trainings of its shapes do"
        elif claim.arm in FROZEN:
            opponents = "no shorter fine-tuning does"
        told += f", and {opponents} as well"
    return f"{told}."


def _words(change: Change) -> str:
    """Return the change in words.

    >>> from dataclasses import replace
    >>> half = Change(saving_share=0.5, low=0.4, high=0.6, pairs=6, deviation=0.1,
    ...               p_t=0.0, p_sign_flip=0.03, detectable_share=0.1, arithmetic_share=0.5)
    >>> _words(half)
    '50 % less energy (95 % interval 40 to 60 % less, 6 pairs)'
    >>> _words(replace(half, saving_share=-0.02, low=-0.04, high=0.01))
    '2.0 % more energy (95 % interval 4.0 % more to 1.0 % less, 6 pairs)'
    """
    ends = sorted((change.low, change.high), key=abs)
    if change.low * change.high >= 0:
        interval = f"{_number(ends[0])} to {_less(ends[1])}"
    else:
        interval = f"{_less(change.low)} to {_less(change.high)}"
    sides = _less(change.saving_share)
    return f"{sides} energy (95 % interval {interval}, {change.pairs} pairs)"


def _less(saving_share: float) -> str:
    return f"{_number(saving_share)} % {'less' if saving_share >= 0 else 'more'}"


def _number(saving_share: float) -> str:
    size = 100 * abs(saving_share)
    return f"{size:,.{0 if size >= 10 else 1}f}"


def may_claim(claims: Sequence[Claim], grade: Grade) -> tuple[str, ...]:
    """Return the sentences that stand; a cost is one of them as much as a saving."""
    measured = "as metered at the wall" if grade.letter == "A" else "as measured by hardware counters"
    sentences = []
    for claim in claims:
        if claim.standing.is_saving or _is_cost(claim):
            is_measured = str(claim.standing).endswith("MEASURED")
            how = measured if is_measured else "as modelled, on this machine"
            sentences.append(f"{claim.statement.removesuffix('.')}, {how}.")
    return tuple(sentences)


def _is_cost(claim: Claim) -> bool:
    return str(claim.standing).startswith("COST_INCREASE") and not str(claim.standing).endswith("SIMULATED")


def may_not_claim(claims: Sequence[Claim], grade: Grade, comparison: ComparisonRecord) -> tuple[str, ...]:
    """Return what may not be claimed, whatever the figures are."""
    sentences = [sentence for letters, sentence in GRADE_LIMITS if grade.letter in letters]
    if comparison.looks > 1:
        sentences.append(
            f"What a single look would allow: {comparison.pairs_asked} pairs were requested in place of "
            f"{comparison.design.pairs} after results could be seen, so claims are tested more strictly, "
            f"at {comparison.design.alpha / comparison.looks:.3g}."
        )
    if given_up := sum(not (each.windows or each.why) for each in comparison.broken_off):
        sentences.append(
            "That no run was given up for its result: of those begun, nothing was recorded of "
            f"{given_up} but the beginning."
        )
    if comparison.choices.grid is None:
        sentences.append("Any figure of CO₂: no grid was chosen (--country, or --carbon-intensity).")
    if not any(claim.kind == "inference" for claim in claims):
        sentences.append("Anything about the energy of inference: none was metered.")
    if any(not (claim.standing.is_saving or _is_cost(claim)) for claim in claims):
        sentences.append("Any change that stands under 'no claim', whichever way it points.")
    left_out = list(dict.fromkeys(part for run in comparison.runs for part in run.method.excluded))
    sentences.append(
        "Anything about other machines, data, models or schedules, or about what is left out: "
        + ", ".join([*left_out, "what a process does only once", "finding the recipe"])
        + "."
    )
    return tuple(sentences)
