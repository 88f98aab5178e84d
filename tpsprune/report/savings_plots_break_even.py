"""The plot of when a training is paid back: what an arm has cost more, over the answers given."""

from __future__ import annotations

from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tpsprune.records import BreakEven, Savings
from tpsprune.report.savings_blocks import says
from tpsprune.report.savings_plot import Plot, joined
from tpsprune.report.savings_svg import (
    GRID,
    INK,
    MUTED,
    WIDTH,
    axes_of,
    canvas,
    energy_axis,
    key_below,
    marker_of,
    paint_of,
)
from tpsprune.report.savings_words import class_of

__all__ = ["break_even_plot"]


def break_even_plot(savings: Savings) -> Plot | None:
    """Draw what an arm has cost in all against the number of answers, with the interval as a band."""
    known = [
        each
        for each in savings.break_even
        if each.arm == savings.verdict.arm and None not in {each.extra_joules, each.saved_joules}
    ]
    if not known:
        return None
    figure = canvas(WIDTH, 3.4)
    axes = axes_of(figure)
    ends = [each.high or 0.0 for each in known]
    most = max([*ends, (savings.comparison.choices.per_day or 0.0) * 30, 1000.0]) * 1.25
    curves = [(each, _net(each, most)) for each in known]
    size, unit = energy_axis([value for _, (_, *values) in curves for value in values])
    rows: list[tuple[Any, ...]] = []
    for place, (each, (start, end)) in enumerate(curves):
        paint, marker = paint_of(place + 1), marker_of(place + 1)
        axes.plot([0, most], [start / size, end / size], color=paint, linewidth=1.6)
        if each.low and each.high and start > 0:
            edges = [(start - start / end_ * most) / size for end_ in (each.low, each.high)]
            axes.fill_between(
                [0, most],
                [start / size, edges[0]],
                [start / size, edges[1]],
                color=paint,
                alpha=0.16,
                linewidth=0,
            )
        if each.inferences:
            axes.plot(each.inferences, 0, marker=marker, color=paint, markersize=8)
        rows.append(
            (
                each.arm,
                each.batch,
                start,
                each.saved_joules,
                each.inferences,
                each.low,
                each.high,
                each.energy_class,
            )
        )
    lowest = min(value for _, ends_ in curves for value in ends_) / size
    highest = max(value for _, ends_ in curves for value in ends_) / size
    margin = 0.12 * max(highest - lowest, abs(highest), abs(lowest), 1e-12)
    axes.set_ylim(min(lowest, 0) - margin, max(highest, 0) + margin)
    axes.set_xlim(0, most)
    axes.axhline(0, color=INK, linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("answers given")
    axes.set_ylabel(f"spent more than\nthe baseline ({unit})")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    handles = [
        Line2D([], [], color=paint_of(place + 1), marker=marker_of(place + 1), label=f"batch {each.batch}")
        for place, each in enumerate(known)
    ]
    band = [Patch(facecolor=MUTED, alpha=0.25, label="interval")]
    key_below(figure, [*handles, *band])
    return Plot(
        stem="break_even",
        title="When the training is paid back",
        caption=says(
            "What the arm has cost more than the baseline, training and answers together: below the line it "
            "has cost less. The band is the interval of the crossing, where there is one."
        ),
        spoken="Falling or rising lines of energy spent over answers given, one for each batch size.",
        number_class=joined(class_of(savings, each.energy_class) for each in known),
        figure=figure,
        columns=(
            "arm",
            "batch",
            "extra_joules_of_training",
            "saved_joules_per_answer",
            "answers",
            "low",
            "high",
            "class",
        ),
        rows=tuple(rows),
    )


def _net(each: BreakEven, most: float) -> tuple[float, float]:
    """Return the joules spent more than the baseline, before the first answer and after ``most``."""
    start, saved = each.extra_joules or 0.0, each.saved_joules or 0.0
    return start, start - saved * most
