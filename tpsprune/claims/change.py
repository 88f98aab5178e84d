"""How much less an arm took than its baseline, over pairs, with everything that says how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, log

from tpsprune.numerics.small_samples import detectable_effect, holm, mean_interval, sign_flip_p, t_p
from tpsprune.records import Change

__all__ = ["change_of", "corrected", "log_ratios", "saving"]

Pairs = Sequence[tuple[float, float]]
"""What the arm took, and its baseline in the same pair; both above zero."""


def change_of(pairs: Pairs, alpha: float = 0.05) -> Change | None:
    """Return the saving 1 − exp(mean of d), d = ln(arm / baseline), with its t-interval and tests.

    Swapping arm and baseline mirrors it: ln(1 − saving) changes sign. A unit common to both drops out.
    It sees neither the order of pairs nor windows within a run: those are no repetitions.

    Returns:
        ``None`` below two pairs: one has no deviation.
    """
    if len(pairs) < 2:
        return None
    logs = log_ratios(pairs)
    interval = mean_interval(logs, 1.0 - alpha)
    deviation = statistics.stdev(logs)
    return Change(
        saving_share=1.0 - exp(interval.mean),
        low=1.0 - exp(interval.high),
        high=1.0 - exp(interval.low),
        pairs=len(pairs),
        deviation=deviation,
        p_t=t_p(logs),
        p_sign_flip=sign_flip_p(logs),
        detectable_share=1.0 - exp(-detectable_effect(deviation, len(pairs), alpha)),
    )


def log_ratios(pairs: Pairs) -> list[float]:
    """Return ln(arm / baseline) of each pair."""
    return [log(arm / baseline) for arm, baseline in pairs]


def saving(pairs: Pairs) -> float:
    """Return the geometric mean saving alone: 1 − exp(mean of ln(arm / baseline)).

    >>> round(saving([(1.0, 2.0), (2.0, 4.0)]), 12)
    0.5
    """
    return 1.0 - exp(statistics.fmean(log_ratios(pairs)))


def corrected(changes: Mapping[str, Change | None]) -> dict[str, Change | None]:
    """Return the changes with ``p_holm``: their t-tests corrected for one another."""
    adjusted = holm({name: change.p_t for name, change in changes.items() if change is not None})
    return {
        name: None if change is None else replace(change, p_holm=adjusted[name])
        for name, change in changes.items()
    }
