"""The picture of a study: each quantity with its interval, beside the level that was predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tpsprune.report.figures import BLUE, GREY, ORANGE, rendered
from tpsprune.runs import write_bytes_atomically

__all__ = ["draw_study", "study_figure"]


def draw_study(record: Path) -> Path:
    """Draw the study whose figures lie in ``NAME.json`` as ``NAME.svg`` beside it; return its path.

    Raises:
        RunFolderError: the picture cannot be written.
    """
    picture = record.with_suffix(".svg")
    figure = study_figure(json.loads(record.read_text(encoding="utf-8")))
    write_bytes_atomically(picture, rendered(figure, "svg"))
    return picture


def study_figure(record: Mapping[str, Any]) -> Figure:
    """Draw what a study measured; those of which something was predicted stand out."""
    quantities = record["quantities"]
    figure = Figure(figsize=(7, 0.32 * len(quantities) + 1.6), layout="constrained")
    axes = figure.add_subplot()
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
    axes.set_yticks(range(len(quantities)), [each["name"] for each in reversed(quantities)], fontsize=8)
    axes.set_ylim(-0.6, len(quantities) - 0.4)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(f"{record['measure']}, mean and 95 % interval", fontsize=8)
    axes.set_title(
        f"{record['study']}: {record['verdict']} (orange: predicted, {_words(low, high)})", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _words(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"above {low:g}" if low is not None else f"below {high:g}"
