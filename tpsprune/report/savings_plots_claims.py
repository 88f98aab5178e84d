"""Plots of what is claimed: changes with intervals, accuracy beside energy, power models."""

from __future__ import annotations

from math import isfinite
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tpsprune.records import Change, Savings
from tpsprune.report.savings_blocks import chosen, says
from tpsprune.report.savings_plot import (
    Plot,
    arm_key,
    claim_name,
    energy_class,
    place_of,
    short_label,
)
from tpsprune.report.savings_svg import (
    GRID,
    INK,
    MUTED,
    PAPER,
    WIDTH,
    axes_of,
    canvas,
    energy_axis,
    key_below,
    marker_of,
    paint_of,
)
from tpsprune.report.savings_words import capital, tone_of

__all__ = ["forest_plot", "models_plot", "scatter_plot"]

_FAR = 1.5
"""A cost of more than so many times the baseline's is drawn as an arrow at the edge: else one dwarfs all."""


def forest_plot(savings: Savings) -> Plot | None:
    """Draw every claim's change with its interval about the zero line, the idle-subtracted one below it."""
    claims = [(claim, claim.change) for claim in savings.claims if claim.change is not None]
    if not claims:
        return None
    figure = canvas(WIDTH, 0.5 * len(claims) + 1.5)
    axes = axes_of(figure)
    axes.axvline(0, color=INK, linewidth=1.2)
    rows: list[tuple[Any, ...]] = []
    shown = [each for claim, change in claims for each in (change, claim.idle_subtracted) if each is not None]
    least = max(-_FAR, min(-0.1, *(_ends(change)[0] for change in shown)))
    for row, (claim, change) in enumerate(claims):
        place = place_of(savings, claim.arm)
        for basis, each in (("total", change), ("idle subtracted", claim.idle_subtracted)):
            if each is not None:
                stands = basis == "total" and tone_of(claim.standing) != "refused"
                _interval(axes, row, each, place, whole=basis == "total", stands=stands, least=least)
                rows.append((claim.key, basis, claim.standing.value, *_bounds(each), claim.energy_class))
    axes.set_yticks(range(len(claims)), [short_label(claim_name(claim), 36) for claim, _ in claims])
    axes.set_ylim(len(claims) - 0.4, -0.6)
    axes.set_xlim(least * 1.08, max(0.1, *(_ends(change)[1] for change in shown)) * 1.12)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("← costs more\u2003saves →")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    key_below(
        figure,
        [
            Line2D([], [], color=INK, marker="o", linewidth=1.8, label="claimed"),
            Line2D([], [], color=INK, marker="o", mfc=PAPER, linewidth=1.8, label="no claim"),
            Line2D([], [], color=MUTED, marker="|", linewidth=1, label="idle subtracted"),
        ],
    )
    return Plot(
        stem="claims",
        title="Every claim with its interval",
        caption=says(
            "Saving of each claim, as a share of the baseline's energy, with its ",
            chosen("95 %"),
            " interval, by pairs. An interval clear of the line is not yet a claim: the table says where "
            "each stands, and what was refused is hollow. To the left the arm costs more. The thin one below "
            "each takes the idle machine off both sides: it decides nothing.",
        ),
        spoken="Points with intervals, one row for each claim, about a line where nothing changes.",
        number_class=energy_class(savings),
        figure=figure,
        columns=("claim", "basis", "standing", "saving_share", "low", "high", "class"),
        rows=tuple(rows),
    )


def scatter_plot(savings: Savings) -> Plot | None:
    """Draw every run's test accuracy against its joules; runs that do not count are hollow."""
    runs = [run for run in savings.runs if run.joules is not None and run.accuracy is not None]
    if not runs:
        return None
    size, unit = energy_axis([run.joules or 0.0 for run in runs])
    figure = canvas(WIDTH, 3.4)
    axes = axes_of(figure)
    for run in runs:
        place = place_of(savings, run.arm)
        axes.plot(
            (run.joules or 0.0) / size,
            run.accuracy,
            marker=marker_of(place),
            color=paint_of(place),
            mfc=paint_of(place) if run.counted else "none",
            markersize=7,
            linestyle="None",
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"energy of a training ({unit})")
    quality = savings.comparison.design.quality
    axes.set_ylabel(f"test {quality}")
    axes.grid(color=GRID, linewidth=0.7)
    axes.ticklabel_format(axis="y", useOffset=False)
    arms = [arm for arm in savings.comparison.design.arms if any(run.arm == arm for run in runs)]
    key_below(figure, arm_key(savings, arms))
    return Plot(
        stem="accuracy",
        title=f"{capital(quality)} beside energy",
        caption=says(
            "Every finished run; hollow ones do not count, and the table of runs says why. Higher is better, "
            f"to the left is cheaper. {capital(quality)} is counted."
        ),
        spoken=f"A point for each run, energy across, test {quality} upwards.",
        number_class=energy_class(savings),
        figure=figure,
        columns=("arm", "seed", "pair", "joules", "class", f"{quality} (counted)", "counted"),
        rows=tuple(
            (run.arm, run.seed, run.pair, run.joules, run.energy_class, run.accuracy, run.counted)
            for run in runs
        ),
    )


def models_plot(savings: Savings) -> Plot | None:
    """Draw the saving of every training claim as other power models have it, a row for each model."""
    claims = [claim for claim in savings.claims if claim.kind == "training" and claim.band]
    if not claims:
        return None
    models = list(dict.fromkeys(point.model for claim in claims for point in claim.band))
    figure = canvas(WIDTH, 0.3 * len(models) + 1.5)
    axes = axes_of(figure)
    axes.axvline(0, color=INK, linewidth=1.2)
    rows: list[tuple[Any, ...]] = []
    for claim in claims:
        place = place_of(savings, claim.arm)
        values = {point.model: point.saving_share for point in claim.band}
        shown = [(max(values[model], -_FAR), models.index(model)) for model in values]
        axes.plot(
            [x for x, _ in shown],
            [y for _, y in shown],
            marker=marker_of(place),
            color=paint_of(place),
            linestyle="None",
            markersize=6,
        )
        rows += [(claim.key, model, value, "modelled") for model, value in values.items()]
    axes.set_yticks(range(len(models)), [short_label(model, 40) for model in models])
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("← costs more\u2003saves →")
    axes.grid(color=GRID, linewidth=0.7)
    key_below(figure, arm_key(savings, [claim.arm for claim in claims]))
    return Plot(
        stem="models",
        title="The same runs under other power models",
        caption=says(
            "The seconds and loads are those of the runs; only the watts are assumed anew. Where the points "
            "of an arm lie on both sides of the line, nothing is claimed for it."
        ),
        spoken="A row for each power model, a point for each arm, about a line where nothing changes.",
        number_class="modelled",
        figure=figure,
        columns=("claim", "model", "saving_share", "class"),
        rows=tuple(rows),
    )


def _interval(
    axes: Any, row: int, change: Change, place: int, *, whole: bool, stands: bool, least: float
) -> None:
    at = row if whole else row + 0.27
    paint = paint_of(place) if whole else MUTED
    point = max(change.saving_share, least)
    low, high = (max(end, least) for end in _ends(change))
    axes.plot([low, high], [at, at], color=paint, linewidth=1.8 if whole else 1.0)
    axes.plot(
        point,
        at,
        marker=marker_of(place) if whole else "|",
        color=paint,
        mfc=paint if stands else PAPER,
        markersize=7 if whole else 5,
    )
    if _ends(change)[0] < least:
        axes.plot(least, at, marker=8, color=paint, markersize=7)


def _ends(change: Change) -> tuple[float, float]:
    """Return the interval with an edge where it has no end: a saving of everything, or a vast cost."""
    low, high = change.low, change.high
    return low if isfinite(low) else -2 * _FAR, high if isfinite(high) else 1.0


def _bounds(change: Change) -> tuple[float, float, float]:
    return change.saving_share, change.low, change.high
