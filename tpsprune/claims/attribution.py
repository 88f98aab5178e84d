"""Where a change came from: arm after arm, each differing from the next in one thing."""

from __future__ import annotations

from typing import Final

from tpsprune.claims.change import change_of
from tpsprune.claims.pairs import Counted
from tpsprune.claims.window_sums import joules_of
from tpsprune.records import Step

__all__ = ["attribution_of"]

STEPS: Final = (
    ("dense-stopped", "dense", "stopping by the same rules, watching and TPS included"),
    ("ticket", "dense-stopped", "the smaller net and where it stops, less what cutting it takes"),
    ("dense-patience", "dense", "ordinary early stopping"),
    ("ticket", "dense-patience", "what is left beyond ordinary early stopping"),
    ("ticket", "shape-scratch", "the ticket against its shape from scratch, equal epochs, shape for nothing"),
    ("ticket", "shape-scratch-joules", "the same at equal joules"),
    ("ticket", "random-ticket", "the ticket against units drawn by lot, their number for nothing"),
    ("ticket", "early-bird", "the ticket against one drawn and cut after Early-Bird"),
    ("ticket", "ticket-without-tps", "TPS"),
    ("ticket", "dense", "all of it"),
)


def attribution_of(counted: Counted) -> tuple[Step, ...]:
    """Return the steps whose arms are both there; along a chain the logarithms of (1 − saving) add up.

    Nothing is claimed of a step: the intervals are not corrected for being several. Energy tells half of
    it: each step has the change of accuracy in its detail.
    """
    arms = counted.design.arms
    return tuple(
        _step(counted, arm, baseline, what)
        for arm, baseline, what in STEPS
        if arm in arms and baseline in arms
    )


def _step(counted: Counted, arm: str, baseline: str, what: str) -> Step:
    found = [
        (joules_of(mine.windows), joules_of(other.windows)) for mine, other in counted.couples(arm, baseline)
    ]
    pairs = [(mine, other) for mine, other in found if mine and other]
    windows = tuple(w for couple in counted.couples(arm, baseline) for run in couple for w in run.windows)
    sound = len(pairs) == len(found) and all(window.valid for window in windows)
    accuracy = counted.accuracy_of(arm, baseline)
    if accuracy is None:
        detail = "no pair has both"
    else:
        bound = "" if accuracy.lower_share is None else f", lower bound {100 * accuracy.lower_share:+.2f}"
        change = f"{100 * accuracy.difference_share:+.2f} points{bound}".replace("-", "−")
        detail = f"{counted.design.quality} {change}"
    return Step(
        what=what, arm=arm, baseline=baseline, change=change_of(pairs) if sound else None, detail=detail
    )
