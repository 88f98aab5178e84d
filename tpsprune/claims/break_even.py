"""After how many answers a training has paid back what it took more, and when that is never."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from math import isnan

from tpsprune.numerics.small_samples import fieller
from tpsprune.records import BreakEven

__all__ = ["Ledger", "break_even"]

Ledger = tuple[float, float]
"""Joules of the arm and of its baseline in one pair."""


def break_even(
    *,
    arm: str,
    batch: int,
    trainings: Sequence[Ledger],
    answers: Sequence[Ledger],
    per_day: float | None,
    energy_class: str,
    refused: str = "",
) -> BreakEven:
    """Return N* = mean(E_arm − E_baseline) / mean(e_baseline − e_arm) with Fieller's 95 % interval.

    E is what a whole training took, e what one answer takes, both of the same pairs. All three numbers are at
    least 0: a training that took less beyond doubt has paid back before the first answer. Where an answer is
    not cheaper beyond doubt (its 95 % interval includes zero) there is no such number, and where a claim that
    it rests on was ``refused`` neither; the reason says so. It does not see what serving takes beside the
    model: loading, waiting, the network.
    """
    extra = [mine - other for mine, other in trainings]
    saved = [other - mine for mine, other in answers]
    known = BreakEven(
        arm=arm,
        batch=batch,
        extra_joules=statistics.fmean(extra) if extra else None,
        saved_joules=statistics.fmean(saved) if saved else None,
        inferences=None,
        low=None,
        high=None,
        per_day=per_day,
        days=None,
        reason="",
        energy_class=energy_class,
    )
    return replace(known, reason=refused) if refused else _with_number(known, extra, saved)


def _with_number(known: BreakEven, extra: Sequence[float], saved: Sequence[float]) -> BreakEven:
    if len(extra) < 2:
        return replace(known, reason="fewer than two pairs have both a training and answers metered")
    bounds = fieller(extra, saved)
    if isnan(bounds.ratio):
        return replace(known, reason=_never(known))
    number, low, high = (max(value, 0.0) for value in (bounds.ratio, bounds.low, bounds.high))
    days = None if known.per_day is None else number / known.per_day
    reason = "the training took less than the baseline's beyond doubt: paid back before the first answer"
    return replace(
        known, inferences=number, low=low, high=high, days=days, reason=reason if high == 0 else ""
    )


def _never(known: BreakEven) -> str:
    assert known.extra_joules is not None
    assert known.saved_joules is not None
    if known.saved_joules > 0:
        return "an answer is not cheaper beyond doubt: the 95 % interval of what it saves includes zero"
    if known.extra_joules > 0:
        return "an answer is no cheaper and the training took more: it never pays back"
    return "an answer is no cheaper; what the training saved is used up by answers, if they cost more"
