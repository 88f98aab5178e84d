"""One plot of a report and the numbers it is drawn from, side by side; and the words that plots share."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tpsprune.claims.window_sums import joules_of
from tpsprune.records import Claim, EnergyClass, EnergyMethod, RunLine, Savings, Window
from tpsprune.report.savings_blocks import Paragraph
from tpsprune.report.savings_svg import marker_of, paint_of

__all__ = [
    "Plot",
    "arm_key",
    "claim_name",
    "class_of_windows",
    "combined",
    "couples_of",
    "csv_text",
    "energy_class",
    "honest",
    "joined",
    "lost_class",
    "lost_unknown",
    "place_of",
    "short_label",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot: what it is called, what it shows, the class of its numbers, and the numbers themselves."""

    stem: str
    title: str
    caption: Paragraph
    spoken: str
    number_class: str
    figure: Figure
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def csv_text(plot: Plot) -> str:
    """Return the numbers of a plot as CSV; empty where there is no number."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(plot.columns)
    writer.writerows(["" if value is None else value for value in row] for row in plot.rows)
    return text.getvalue()


def combined(classes: Sequence[EnergyClass]) -> str:
    """Return the classes in words, best first, each once.

    >>> combined([EnergyClass.CONSTANT, EnergyClass.MODELLED, EnergyClass.CONSTANT])
    'modelled + constant'
    >>> combined([])
    'none'
    """
    order = [each for each in EnergyClass if each not in {EnergyClass.MIXED, EnergyClass.NONE}]
    return " + ".join(each.value for each in order if each in classes) or EnergyClass.NONE.value


def joined(shown: Iterable[str]) -> str:
    """Return several sums' classes in words as those of one sum, best first, each once.

    >>> joined(["modelled + constant", "measured", "none"])
    'measured + modelled + constant'
    """
    return combined([EnergyClass(part) for each in shown for part in each.split(" + ")])


def class_of_windows(windows: Iterable[Window]) -> str:
    """Return of what classes the joules of these windows are made, whatever the verdict's are."""
    return combined([kind for window in windows for kind in window.classes.values()])


def lost_class(savings: Savings) -> str:
    """Return of what classes the joules are that are in no claim."""
    return class_of_windows(window for each in savings.comparison.broken_off for window in each.windows)


def lost_unknown(savings: Savings) -> int:
    """Return of how many runs that are in no claim nobody knows what they took: of those without windows."""
    return sum(joules_of(each.windows) is None for each in savings.comparison.broken_off)


def honest(shown: str, methods: Sequence[EnergyMethod]) -> str:
    """Return a class as a reader can use it: in place of ``mixed``, the classes that are mixed."""
    if shown != EnergyClass.MIXED.value:
        return shown
    return combined([each for method in methods for each in method.classes.values()])


def energy_class(savings: Savings) -> str:
    """Return of what classes the joules of the report's verdict are made."""
    return honest(savings.verdict.energy_class, [run.method for run in savings.comparison.runs])


def couples_of(savings: Savings, claim: Claim) -> list[tuple[RunLine, RunLine]]:
    """Return the counted runs of a claim's baseline and arm, pair by pair, where both were metered."""
    runs = {(run.arm, run.pair): run for run in savings.runs if run.counted and run.joules is not None}
    return [
        (runs[claim.baseline, pair], runs[claim.arm, pair])
        for pair in sorted(pair for arm, pair in runs if arm == claim.arm)
        if (claim.baseline, pair) in runs
    ]


def place_of(savings: Savings, arm: str) -> int:
    """Return the place of an arm in the design, which decides its paint and marker."""
    arms = savings.comparison.design.arms
    return arms.index(arm) if arm in arms else len(arms)


def claim_name(claim: Claim) -> str:
    """Return what a claim is of, for a row or an axis."""
    kind = claim.kind if claim.batch is None else f"{claim.kind}, batch {claim.batch}"
    return f"{claim.arm}: {kind}"


def arm_key(savings: Savings, arms: Sequence[str], line: Literal["-", "None"] = "None") -> list[Line2D]:
    """Return the key of these arms."""
    places = [(arm, place_of(savings, arm)) for arm in arms]
    return [
        Line2D(
            [],
            [],
            color=paint_of(place),
            marker=marker_of(place),
            linestyle=line,
            markersize=6,
            label=short_label(arm),
        )
        for arm, place in places
    ]


def short_label(label: str, most: int = 18) -> str:
    """Return a label short enough for an axis; an underscore first would hide it, dollars are mathematics."""
    label = label if len(label) <= most else f"{label[: most - 1]}…"
    label = label.lstrip("_") or "?"
    return label.replace("$", r"\$")
