"""The ladder of refusals: a claim is what is left when no rung turns it down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log1p
from typing import Final

from tpsprune.records import Accuracy, BandPoint, Change, Reason, Standing

__all__ = ["FEWEST_PAIRS", "Evidence", "standing_of"]

FEWEST_PAIRS: Final = 5
Rung = tuple[Standing, list[Reason]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a standing rests on. ``faults`` are of the measurement, ``losses`` of the model's quality.

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
    losses: tuple[Reason, ...] = ()
    quality: str = "accuracy"
    """What ``accuracy`` is called in this task."""


def standing_of(evidence: Evidence) -> tuple[Standing, tuple[Reason, ...]]:
    """Return where the claim stands, and every reason of the rung that decided, or of the claim itself.

    In this order: a broken measurement; fewer than five pairs; accuracy lost, or not shown to be kept; an
    interval with zero in it, a p-value (Student's t corrected for all claims, sign flips) not below α, or
    an effect smaller than these pairs show with power 0.8; a sign that another power model turns round.
    What passes is a saving or, by the same rungs, an increase: ``MEASURED`` at grades A and B.
    """
    for standing, reasons in _rungs(evidence):
        if reasons:
            return standing, tuple(reasons)
    change = evidence.change
    assert change is not None, "without a change there are too few runs"
    kind = {"A": "MEASURED", "B": "MEASURED", "S": "SIMULATED"}.get(evidence.grade, "MODELLED")
    verb = "SAVING" if change.saving_share > 0 else "COST_INCREASE"
    return Standing(f"{verb}_{kind}"), (_passed(change, evidence),)


def _rungs(evidence: Evidence) -> Iterator[Rung]:
    yield Standing.INVALID_MEASUREMENT, list(evidence.faults)
    yield Standing.INSUFFICIENT_RUNS, _too_few(evidence)
    yield Standing.ACCURACY_NOT_PRESERVED, [*evidence.losses, *_accuracy(evidence.accuracy, evidence.quality)]
    yield Standing.WITHIN_NOISE, _noise(evidence)
    yield Standing.MODEL_SENSITIVE, _sensitive(evidence)


def _too_few(evidence: Evidence) -> list[Reason]:
    if evidence.pairs < FEWEST_PAIRS:
        detail = f"{evidence.pairs} pairs are done, and below {FEWEST_PAIRS} nothing is claimed"
        return [Reason("TOO_FEW_PAIRS", detail)]
    if evidence.pairs_ended < evidence.pairs_asked:
        detail = f"{evidence.pairs_ended} of {evidence.pairs_asked} pairs are done: looking early is no test"
        return [Reason("INCOMPLETE", detail)]
    return []


def _accuracy(accuracy: Accuracy | None, quality: str) -> list[Reason]:
    if accuracy is None:
        return [Reason("ACCURACY_UNKNOWN", f"no pair has the test {quality} of both")]
    if accuracy.preserved:
        return []
    bound = "unknown" if accuracy.lower_share is None else _points(accuracy.lower_share)
    return [
        Reason(
            "ACCURACY_BOUND",
            f"test {quality} changed by {_points(accuracy.difference_share)}, with a one-sided 95 % bound of "
            f"{bound}; at most −{100 * accuracy.tolerance_share:g} was fixed beforehand",
        )
    ]


def _noise(evidence: Evidence) -> list[Reason]:
    change, reasons = evidence.change, []
    assert change is not None, "five pairs have a change"
    if change.low <= 0 <= change.high:
        reasons.append(
            Reason(
                "INTERVAL_INCLUDES_ZERO",
                f"the 95 % interval of the saving is {_percent(change.low)} to {_percent(change.high)}",
            )
        )
    if change.p_sign_flip >= evidence.alpha:
        few = "; six pairs are the fewest that can be below 0.05" if change.pairs < FEWEST_PAIRS + 1 else ""
        reasons.append(
            Reason(
                "SIGN_FLIP",
                f"sign flips give p = {change.p_sign_flip:.3f}, not below {evidence.alpha:g}{few}",
            )
        )
    p_value = change.p_t if change.p_holm is None else change.p_holm
    if p_value >= evidence.alpha:
        detail = f"Student's t corrected for all claims gives p = {p_value:.3f}, not below {evidence.alpha:g}"
        reasons.append(Reason("SEVERAL_CLAIMS", detail))
    if _size(change.saving_share) < _size(change.detectable_share):
        reasons.append(
            Reason(
                "BELOW_DETECTABLE",
                f"{change.pairs} pairs that scatter like these show a change of "
                f"{100 * _detectable(change):.1f} % with power 0.8, and this is one of "
                f"{100 * abs(change.saving_share):.1f} %",
            )
        )
    return reasons


def _sensitive(evidence: Evidence) -> list[Reason]:
    band = evidence.band
    if not band:
        unknown = "power is modelled or assumed, and the meter does not tell with what watts"
        return [Reason("BAND_UNKNOWN", unknown)] if evidence.needs_band else []
    least, most = (pick(band, key=lambda point: point.saving_share) for pick in (min, max))
    if not least.saving_share <= 0 <= most.saving_share:
        return []
    return [
        Reason(
            "SIGN_CHANGES",
            f"power is modelled, and the sign hangs on the model: {_percent(least.saving_share)} with "
            f"{least.model}, {_percent(most.saving_share)} with {most.model}",
        )
    ]


def _passed(change: Change, evidence: Evidence) -> Reason:
    return Reason(
        "ALL_RUNGS_HELD",
        f"{change.pairs} pairs, t p = {change.p_t:.2g}, sign-flip p = {change.p_sign_flip:.2g}, "
        f"grade {evidence.grade}",
    )


def _detectable(change: Change) -> float:
    """Return the least change that is seen, on the side where this one lies."""
    saved = change.detectable_share
    return saved if change.saving_share >= 0 else saved / (1.0 - saved)


def _size(saving_share: float) -> float:
    """Return the size of an effect on the scale of log-ratios, on which saving and increase mirror."""
    return abs(log1p(-saving_share))


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points".replace("-", "−")
