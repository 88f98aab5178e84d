"""What a report lets its reader say, and what it does not, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from tpsprune.records import Claim, Comparison, Grade

__all__ = ["may_claim", "may_not_claim"]


def may_claim(claims: Sequence[Claim], grade: Grade) -> tuple[str, ...]:
    """Return the sentences that stand; a cost is one of them as much as a saving."""
    standing = [claim for claim in claims if claim.standing.is_saving or _is_cost(claim)]
    how = {"A": "as metered at the wall", "B": "as measured by hardware counters"}.get(
        grade.letter, "as modelled, on this machine"
    )
    return tuple(f"{claim.statement.removesuffix('.')}, {how}." for claim in standing)


def _is_cost(claim: Claim) -> bool:
    return str(claim.standing).startswith("COST_INCREASE") and not str(claim.standing).endswith("SIMULATED")


def may_not_claim(claims: Sequence[Claim], grade: Grade, comparison: Comparison) -> tuple[str, ...]:
    """Return what does not follow, however the figures look."""
    sentences = []
    if grade.letter in "DE":
        sentences.append("That any energy was measured: power is assumed, and time is what differs.")
    if grade.letter == "E":
        sentences.append("More than a saving of time: most joules are assumed watts times seconds.")
    if grade.letter == "C":
        sentences.append("That all of it was measured: a part is modelled or assumed.")
    if grade.letter == "S":
        sentences.append("Anything: the meter was simulated.")
    if comparison.choices.grid is None:
        sentences.append("Any figure of CO₂: no grid was chosen (--country, or --carbon-intensity).")
    if not any(claim.kind == "inference" for claim in claims):
        sentences.append("Anything about the energy of answers: none was metered.")
    if any(not (claim.standing.is_saving or _is_cost(claim)) for claim in claims):
        sentences.append("Any change that stands under 'no claim', whichever way it points.")
    sentences.append(
        "Anything about other machines, data, models or schedules, or about what is left out: disk, network, "
        "losses of the power supply, cooling, making the machine, and finding the recipe."
    )
    return tuple(sentences)
