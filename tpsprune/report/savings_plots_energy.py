"""Plots of joules: pair by pair, phase by phase, epoch by epoch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tpsprune.records import ArmRun, Savings
from tpsprune.report import words
from tpsprune.report.savings_blocks import COUNTED, Inline, Tagged, counted, name, says
from tpsprune.report.savings_plot import (
    Plot,
    arm_key,
    combined,
    couples_of,
    energy_class,
    honest,
    lost_class,
    lost_unknown,
    place_of,
    short_label,
)
from tpsprune.report.savings_svg import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    WIDTH,
    axes_of,
    canvas,
    energy_axis,
    key_below,
    marker_of,
    paint_of,
)
from tpsprune.report.savings_words import capital

__all__ = ["course_plot", "pairs_plot", "phases_plot"]

NEXT_LINE = "\n"
_HATCHES = ("", "//", "\\\\", "xx", "--", "++", "/", "")


def pairs_plot(savings: Savings) -> Plot | None:
    """Draw the energy of each counted pair as a line from the baseline to the arm, a panel for each arm."""
    panels = [
        (claim.baseline, claim.arm, couples)
        for claim in savings.claims
        if claim.kind == "training" and (couples := couples_of(savings, claim))
    ]
    if not panels:
        return None
    most = max(run.joules or 0.0 for _, _, couples in panels for couple in couples for run in couple)
    size, unit = energy_axis([most])
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = canvas(max(3.4, 1.75 * across + 0.4), 2.4 * down)
    methods = [run.method for run in savings.comparison.runs]
    shared: Any = None
    rows: list[tuple[Any, ...]] = []
    for place, (baseline, arm, couples) in enumerate(panels):
        shared = axes = axes_of(figure, down, across, place + 1, sharey=shared)
        for couple in couples:
            values = [(run.joules or 0.0) / size for run in couple]
            dearer = values[1] > values[0]
            axes.plot([0, 1], values, color=MUTED, linewidth=1.3, linestyle="--" if dearer else "-")
            for x, run in enumerate(couple):
                at = place_of(savings, run.arm)
                axes.plot(x, values[x], marker=marker_of(at), color=paint_of(at), markersize=6)
                kind = honest(run.energy_class, methods)
                rows.append((arm, run.pair, run.seed, run.arm, run.joules, kind))
        axes.set_xlim(-0.25, 1.25)
        axes.set_ylim(0, 1.08 * (most or 1.0) / size)
        # A long name stands a line lower, so that the two never run into each other.
        axes.set_xticks([0, 1], [short_label(baseline), f"{NEXT_LINE * (len(arm) > 8)}{short_label(arm)}"])
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        if place % across == 0:
            axes.set_ylabel(f"energy of a training ({unit})")
    return Plot(
        stem="pairs",
        title="Energy of each pair",
        caption=says(
            "A line is a pair: one seed, trained as the baseline and as the arm, one right after the other. "
            "Dashed lines go up: that pair cost more. Counted pairs only: ",
            counted(max(len(couples) for _, _, couples in panels)),
            ".",
        ),
        spoken="Slopes from the energy of the baseline's training to the energy of the arm's, seed by seed.",
        number_class=energy_class(savings),
        figure=figure,
        columns=("panel", "pair", "seed", "arm", "joules", "class"),
        rows=tuple(rows),
    )


def phases_plot(savings: Savings) -> Plot | None:
    """Draw of what each arm's joules are made up, by phase, with the joules that are in no claim below."""
    known = [each for each in savings.ledger if each.joules is not None]
    arms = [arm for arm in savings.comparison.design.arms if any(each.arm == arm for each in known)]
    if not known:
        return None
    phases = list(dict.fromkeys(each.phase for each in known))
    methods = [run.method for run in savings.comparison.runs]
    totals = [sum(each.joules or 0.0 for each in known if each.arm == arm) for arm in arms]
    lost, unknown = savings.quality.lost_joules or 0.0, lost_unknown(savings)
    size, unit = energy_axis([*totals, lost])
    labels = [*map(short_label, arms), *(["in no claim (sum)"] if lost > 0 else [])]
    figure = canvas(WIDTH, 0.42 * len(labels) + 1.5)
    axes = axes_of(figure)
    for row, arm in enumerate(arms):
        start = 0.0
        for each in (each for each in known if each.arm == arm):
            place = phases.index(each.phase)
            width = (each.joules or 0.0) / size
            axes.barh(row, width, left=start, height=0.62, **_filling(place))
            start += width
    if lost > 0:
        axes.barh(len(arms), lost / size, height=0.62, facecolor="none", edgecolor=MUTED, hatch="////")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(f"energy of a training, mean of the counted runs ({unit})")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    handles = [Patch(label=phase, **_filling(place)) for place, phase in enumerate(phases)]
    key_below(figure, handles, columns=min(4, len(handles)))
    rows: list[tuple[Any, ...]] = [
        (
            each.arm,
            each.phase,
            each.joules,
            honest(each.energy_class, methods),
            each.seconds,
            each.cpu_seconds,
        )
        for each in known
    ]
    if lost > 0:
        rows.append(("in no claim (sum)", "", lost, lost_class(savings), None, None))
    below: tuple[Inline, ...] = (
        " What was spent on runs that were thrown away, broken off or set aside stands below, as a sum: ",
        Tagged(words.joules(lost), lost_class(savings)),
        *((", without ", counted(unknown), " of which it is not known") if unknown else ()),
        ".",
    )
    return Plot(
        stem="phases",
        title="Energy by phase",
        caption=says(
            "Everything is on the bill (setting up, watching the signals, cutting, retraining, evaluating) "
            "but what a process does only once: a short run to warm up is thrown away first. Every arm reads "
            "its validation split: once, at its end, where nothing can act on what it reads.",
            *(below if lost > 0 else ()),
        ),
        spoken="Stacked bars, one for each arm, divided by phase.",
        number_class=energy_class(savings),
        figure=figure,
        columns=("arm", "phase", "joules", "class", "seconds (measured)", "cpu_seconds (measured)"),
        rows=tuple(rows),
    )


def course_plot(savings: Savings) -> Plot | None:
    """Draw one pair over its epochs: energy per epoch, accuracy, and the signals that decided."""
    shown = _first_counted(savings)
    if not shown:
        return None
    quality = savings.comparison.design.quality
    per_epoch = {run.arm: _per_epoch(run) for run in shown}
    size, unit = energy_axis([value for points in per_epoch.values() for _, value in points])
    signals = [
        signal
        for signal in ("d_eff", "H1 z")
        if any(signal in point.signals for run in shown for point in run.course)
    ]
    panels = [*(["energy"] if any(per_epoch.values()) else []), "accuracy", *signals]
    figure = canvas(WIDTH, 1.45 * len(panels) + 0.8)
    shared: Any = None
    rows: list[tuple[Any, ...]] = []
    labels = {
        "energy": f"energy per\nepoch ({unit})",
        "accuracy": f"validation\n{quality}",
        "d_eff": "d_eff / width",
        "H1 z": "H1, longest\nloop (z)",
    }
    for row, panel in enumerate(panels):
        axes = axes_of(figure, len(panels), 1, row + 1, sharex=shared)
        shared = shared or axes
        for run in shown:
            points, kind = _series(run, panel, per_epoch[run.arm])
            place = place_of(savings, run.arm)
            scale = size if panel == "energy" else 1.0
            axes.plot(
                [x for x, _ in points],
                [y / scale for _, y in points],
                color=paint_of(place),
                marker=marker_of(place),
                markersize=3.5,
                linewidth=1.3,
                linestyle="-" if place else "--",
            )
            called = quality if panel == "accuracy" else panel
            rows += [(called, run.arm, run.seed, x, y, kind) for x, y in points]
            _moments(axes, run, paint_of(place))
        axes.set_ylabel(labels[panel])
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.tick_params(labelbottom=row == len(panels) - 1)
        if panel == "energy":
            axes.set_ylim(bottom=0)
    figure.axes[-1].set_xlabel("epochs trained")
    key_below(
        figure,
        [
            *arm_key(savings, [run.arm for run in shown], "-"),
            Line2D([], [], color=INK, linewidth=1.2, label="drawn"),
            Line2D([], [], color=INK, linewidth=1.2, linestyle=":", label="ended"),
        ],
        columns=4,
    )
    return Plot(
        stem="course",
        title="One pair over its epochs",
        caption=says(
            "The first counted pair, whatever it looks like: seed ",
            counted(shown[0].seed),
            ". Upright lines: where the ticket was drawn (whole) and where training ended (dotted). "
            "Signals: ",
            name("d_eff"),
            ", the effective dimension over the width, and ",
            name("H1"),
            f", the longest loop. {capital(quality)} is counted, signals are derived.",
        ),
        spoken=f"Energy per epoch, validation {quality} and the signals over the epochs of one pair.",
        number_class=energy_class(savings) if panels[0] == "energy" else COUNTED,
        figure=figure,
        columns=("panel", "arm", "seed", "epoch", "value", "class"),
        rows=tuple(rows),
    )


def _first_counted(savings: Savings) -> list[ArmRun]:
    """Return the runs of the verdict's arm and its baseline in the first pair of which both counted."""
    verdict = savings.verdict
    counts = {(run.arm, run.pair) for run in savings.runs if run.counted}
    for pair in sorted({pair for arm, pair in counts if arm == verdict.arm}):
        runs = [savings.comparison.run_of(arm, pair) for arm in (verdict.baseline, verdict.arm)]
        found = [run for run in runs if run is not None and run.course]
        if (verdict.baseline, pair) in counts and any(run.arm == verdict.arm for run in found):
            return found
    return []


def _per_epoch(run: ArmRun) -> list[tuple[float, float]]:
    """Return joules per epoch between readings: of nothing before the first, which holds the setting up."""
    known = [(point.epoch, point.joules) for point in run.course if point.joules is not None]
    return [
        (epoch, (joules - before) / (epoch - since))
        for (since, before), (epoch, joules) in pairwise(known)
        if epoch > since
    ]


def _series(
    run: ArmRun, panel: str, per_epoch: list[tuple[float, float]]
) -> tuple[list[tuple[float, float]], str]:
    if panel == "energy":
        return per_epoch, combined(list(run.method.classes.values()))
    if panel == "accuracy":
        values = [(point.epoch, point.validation_accuracy) for point in run.course]
        return [(epoch, value) for epoch, value in values if value is not None], "counted"
    return [(p.epoch, p.signals[panel]) for p in run.course if panel in p.signals], "derived"


def _moments(axes: Any, run: ArmRun, paint: str) -> None:
    for epoch, style in ((run.drawn_epoch, "-"), (run.epochs, ":")):
        if epoch is not None:
            axes.axvline(epoch, color=paint, linewidth=1.1, linestyle=style)


def _filling(place: int) -> dict[str, Any]:
    return {
        "facecolor": SERIES[place % len(SERIES)],
        "edgecolor": PAPER,
        "linewidth": 0.8,
        "hatch": _HATCHES[place % len(_HATCHES)],
    }
