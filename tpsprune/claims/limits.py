"""What a report lets its reader say, and what it does not, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from tpsprune.records import Claim, ComparisonRecord, Grade

__all__ = ["may_claim", "may_not_claim"]


def may_claim(claims: Sequence[Claim], grade: Grade) -> tuple[str, ...]:
    """Return the sentences that stand; a cost is one of them as much as a saving."""
    standing = [claim for claim in claims if claim.standing.is_saving or _is_cost(claim)]
    return tuple(f"{claim.statement.removesuffix('.')}, {_how(claim, grade)}." for claim in standing)


def _how(claim: Claim, grade: Grade) -> str:
    if not str(claim.standing).endswith("MEASURED"):
        return "as modelled, on this machine"
    return "as metered at the wall" if grade.letter == "A" else "as measured by hardware counters"


def _is_cost(claim: Claim) -> bool:
    return str(claim.standing).startswith("COST_INCREASE") and not str(claim.standing).endswith("SIMULATED")


def may_not_claim(claims: Sequence[Claim], grade: Grade, comparison: ComparisonRecord) -> tuple[str, ...]:
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
    if grade.letter == "-":
        sentences.append("Anything of energy: none was metered.")
    if comparison.looks > 1:
        sentences.append(
            f"What one look would allow: {comparison.pairs_asked} pairs were asked for in place of "
            f"{comparison.design.pairs} after some could be looked at, so claims are tested more strictly, "
            f"at {comparison.design.alpha / comparison.looks:.3g}."
        )
    if given_up := sum(not (each.windows or each.why) for each in comparison.broken_off):
        sentences.append(
            "That no run was given up for how it went: of those begun, nothing was written down of "
            f"{given_up} but the beginning."
        )
    if comparison.choices.grid is None:
        sentences.append("Any figure of CO₂: no grid was chosen (--country, or --carbon-intensity).")
    if not any(claim.kind == "inference" for claim in claims):
        sentences.append("Anything about the energy of answers: none was metered.")
    if any(not (claim.standing.is_saving or _is_cost(claim)) for claim in claims):
        sentences.append("Any change that stands under 'no claim', whichever way it points.")
    left_out = list(dict.fromkeys(part for run in comparison.runs for part in run.method.excluded))
    sentences.append(
        "Anything about other machines, data, models or schedules, or about what is left out: "
        + ", ".join([*left_out, "what a process does only once", "finding the recipe"])
        + "."
    )
    return tuple(sentences)
