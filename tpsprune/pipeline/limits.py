"""Limits of a family's sizes: which a size breaks, and which size is the largest within."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tpsprune.errors import ArtifactError
from tpsprune.recipe.within import Within
from tpsprune.records import FamilyMember, FamilyResult
from tpsprune.report import words

_WORDS: Final[Mapping[str, Callable[[float], str]]] = {
    "accuracy": lambda found: f"{found:.4f}",
    "latency": words.seconds,
    "size": lambda found: words.bytes_(int(found)),
    "parameters": lambda found: words.count(int(found)),
    "macs": lambda found: words.count(int(found)),
    "joules": words.small_joules,
}
LATENCY_OF: Final = "batch-1"
"""The batch whose latency is limited."""


def broken_limits(within: Sequence[Within], member: FamilyMember, dense: FamilyMember) -> str:
    """Return the limits that a size breaks, with what it has, or an empty text."""
    mine, theirs = _figures(member), _figures(dense)
    broken = [
        f"{each.text} (it has {'no figure' if found is None else _WORDS[each.figure](found)})"
        for each in within
        for found in (mine[each.figure],)
        if not each.holds(mine[each.figure], theirs[each.figure] or 0.0)
    ]
    return "; ".join(broken)


def pick_member(family: FamilyResult, within: Sequence[Within]) -> FamilyMember:
    """Return the largest size within limits, as it was measured when the family was made.

    Raises:
        ArtifactError: there is none; says what the smallest breaks.
    """
    there = [each for each in family.members if not each.refused]
    for member in there:
        if not broken_limits(within, member, family.dense):
            return member
    if not there:
        raise ArtifactError(f"{family.name}: the family holds no size")
    least = there[-1]
    why = broken_limits(within, least, family.dense)
    raise ArtifactError(f"{family.name}: no size is within: the smallest, {least.folder}, breaks {why}")


def _figures(member: FamilyMember) -> dict[str, float | None]:
    figures = member.figures
    return {
        "accuracy": member.validation_accuracy,
        "latency": figures.latency_seconds[LATENCY_OF].median_seconds,
        "size": float(figures.bytes),
        "parameters": float(figures.parameters),
        "macs": float(figures.macs),
        "joules": member.joules_per_answer,
    }
