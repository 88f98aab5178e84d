"""The picture of a finished run: signals over epochs, the draw, the end, and the ticket's widths.

It is plotted from the run's folder, outside the metered run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tpsprune.errors import printable
from tpsprune.records import Decision, GroupChange, Reading, RunResult
from tpsprune.runs import RunFolder, read_result, write_bytes_atomically

# Okabe and Ito's palette: distinct to colour-blind eyes and in grey print.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#888888"

PANELS: Final = (
    (("train_loss", "validation_loss"), "loss (nats)", (BLUE, ORANGE), "log"),
    (("validation_accuracy",), "validation\naccuracy", (BLUE,), "linear"),
    (("d_eff",), "d_eff / width", (GREEN,), "linear"),
    (("h1",), "H1, z of the\nlongest loop", (GREEN,), "linear"),
    (("spectral_edge",), "spectral edge\nσ_k / σ_k+1", (GREEN,), "linear"),
    (("norm",), "‖θ‖₂", (GREEN,), "linear"),
    (("mask_distance",), "mask\ndistance", (GREEN,), "linear"),
    (("condensation",), "condensed\nshare", (GREEN,), "linear"),
    (("collapse",), "mean cosine of\nhidden states", (GREEN,), "linear"),
    (("intrinsic_dimension", "two_nn_dimension"), "intrinsic\ndimension\n/ width", (GREEN, ORANGE), "linear"),
    (("logit_rank",), "rank of\nthe logits", (GREEN,), "linear"),
    (("nc1", "nc4"), "collapse\nNC1, NC4", (GREEN, BLUE), "linear"),
    (("commutator_defect",), "commutator\ndefect", (GREEN,), "log"),
    (("hessian_min", "hessian_max"), "Hessian's\nends", (BLUE, ORANGE), "linear"),
    (("hessian_negative_share",), "Hessian's\nnegative share", (GREEN,), "linear"),
    (("tps_coherence",), "TPS\ncoherence R", (GREEN,), "linear"),
)


def plot_run(run: Path) -> tuple[Path, Path]:
    """Plot ``signals.svg`` and ``signals.png`` into the folder of a finished run; return their paths.

    Raises:
        RunFolderError: it is no run folder, its run is not finished, or the pictures cannot be written.
    """
    folder, outcome, readings = _read(run)
    title = f"{outcome.name}, seed {outcome.seed}"
    figure = run_figure(
        title,
        readings,
        outcome.drawn,
        outcome.stopped,
        outcome.groups,
        quality=outcome.task.quality,
        loss_unit=outcome.task.loss_unit,
    )
    return _write(figure, folder.path / "signals")


def plot_two_runs(run: Path, other: Path) -> tuple[Path, Path]:
    """Plot the signals of two finished runs, ``beside-OTHER.svg`` and ``.png`` in the first.

    Raises:
        RunFolderError: as ``plot_run``.
    """
    both = []
    for each in (run, other):
        folder, outcome, readings = _read(each)
        title = f"{folder.path.resolve().name}, seed {outcome.seed}"
        task = outcome.task
        both.append(PlottedRun(title, readings, outcome.drawn.epoch, task.quality, task.loss_unit))
    return _write(two_runs_figure(both), run / f"beside-{other.resolve().name}")


def run_figure(
    title: str,
    readings: Sequence[Reading],
    drawn: Decision,
    stopped: Decision,
    groups: Sequence[GroupChange],
    *,
    quality: str = "accuracy",
    loss_unit: str = "nats",
) -> Figure:
    """Plot the signals of the whole model over epochs, one panel each, next to the widths of the ticket.

    ``quality`` is what the validation accuracy is called. A loss below zero is plotted
    on a linear scale.
    """
    panels = [panel for panel in PANELS if any(_series(readings, name)[0] for name in panel[0])]
    figure = Figure(figsize=(10, 1.15 * len(panels) + 1.3), layout="constrained")
    grid = figure.add_gridspec(len(panels), 2, width_ratios=(3, 2))
    shared: Any = None
    for row, (names, label, colours, scale) in enumerate(panels):
        axes = figure.add_subplot(grid[row, 0], sharex=shared)
        shared = shared or axes
        for name, colour in zip(names, colours, strict=True):
            epochs, values = _series(readings, name)
            axes.plot(epochs, values, color=colour, linewidth=1.4, marker=".", markersize=3, label=name)
        shown = [value for name in names for value in _series(readings, name)[1]]
        _scale(axes, scale if min(shown) >= 0.0 else "linear")
        axes.set_ylabel(_label(names[0], label, quality, loss_unit), fontsize=8)
        axes.tick_params(labelsize=8, labelbottom=row == len(panels) - 1)
        axes.axvline(drawn.epoch, color=RED, linewidth=1.2)
        axes.axvline(stopped.epoch, color=GREY, linewidth=1.2, linestyle="--")
        if len(names) > 1:
            axes.legend(fontsize=7, frameon=False, loc="upper center", ncols=len(names))
        if row == 0:
            axes.set_title(
                f"ticket drawn at epoch {drawn.epoch:g} (red), end at {stopped.epoch:g} (dashed)", fontsize=9
            )
    figure.axes[-1].set_xlabel("epochs trained", fontsize=8)
    _widths(figure.add_subplot(grid[:, 1]), groups)
    figure.suptitle(_as_text(title), fontsize=11)
    return figure


@dataclass(frozen=True, slots=True)
class PlottedRun:
    """The signals of one run in a picture of two: name, readings, draw, and the names of its figures."""

    title: str
    readings: Sequence[Reading]
    drawn_epoch: float
    quality: str = "accuracy"
    loss_unit: str = "nats"


def two_runs_figure(runs: Sequence[PlottedRun]) -> Figure:
    """Plot the signals of two runs over the same epochs, the second dashed, draws as thin lines."""
    panels = [(name, label, scale) for names, label, _, scale in PANELS for name in names]
    panels = [each for each in panels if any(_series(run.readings, each[0])[0] for run in runs)]
    figure = Figure(figsize=(8, 1.15 * len(panels) + 1.3), layout="constrained")
    shared: Any = None
    for row, (name, label, scale) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, row + 1, sharex=shared)
        shared = shared or axes
        for run, colour, line in zip(runs, (BLUE, RED), ("-", "--"), strict=True):
            epochs, values = _series(run.readings, name)
            axes.plot(
                epochs,
                values,
                color=colour,
                ls=line,
                linewidth=1.4,
                marker=".",
                markersize=3,
                label=_as_text(run.title),
            )
            axes.axvline(run.drawn_epoch, color=colour, linestyle=line, linewidth=0.8)
        shown = [value for run in runs for value in _series(run.readings, name)[1]]
        _scale(axes, scale if min(shown) >= 0.0 else "linear")
        axes.set_ylabel(_label_of_two(name, label, runs), fontsize=8)
        axes.tick_params(labelsize=8, labelbottom=row == len(panels) - 1)
        if row == 0:
            axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.axes[-1].set_xlabel("epochs trained; thin upright lines: the draws", fontsize=8)
    return figure


def render(figure: Figure, ending: Literal["svg", "png"]) -> bytes:
    """Return the figure as the content of a file; equal figures give equal SVG."""
    content = BytesIO()
    with rc_context({"svg.hashsalt": "tpsprune", "svg.fonttype": "none"}):
        metadata = {"Date": None} if ending == "svg" else {}
        figure.savefig(content, format=ending, dpi=110, metadata=metadata)
    return content.getvalue()


def _as_text(name: str) -> str:
    """Return a name as matplotlib shows it as it is: dollars are mathematics to it."""
    return printable(name).replace("$", r"\$")


def _label(name: str, label: str, quality: str, loss_unit: str) -> str:
    """Return the label of a panel, which the table holds for classes, as it is for this task."""
    if name == "validation_accuracy":
        return label.replace("accuracy", quality)
    return label.replace(" (nats)", f" ({loss_unit})" if loss_unit else "")


def _label_of_two(name: str, label: str, runs: Sequence[PlottedRun]) -> str:
    """Return the label of a panel of two runs, both names where they differ."""
    if name.endswith("loss"):
        label = f"{name.replace('_', chr(10))} (nats)"
    labels = dict.fromkeys(_label(name, label, run.quality, run.loss_unit) for run in runs)
    return " / ".join(labels)


def _scale(axes: Any, scale: str) -> None:
    axes.set_yscale(scale)
    if scale == "log":  # Over less than a decade the usual labels run into each other, or there are none.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _series(readings: Sequence[Reading], signal: str) -> tuple[list[float], list[float]]:
    points = [
        (reading.epoch, reading.value)
        for reading in readings
        if reading.signal == signal and not reading.group and reading.value is not None
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _widths(axes: Any, changes: Sequence[GroupChange]) -> None:
    groups = [each for each in changes if each.kind != "rank"]
    rows = range(len(groups))
    axes.barh(rows, [g.width_before for g in groups], color="#DDDDDD", label="dense")
    axes.barh(rows, [g.width_after for g in groups], color=BLUE, height=0.5, label="ticket")
    for row, group in zip(rows, groups, strict=True):
        axes.text(
            group.width_before, row, f" {group.width_after} of {group.width_before}", va="center", fontsize=8
        )
    axes.set_yticks(list(rows), [_as_text(group.group) for group in groups], fontsize=8)
    # A few groups are not blown up to fill the panel; the first one stands on top.
    axes.set_ylim(max(len(groups), 6) - 0.5, -0.5)
    axes.margins(x=0.25)
    axes.set_xlabel("units", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title("the ticket's widths", fontsize=9, loc="left")
    # Above the panel: within it a bar of the last group may lie anywhere.
    axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderpad=0)
    axes.spines[["top", "right"]].set_visible(False)


def _read(run: Path) -> tuple[RunFolder, RunResult, list[Reading]]:
    folder = RunFolder.open_existing(run)
    outcome = read_result(folder.result)
    return folder, outcome, list(folder.readings.parsed(Reading))


def _write(figure: Figure, stem: Path) -> tuple[Path, Path]:
    vector, raster = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    write_bytes_atomically(vector, render(figure, "svg"))
    write_bytes_atomically(raster, render(figure, "png"))
    return vector, raster
