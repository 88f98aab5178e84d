"""The picture of a study: each quantity with its interval and the prediction; then its curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tpsprune.report.pictures import BLUE, GREEN, GREY, ORANGE, RED, render
from tpsprune.runs import read_json, write_bytes_atomically

CURVE_COLOURS: Final = (BLUE, RED, GREEN, GREY)
PANEL_INCHES: Final = 4.4
LABEL_COLUMNS: Final = 40
FEW_DECADES: Final = 5


def plot_study(record: Path) -> Path:
    """Plot the study whose figures are in ``NAME.json`` as ``NAME.svg`` in the same folder; return its path.

    Raises:
        RunFolderError: the record cannot be read, or the picture not written.
    """
    picture = record.with_suffix(".svg")
    figure = study_figure(read_json(record))
    write_bytes_atomically(picture, render(figure, "svg"))
    return picture


def study_figure(record: Mapping[str, Any]) -> Figure:
    """Plot what a study measured, predicted quantities in colour; below, its panels."""
    panels = record.get("panels", ())
    inches = 0.32 * len(record["quantities"]) + 1.6
    width = max(7.0, PANEL_INCHES * len(panels))
    figure = Figure(figsize=(width, inches + bool(panels) * PANEL_INCHES), layout="constrained")
    if not panels:
        _quantities(figure.add_subplot(), record)
        return figure
    grid = figure.add_gridspec(2, len(panels), height_ratios=(inches, PANEL_INCHES))
    _quantities(figure.add_subplot(grid[0, :]), record)
    for place, panel in enumerate(panels):
        _curves(figure.add_subplot(grid[1, place]), panel)
    return figure


def _quantities(axes: Any, record: Mapping[str, Any]) -> None:
    quantities = record["quantities"]
    for place, quantity in enumerate(reversed(quantities)):
        measured = quantity["measured"]
        axes.plot(
            [measured["low"], measured["high"]],
            [place, place],
            color=BLUE if quantity["predicted"] else GREY,
            linewidth=2,
        )
        axes.plot(measured["mean"], place, "o", color=BLUE if quantity["predicted"] else GREY, markersize=5)
    low, high = (record["predicted_range"][side] for side in ("low", "high"))
    if low is not None and high is not None:
        axes.axvspan(low, high, color=ORANGE, alpha=0.25, linewidth=0)
    for edge in (low, high):
        if edge is not None:
            axes.axvline(edge, color=ORANGE, linewidth=1.4, linestyle="--")
    names = [textwrap.fill(each["name"], LABEL_COLUMNS) for each in reversed(quantities)]
    axes.set_yticks(range(len(quantities)), names, fontsize=8)
    axes.set_ylim(-0.6, len(quantities) - 0.4)
    if decades := _count_decades(quantities):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < FEW_DECADES else (1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    label = textwrap.fill(f"{record['measure']}, mean and 95 % interval", 2 * LABEL_COLUMNS)
    axes.set_xlabel(label, fontsize=8)
    axes.set_title(
        f"{record['study']}: {record['verdict']} (orange: predicted, {_words(low, high)})", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)


def _count_decades(quantities: Sequence[Mapping[str, Any]]) -> float:
    """Return how many decades intervals of positive numbers span; 0 where a linear axis shows them all."""
    low = min((each["measured"]["low"] for each in quantities), default=0.0)
    high = max((each["measured"]["high"] for each in quantities), default=0.0)
    return log10(high / low) if low > 0 and high > 10 * low else 0.0


def _curves(axes: Any, panel: Mapping[str, Any]) -> None:
    """Plot a panel's curves; a dashed one has the colour of the whole one before it."""
    colours = _colours(panel["curves"])
    for curve, colour in zip(panel["curves"], colours, strict=True):
        xs, ys = zip(*curve["points"], strict=True)
        style = "--" if curve["dashed"] else "-"
        axes.plot(xs, ys, style, color=colour, linewidth=1.4, marker="o", markersize=3, label=curve["name"])
    axes.set_xscale("log" if panel["log_x"] else "linear")
    axes.set_yscale("log" if panel["log_y"] else "linear")
    axes.set_xlabel(panel["x"], fontsize=8)
    axes.set_ylabel(panel["y"], fontsize=8)
    axes.set_title(panel["title"], fontsize=9)
    axes.tick_params(labelsize=8)
    if panel["curves"]:
        axes.legend(
            fontsize=7,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.45, -0.16),
            ncols=2,
            columnspacing=1.0,
            handlelength=1.6,
        )
    axes.spines[["top", "right"]].set_visible(False)


def _colours(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    colours: list[str] = []
    whole = 0
    for curve in curves:
        if not curve["dashed"] or not colours:
            colours.append(CURVE_COLOURS[whole % len(CURVE_COLOURS)])
            whole += 1
        else:
            colours.append(colours[-1])
    return colours


def _words(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"above {low:g}" if low is not None else f"below {high:g}"
