"""The top of a report: verdict, three numbers, what it shows and what not, where a change comes from."""

from __future__ import annotations

from typing import Final

from tpsprune.records import Accuracy, Claim, Savings, Standing
from tpsprune.report import words
from tpsprune.report.savings_blocks import (
    COUNTED,
    DERIVED,
    Banner,
    Block,
    Cell,
    Code,
    Headline,
    Headlines,
    Inline,
    Paragraph,
    Section,
    Tagged,
    bullets,
    chosen,
    counted,
    name,
    says,
    table,
)
from tpsprune.report.savings_plot import joined
from tpsprune.report.savings_words import (
    accuracy_of,
    answer_of,
    badge_of,
    class_of,
    in_words,
    interval_of,
    saving_of,
    standing_words,
    standing_words_of,
    step_class,
    tone_of,
    training_of,
)

__all__ = ["attribution_section", "headlines", "lead", "shows_section", "verdict_section"]

REASON_CLASSES: Final = {
    **dict.fromkeys(("TOO_FEW_PAIRS", "INCOMPLETE", "NOT_LEARNED", "RUN_FAILED"), COUNTED),
    **dict.fromkeys(("ACCURACY_BOUND", "ACCURACY_UNKNOWN", "SIGN_FLIP", "SEVERAL_CLAIMS"), DERIVED),
}
"""Of the numbers in a reason, where they are not of joules."""


def lead(savings: Savings) -> Paragraph:
    """Return what was compared, before anything is said of it."""
    design = savings.comparison.design
    counts = {run.pair for run in savings.runs if run.counted and run.arm == savings.verdict.arm}
    parts: list[Inline] = [
        "Energy of ",
        name(savings.verdict.arm),
        " beside ",
        name(savings.verdict.baseline),
        " on ",
        name(design.device),
        ": ",
        counted(len(counts)),
        " of ",
        chosen(savings.comparison.pairs_asked or design.pairs),
        " pairs count, seeds from ",
        chosen(design.first_seed),
        ". Begun ",
        name(_moment(design.begun)),
        ".",
    ]
    if not savings.complete:
        parts += [" Not complete: ", name(savings.comparison.under_way or "pairs are missing"), "."]
    return Paragraph(tuple(parts))


def _moment(written: str) -> str:
    """Return a moment without its seconds.

    >>> _moment("2026-01-02T03:04:05+00:00"), _moment("yesterday")
    ('2026-01-02 03:04 UTC', 'yesterday')
    """
    if not written.endswith(("+00:00", "Z")):
        return written
    return f"{written[:16].replace('T', ' ')} UTC"


def verdict_section(savings: Savings) -> Section:
    """Return the verdict and the three numbers."""
    verdict, grade = savings.verdict, savings.grade
    shares = ", ".join(
        f"{words.percent(part)} {kind}"
        for kind, part in (
            ("measured", grade.measured_share),
            ("modelled", grade.modelled_share),
            ("constant", grade.constant_share),
        )
    )
    kind = class_of(savings, verdict.energy_class)
    banner = Banner(
        tone=tone_of(verdict.standing),
        words=standing_words(verdict.standing, savings.comparison.design.quality),
        code=verdict.standing.value,
        statement=Tagged(verdict.statement, kind),
        grade=badge_of(grade.letter),
        grade_meaning=Tagged(
            grade.meaning if grade.letter == "-" else f"{grade.meaning}; of all joules {shares}",
            joined(class_of(savings, run.energy_class) for run in savings.runs),
        ),
    )
    return Section("verdict", "Verdict", (banner, Headlines(headlines(savings))))


def headlines(savings: Savings) -> tuple[Headline, ...]:
    """Return the three numbers: energy of a training, energy of an answer, accuracy."""
    training, answer, accuracy = training_of(savings), answer_of(savings), accuracy_of(savings)
    shown = [_energy(savings, training, "Energy of a training")]
    if answer is None:
        shown.append(_missing("Energy of an answer", "not measured", "No inference was metered."))
    else:
        shown.append(_energy(savings, answer, "Energy of an answer"))
    quality = savings.comparison.design.quality
    title = f"Test {quality}"
    if accuracy is None:
        shown.append(_missing(title, "not known", f"No pair has the {quality} of both."))
    else:
        shown.append(_accuracy(accuracy, title))
    return tuple(shown)


def _energy(savings: Savings, claim: Claim, title: str) -> Headline:
    kind = class_of(savings, claim.energy_class)
    notes: list[Inline] = []
    if claim.joules is not None and claim.baseline_joules is not None:
        mine, other = in_words(claim, claim.joules), in_words(claim, claim.baseline_joules)
        bill = f" ({words.watt_hours(claim.joules)})" if claim.kind == "training" else ""
        notes += [Tagged(f"{mine}{bill} in place of {other}", kind), ". "]
    if claim.batch is not None:
        notes += ["In batches of ", chosen(claim.batch), ". "]
    tone = tone_of(claim.standing)
    if tone == "refused":
        notes += [f"No claim: {standing_words_of(claim, savings.comparison.design.quality)}."]
    bounds = interval_of(claim.change, kind)
    interval = bounds if claim.change is None else Tagged(f"95 % interval: {bounds.text}", kind)
    return Headline(
        title, saving_of(claim.change, kind), interval, tuple(notes), "neutral" if tone == "refused" else tone
    )


def _accuracy(accuracy: Accuracy, title: str) -> Headline:
    lower = (
        "no bound from a single pair"
        if accuracy.lower_share is None
        else f"at worst {words.points(accuracy.lower_share)} (one-sided 95 %)"
    )
    kept = "Shown to be kept" if accuracy.preserved else "Not shown to be kept"
    return Headline(
        title,
        Tagged(words.points(accuracy.difference_share), COUNTED),
        Tagged(lower, DERIVED),
        (
            Tagged(f"{accuracy.mean:.4f} beside {accuracy.baseline_mean:.4f}", COUNTED),
            f". {kept}: the tolerance is ",
            chosen(f"{accuracy.tolerance_share * 100:.2f} points"),
            ". The bound covers seeds only, not the size of the test split.",
        ),
        "neutral",
    )


def _missing(title: str, figure: str, why: str) -> Headline:
    return Headline(title, Tagged(figure, "none"), Tagged("", "none"), (why,), "neutral")


def shows_section(savings: Savings) -> Section:
    """Return what may be claimed, what may not, and the reasons of the verdict."""
    verdict = savings.verdict
    kind = class_of(savings, verdict.energy_class)
    # Without joules the figures in a reason are those of windows and pairs.
    of_energy = COUNTED if kind == "none" else kind
    may = [says(each, number_class=kind) for each in savings.may_claim] or [
        says("Nothing of a saving of energy. A refusal is a result too, and is shown as large as one.")
        if verdict.standing not in {Standing.COST_INCREASE_MEASURED, Standing.COST_INCREASE_MODELLED}
        else says("No saving: the arm took more energy than its baseline.")
    ]
    may_not = [says(each, number_class=kind) for each in savings.may_not_claim]
    reasons = [
        Paragraph(
            (Code(reason.code), f" {reason.detail}"),
            number_class=REASON_CLASSES.get(reason.code, of_energy),
        )
        for reason in verdict.reasons
    ]
    blocks: list[Block] = [bullets("What may be claimed", may)]
    if may_not:
        blocks.append(bullets("What may not be claimed", may_not))
    if reasons:
        blocks.append(bullets("Reasons for the verdict", reasons))
    return Section("shows", "What this shows and what not", tuple(blocks))


def attribution_section(savings: Savings) -> Section:
    """Return how much comes from stopping and how much from the smaller net, step by step."""
    if not savings.attribution:
        nothing = says("No arms were run that tell stopping earlier and the smaller net apart.")
        return Section("attribution", "Where the change comes from", (nothing,))
    rows: list[tuple[Cell, ...]] = []
    for step in savings.attribution:
        kind = step_class(savings, step)
        rows.append(
            (
                name(step.what),
                (name(step.arm), " beside ", name(step.baseline)),
                Tagged(step.detail or "–", DERIVED),
                saving_of(step.change, kind),
                interval_of(step.change, kind),
            )
        )
    caption = says(
        "Each step changes one thing: arms differ by what the row names. Changes multiply, they do not add "
        "up. No step is claimed: the intervals (",
        chosen("95 %"),
        ") are not corrected for being several.",
    )
    shown = table(caption, ("step", "arms", "note", "energy of a training", "interval"), rows, texts=3)
    return Section("attribution", "Where the change comes from", (shown,))
