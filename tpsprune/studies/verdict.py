"""From an interval to one word, with runs that were stopped early taken for what they are: bounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Bound", "Ruling", "judge"]


class Ruling(StrEnum):
    """What a study says of its prediction."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Bound:
    """Whether true ratios may lie above or below those measured, since runs were stopped before the goal."""

    may_be_larger: bool = False
    may_be_smaller: bool = False

    @property
    def words(self) -> str:
        """Return ``at least``, ``at most``, ``nominally`` (true ratios may lie either way) or nothing.

        >>> Bound(may_be_larger=True).words, Bound().words
        ('at least', '')
        """
        if self.may_be_larger and self.may_be_smaller:
            return "nominally"
        if self.may_be_larger:
            return "at least"
        return "at most" if self.may_be_smaller else ""


def judge(low: float, high: float, threshold: float, bound: Bound) -> Ruling:
    """Return whether a ratio predicted to be ``threshold`` or more is, given its interval.

    Confirmed: the whole interval is at or above the threshold. Refuted: the whole interval is below it.
    Undecided: it lies on both sides, or on one side only because runs were stopped: an interval of lower
    bounds cannot refute, since the mean of the true ratios is at least theirs, and one of upper bounds cannot
    confirm.

    >>> judge(2.1, 3.0, 2.0, Bound()).value
    'confirmed'
    """
    if low >= threshold and not bound.may_be_smaller:
        return Ruling.CONFIRMED
    if high < threshold and not bound.may_be_larger:
        return Ruling.REFUTED
    return Ruling.UNDECIDED
