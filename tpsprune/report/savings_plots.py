"""All plots of a report, in its order; and in one sentence each, those that had nothing to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tpsprune.records import Savings
from tpsprune.report.savings_plot import Plot
from tpsprune.report.savings_plots_break_even import break_even_plot
from tpsprune.report.savings_plots_claims import forest_plot, models_plot, scatter_plot
from tpsprune.report.savings_plots_energy import course_plot, pairs_plot, phases_plot

__all__ = ["STEMS", "plots"]

STEMS: Final = ("pairs", "claims", "phases", "course", "break_even", "accuracy", "models")
"""The names of all plots that a report may have, in its order."""

_DRAWN: Final[tuple[tuple[Callable[[Savings], Plot | None], str], ...]] = (
    (pairs_plot, "No pair counted in which both sides were metered, so no pairs are drawn."),
    (forest_plot, "No claim has an interval, so none is drawn."),
    (phases_plot, "No energy was metered, so no phases are drawn."),
    (course_plot, "No counted run has a course, so no epochs are drawn."),
    (break_even_plot, "No inference was metered, so no break-even is drawn."),
    (scatter_plot, "No run has both joules and a test result, so the two are not drawn together."),
    (models_plot, "No power model had a say, so no band of models is drawn."),
)


def plots(savings: Savings) -> tuple[dict[str, Plot], tuple[str, ...]]:
    """Return the plots by their name, in the order of the report, and why the others are not there.

    Cost: some seconds, nearly all of it matplotlib.
    """
    drawn = [(draw(savings), why) for draw, why in _DRAWN]
    found = {plot.stem: plot for plot, _ in drawn if plot is not None}
    return found, tuple(why for plot, why in drawn if plot is None)
