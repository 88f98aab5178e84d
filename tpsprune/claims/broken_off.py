"""Runs that were begun and broken off: what they took, and when they leave no claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from tpsprune.claims.pairs import CountedPairs
from tpsprune.records import BrokenOff, Reason, joules_of, seconds_of

MOST_BROKEN_OFF: Final = 1


def broken_off_of(counted: CountedPairs, arm: str) -> tuple[Reason, ...]:
    """Return why runs that were broken off leave no claim about an arm, if they do.

    A run that is begun again because it went badly makes its arm look better than it is. Warm-ups and pairs
    set aside by the meter do not count: no result decides on them. A run still under way does not either:
    its pair is not complete.
    """
    found = [each for each in counted.comparison.broken_off if each.pair is not None and not each.why]
    if not are_too_many(Counter(each.arm for each in found), arm, counted.design.baseline):
        return ()
    named = "; ".join(f"'{each.arm}', seed {each.seed} ({what_it_took(each)})" for each in found)
    return (
        Reason(
            "RUNS_BROKEN_OFF",
            f"{len(found)} runs were begun and broken off, and so might be chosen by their results: {named}. "
            f"A claim bears {MOST_BROKEN_OFF} at most; use another folder for a comparison without",
        ),
    )


def are_too_many(broken_off: Mapping[str, int], arm: str, baseline: str) -> bool:
    """Return whether so many runs broken off, by arm, leave no claim of ``arm`` against ``baseline``.

    More than one of any arm, or more than one of these two together. One costly run begun again raises false
    claims from 1.6 to 2.8 % at six pairs, up to three restarts of each run to 8 %, and to 19 % at twelve
    (``reports/claims.md``).

    >>> are_too_many({"ticket": 1, "half-width": 1}, "ticket", "dense")
    False
    >>> are_too_many({"ticket": 1, "dense": 1}, "ticket", "dense")
    True
    """
    of_claim = broken_off.get(arm, 0) + broken_off.get(baseline, 0)
    return max(of_claim, *broken_off.values(), 0) > MOST_BROKEN_OFF


def what_it_took(each: BrokenOff) -> str:
    """Return what a run took before it was broken off, in words: a window that was open then is lost."""
    if not each.windows:
        return "what it took is not known"
    joules = joules_of(each.windows)
    energy = "energy not known" if joules is None else f"{joules:,.1f} J"
    return f"at least {seconds_of(each.windows):,.1f} s, {energy}"
