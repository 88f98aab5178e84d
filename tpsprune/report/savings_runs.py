"""The end of a report: every run, how many more would be needed, and how to do it again."""

from __future__ import annotations

from tpsprune.records import BrokenOff, RunLine, Savings
from tpsprune.report import words
from tpsprune.report.savings_blocks import (
    CHOSEN,
    COUNTED,
    MEASURED,
    Block,
    Cell,
    Code,
    Listing,
    Paragraph,
    Section,
    Table,
    Tagged,
    bullets,
    counted,
    measured,
    name,
    says,
    table,
)
from tpsprune.report.savings_plot import class_of_windows, energy_class
from tpsprune.report.savings_words import class_of

__all__ = ["needed_section", "needed_words", "reproduce_section", "runs_section"]

_ENDINGS = {"deadline": "the schedule", "budget": "the budget"}
"""What a reader calls an ending that no rule brought about."""


def runs_section(savings: Savings) -> Section:
    """Return the table of runs in the order they were made, counted or not, and what they had to say."""
    lines = [(run.position, _row(savings, run)) for run in savings.runs]
    lines += [(each.position, _broken_row(savings, each)) for each in savings.comparison.broken_off]
    headings = [
        "run",
        "counts",
        "ended by",
        "order",
        "pair",
        "energy",
        "time",
        "CPU time",
        savings.comparison.design.quality,
        "epochs",
        "MACs",
        "parameters",
    ]
    if _with_grams(savings):
        headings.append("CO₂")
    caption = says("Every run that was begun, in the order it was made.")
    rows = [row for _, row in sorted(lines, key=lambda line: line[0])]
    blocks: list[Block] = [table(caption, headings, rows, texts=3)]
    notes = [
        Paragraph((name(f"{run.arm}, seed {run.seed}"), f": {note}"), number_class=COUNTED)
        for run in savings.comparison.runs
        for note in (
            *([f"was given {run.given}"] if run.given else []),
            *([f"failed: {run.failure}"] if run.failure else []),
            *run.notes,
        )
    ]
    if notes:
        blocks.append(bullets("What runs had to say", notes))
    return Section("runs", "Every run", tuple(blocks))


def _row(savings: Savings, run: RunLine) -> tuple[Cell, ...]:
    kind = class_of(savings, run.energy_class)
    cells: list[Cell] = [
        name(f"{run.arm}, seed {run.seed}"),
        "yes" if run.counted else ("no: ", Tagged(run.why_not, MEASURED)),
        Tagged(_ENDINGS.get(run.stopped_by, run.stopped_by) or "–", CHOSEN),
        counted(run.position),
        counted(run.pair),
        Tagged(words.joules(run.joules), kind),
        measured(words.seconds(run.seconds)),
        measured(words.seconds(run.cpu_seconds)),
        Tagged("–" if run.accuracy is None else f"{run.accuracy:.4f}", COUNTED),
        Tagged("–" if run.epochs is None else f"{run.epochs:g}", COUNTED),
        _count(run.macs),
        _count(run.parameters),
    ]
    if _with_grams(savings):
        cells.append(Tagged(words.grams(run.grams_co2), f"{kind} + chosen"))
    return tuple(cells)


def _broken_row(savings: Savings, each: BrokenOff) -> tuple[Cell, ...]:
    joules = [window.total_joules for window in each.windows]
    known = [value for value in joules if value is not None]
    spent: tuple[Cell, ...] = (
        Tagged(words.joules(sum(known) if known else None), class_of_windows(each.windows)),
        measured(words.seconds(sum(window.seconds for window in each.windows))),
        measured(words.seconds(sum(window.cpu_seconds for window in each.windows))),
    )
    cells: list[Cell] = [
        name(f"{each.arm}, seed {each.seed}"),
        ("no: ", Tagged(each.why or "broken off", MEASURED)),
        "–",
        counted(each.position),
        "–" if each.pair is None else counted(each.pair),
        *(spent if each.windows else ["not known"] * len(spent)),
        *["–"] * 4,
    ]
    return (*cells, "–") if _with_grams(savings) else tuple(cells)


def _with_grams(savings: Savings) -> bool:
    return savings.comparison.choices.grid is not None


def _count(value: int | None) -> Tagged:
    return Tagged("–" if value is None else words.count(value), COUNTED)


def needed_section(savings: Savings) -> Section:
    """Return how many pairs would show savings of several sizes, given the noise that was met."""
    if not savings.needed:
        nothing = says("Too little is known of the noise to say how many pairs would be needed.")
        return Section("needed", "How many pairs it would take", (nothing,))
    kind = energy_class(savings)
    rows: list[tuple[Cell, ...]] = [
        (Tagged(f"{words.percent(each.saving_share)} less", "chosen"), Tagged(needed_words(each.pairs), kind))
        for each in savings.needed
    ]
    caption = says(
        "Pairs that would show a saving with power ", Tagged("0.8", "chosen"), ", at the noise met here."
    )
    shown = table(caption, ("a saving of", "takes pairs"), rows)
    return Section("needed", "How many pairs it would take", (shown,))


def needed_words(pairs: int | None) -> str:
    """Return a number of pairs; ``None`` is out of reach.

    >>> needed_words(9), needed_words(None)
    ('9', 'more than 1,000')
    """
    return "more than 1,000" if pairs is None else f"{pairs:,}"


def reproduce_section(savings: Savings, journal_sha256: str = "") -> Section:
    """Return the command, the recipe, hashes and versions."""
    design = savings.comparison.design
    rows: list[tuple[Cell, ...]] = [
        (name("SHA-256 of the recipe"), Code(design.recipe_sha256)),
        *([(name("SHA-256 of the journal"), Code(journal_sha256))] if journal_sha256 else []),
        *((name(package), Code(version)) for package, version in design.versions.items()),
    ]
    hashes = [run for run in savings.comparison.runs if run.weights_sha256]
    weights = _weights(hashes_of=[(f"{r.arm}, seed {r.seed}", r.weights_sha256) for r in hashes])
    return Section(
        "reproduce",
        "Do it again",
        (
            Listing(design.command),
            table(says("What it was done with."), ("what", "which"), rows, texts=2),
            *weights,
            says("The recipe:"),
            Listing(design.recipe_text.rstrip()),
        ),
    )


def _weights(hashes_of: list[tuple[str, str]]) -> list[Table]:
    rows: list[tuple[Cell, ...]] = [(name(run), Code(digest)) for run, digest in hashes_of]
    return [table(says("Weights that runs left."), ("run", "their hash"), rows, texts=2)] if rows else []
