"""The middle of a report: the plots, each with the table that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping

from tpsprune.records import Claim, PhaseMean, Savings, Support
from tpsprune.report import words
from tpsprune.report.savings_blocks import (
    COUNTED,
    DERIVED,
    MEASURED,
    Block,
    Cell,
    Picture,
    Section,
    Table,
    Tagged,
    chosen,
    counted,
    measured,
    name,
    says,
    table,
)
from tpsprune.report.savings_pay_back import pay_back_table
from tpsprune.report.savings_plot import claim_name, couples_of, joined
from tpsprune.report.savings_words import (
    capital,
    class_of,
    in_words,
    interval_of,
    saving_of,
    standing_words_of,
)

__all__ = ["evidence_sections"]

_BY_THE_CLOCK = {"time", "CPU-seconds"}
"""What a clock measured of what speaks for a claim; the rest was counted."""


def evidence_sections(
    savings: Savings, pictures: Mapping[str, Picture], left_out: tuple[str, ...]
) -> tuple[Section, ...]:
    """Return the sections about the pairs, the claims, the phases, the course, pay-back, accuracy, models."""
    quality = savings.comparison.design.quality
    tables: tuple[tuple[str, str, list[Table]], ...] = (
        ("pairs", "Pair by pair", _pairs(savings)),
        ("claims", "Every claim", [_claims(savings), *_support(savings)]),
        ("phases", "Where the energy goes", [_ledger(savings)]),
        ("course", "Over the epochs", []),
        ("break_even", "When it pays back", pay_back_table(savings)),
        ("accuracy", f"{capital(quality)} beside energy", _accuracies(savings)),
        ("models", "Other power models", _band(savings)),
    )
    sections = []
    for stem, title, shown in tables:
        blocks: list[Block] = [pictures[stem]] if stem in pictures else []
        if blocks or shown:
            sections.append(Section(f"see-{stem}", title, (*blocks, *shown)))
    if left_out:
        sections.append(Section("left-out", "Not drawn", tuple(says(each) for each in left_out)))
    return tuple(sections)


def _pairs(savings: Savings) -> list[Table]:
    """Return a row for each counted pair of each training claim: what the plot shows, to be read off."""
    rows: list[tuple[Cell, ...]] = []
    for claim in (claim for claim in savings.claims if claim.kind == "training"):
        for other, mine in couples_of(savings, claim):
            kinds = [class_of(savings, run.energy_class) for run in (other, mine)]
            saved = 1 - (mine.joules or 0.0) / other.joules if other.joules else None
            rows.append(
                (
                    (name(claim.arm), " beside ", name(claim.baseline)),
                    counted(mine.pair),
                    counted(mine.seed),
                    Tagged(words.joules(other.joules), kinds[0]),
                    Tagged(words.joules(mine.joules), kinds[1]),
                    Tagged("–" if saved is None else words.change(saved), joined(kinds)),
                )
            )
    headings = ("arms", "pair", "seed", "baseline", "arm", "change")
    caption = says("Energy of each training, pair by pair; only pairs that count.")
    return [table(caption, headings, rows)] if rows else []


def _claims(savings: Savings) -> Table:
    def row(claim: Claim) -> tuple[Cell, ...]:
        kind = class_of(savings, claim.energy_class)
        change = claim.change
        return (
            (name(claim_name(claim)), " beside ", name(claim.baseline)),
            standing_words_of(claim, savings.comparison.design.quality),
            Tagged(in_words(claim, claim.joules), kind),
            Tagged(in_words(claim, claim.baseline_joules), kind),
            saving_of(change, kind),
            interval_of(change, kind),
            saving_of(claim.idle_subtracted, kind),
            interval_of(claim.idle_subtracted, kind),
            Tagged(words.probability(change.p_t if change else None), DERIVED),
            Tagged(words.probability(change.p_holm if change else None), DERIVED),
            Tagged(words.probability(change.p_sign_flip if change else None), DERIVED),
            counted(change.pairs if change else 0),
            Tagged(words.percent(change.detectable_share) if change else "–", kind),
        )

    caption = says(
        "All claims, the first one fixed beforehand. Means over counted pairs; the interval (",
        chosen("95 %"),
        ") is that of the paired log-ratios. The total decides; with the idle machine taken off both sides "
        "it stands beside, for information. Detectable: the least saving that so many pairs show with power ",
        chosen("0.8"),
        ".",
    )
    headings = (
        "claim",
        "standing",
        "energy",
        "baseline",
        "change",
        "interval",
        "change, idle subtracted",
        "its interval",
        "p, paired t",
        "p, Holm",
        "p, sign flips",
        "pairs",
        "detectable",
    )
    return table(caption, headings, [row(claim) for claim in savings.claims], texts=2)


def _support(savings: Savings) -> list[Table]:
    witnesses = list(dict.fromkeys(each.what for claim in savings.claims for each in claim.support))
    rows: list[tuple[Cell, ...]] = []
    for claim in savings.claims:
        said = {each.what: each for each in claim.support}
        if said:
            heard = [_said(said[what]) if what in said else "–" for what in witnesses]
            rows.append((name(claim_name(claim)), *heard))
    caption = says("What speaks for a claim or against it without any model of power.")
    return [table(caption, ("claim", *witnesses), rows)] if rows else []


def _said(support: Support) -> Cell:
    kind = MEASURED if support.what in _BY_THE_CLOCK else COUNTED
    return (
        Tagged(words.change(support.saving_share), kind),
        ", agrees" if support.agrees else ", does not agree",
    )


def _ledger(savings: Savings) -> Table:
    """Return a row for each arm: the sum, then every phase; times as sums, by phase they are in the file."""
    phases = list(dict.fromkeys(each.phase for each in savings.ledger))
    rows: list[tuple[Cell, ...]] = []
    for arm in dict.fromkeys(each.arm for each in savings.ledger):
        mine = {each.phase: each for each in savings.ledger if each.arm == arm}
        known = [each.joules for each in mine.values() if each.joules is not None]
        kinds = {class_of(savings, each.energy_class) for each in mine.values()}
        kind = kinds.pop() if len(kinds) == 1 else class_of(savings, savings.verdict.energy_class)
        rows.append(
            (
                name(arm),
                Tagged(words.joules(sum(known) if known else None), kind),
                *(_phase(savings, mine.get(phase)) for phase in phases),
                measured(words.seconds(sum(each.seconds for each in mine.values()))),
                measured(words.seconds(sum(each.cpu_seconds for each in mine.values()))),
            )
        )
    caption = says("Means over the counted runs of each arm; a dash where an arm has no such phase.")
    return table(caption, ("arm", "energy in all", *phases, "time", "CPU time"), rows)


def _phase(savings: Savings, phase: PhaseMean | None) -> Cell:
    if phase is None:
        return "–"
    return Tagged(words.joules(phase.joules), class_of(savings, phase.energy_class))


def _accuracies(savings: Savings) -> list[Table]:
    rows: list[tuple[Cell, ...]] = [
        (
            (name(each.arm), " beside ", name(each.baseline)),
            "yes" if each.preserved else "not shown",
            Tagged(f"{each.mean:.4f}", COUNTED),
            Tagged(f"{each.baseline_mean:.4f}", COUNTED),
            Tagged(words.points(each.difference_share), COUNTED),
            Tagged("–" if each.lower_share is None else words.points(each.lower_share), DERIVED),
            chosen(f"{each.tolerance_share * 100:.2f} points"),
            counted(each.pairs),
        )
        for each in savings.accuracies
    ]
    quality = savings.comparison.design.quality
    headings = ("arms", "kept", quality, "baseline", "difference", "at worst", "tolerance", "pairs")
    caption = says(
        f"Test {quality}, read once for each run; at worst is the one-sided lower bound (",
        chosen("95 %"),
        ") of the paired difference, held against the tolerance. The bound covers seeds only, not the size "
        "of the test split.",
    )
    return [table(caption, headings, rows, texts=2)] if rows else []


def _band(savings: Savings) -> list[Table]:
    """Return the least and the greatest saving of each claim over the power models."""
    rows: list[tuple[Cell, ...]] = []
    for claim in savings.claims:
        if claim.band:
            least = min(claim.band, key=lambda point: point.saving_share)
            most = max(claim.band, key=lambda point: point.saving_share)
            rows.append(
                (
                    name(claim_name(claim)),
                    name(least.model),
                    name(most.model),
                    Tagged(words.change(least.saving_share), "modelled"),
                    Tagged(words.change(most.saving_share), "modelled"),
                    counted(len(claim.band)),
                )
            )
    headings = ("claim", "least under", "most under", "least", "most", "models")
    return [table(says("The range of each claim over all models."), headings, rows, texts=3)] if rows else []
