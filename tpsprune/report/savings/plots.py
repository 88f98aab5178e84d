"""The plots of a report, each with the numbers it shows: joules, claims, pay-back, accuracy, models."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from math import isfinite
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tpsprune.errors import printable
from tpsprune.records import ArmRun, BreakEven, Change, RunLine, Savings, join_classes
from tpsprune.report.savings.svg import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    WIDTH,
    add_axes,
    add_key,
    energy_unit,
    make_canvas,
    marker_of,
    paint_of,
)
from tpsprune.report.savings.terms import (
    capitalise,
    claim_title,
    class_of,
    class_of_verdict,
    join_class_words,
    lost_class,
    metered_pairs,
    tone_of,
)

_FAR: Final = 1.5
"""A cost of more than so many times the baseline's is shown as an arrow at the edge: else one dwarfs all."""
_HATCHES: Final = ("", "//", "\\\\", "xx", "--", "++", "/", "")

Point = tuple[float, float]
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: its name, what it shows for eyes and for ears, the class of its numbers, and the numbers."""

    stem: str
    title: str
    spoken: str
    kind: str
    figure: Figure
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def make_plots(savings: Savings) -> tuple[dict[str, Plot], tuple[str, ...]]:
    """Return the plots by their stem, in the order of the report, and why the others are not there.

    Cost: some seconds, nearly all of it matplotlib.
    """
    plots = [(plot(savings), why) for plot, why in _PLOTS.values()]
    found = {plot.stem: plot for plot, _ in plots if plot is not None}
    return found, tuple(why for plot, why in plots if plot is None)


def csv_text(plot: Plot) -> str:
    """Return the numbers of a plot as CSV; empty where there is no number."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(plot.columns)
    writer.writerows(["" if value is None else value for value in row] for row in plot.rows)
    return text.getvalue()


def pairs_plot(savings: Savings) -> Plot | None:
    """Plot the energy of each counted pair as a line from the baseline to the arm, a panel for each arm."""
    panels = [
        (claim.baseline, claim.arm, couples)
        for claim in savings.claims
        if claim.kind == "training" and (couples := metered_pairs(savings, claim))
    ]
    if not panels:
        return None
    most = max(_joules(run) for _, _, couples in panels for couple in couples for run in couple)
    size, unit = energy_unit([most])
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = make_canvas(max(3.4, 1.75 * across + 0.4), 2.4 * down)
    shared: Any = None
    rows: list[Row] = []
    for place, (baseline, arm, couples) in enumerate(panels):
        shared = axes = add_axes(figure, down, across, place + 1, sharey=shared, grid="y")
        for couple in couples:
            values = [_joules(run) / size for run in couple]
            style = "--" if values[1] > values[0] else "-"
            axes.plot([0, 1], values, color=MUTED, linewidth=1.3, linestyle=style)
            for x, run in enumerate(couple):
                axes.plot(x, values[x], **_style(savings, run.arm), markersize=6)
                kind = class_of(savings, run.energy_class)
                rows.append((arm, run.pair, run.seed, run.arm, run.joules, kind))
        axes.set_xlim(-0.25, 1.25)
        axes.set_ylim(0, 1.08 * (most or 1.0) / size)
        # A long name is set a line lower, so that the two do not overlap.
        lower = "\n" if len(arm) > 8 else ""
        axes.set_xticks([0, 1], [_short(baseline), f"{lower}{_short(arm)}"])
        if place % across == 0:
            axes.set_ylabel(f"energy of a training ({unit})")
    return Plot(
        "pairs",
        "Energy of each pair",
        "Slopes from the energy of the baseline's training to the energy of the arm's, seed by seed.",
        class_of_verdict(savings),
        figure,
        ("panel", "pair", "seed", "arm", "joules", "class"),
        tuple(rows),
    )


def forest_plot(savings: Savings) -> Plot | None:
    """Plot every claim's change with its interval about the zero line, the idle-subtracted one below it."""
    claims = [(claim, claim.change) for claim in savings.claims if claim.change is not None]
    if not claims:
        return None
    figure = make_canvas(WIDTH, 0.5 * len(claims) + 1.5)
    axes = add_axes(figure, grid="x")
    rows: list[Row] = []
    shown = [each for claim, change in claims for each in (change, claim.idle_subtracted) if each is not None]
    least = max(-_FAR, min(-0.1, *(_ends(change)[0] for change in shown)))
    _zero_line(axes)
    for row, (claim, change) in enumerate(claims):
        stands = tone_of(claim.standing) != "refused"
        whole = {**_style(savings, claim.arm), "lw": 1.8, "markersize": 7}
        idle_style = {"color": MUTED, "marker": "|", "mfc": PAPER, "lw": 1.0, "markersize": 5}
        _interval(axes, row, change, least, whole if stands else {**whole, "mfc": PAPER})
        rows.append((claim.key, "total", claim.standing.value, *_bounds(change), claim.energy_class))
        if (each := claim.idle_subtracted) is not None:
            _interval(axes, row + 0.27, each, least, idle_style)
            rows.append(
                (claim.key, "idle subtracted", claim.standing.value, *_bounds(each), claim.energy_class)
            )
    _name_rows(axes, [_short(claim_title(claim), 36) for claim, _ in claims])
    axes.set_xlim(least * 1.08, max(0.1, *(_ends(change)[1] for change in shown)) * 1.12)
    add_key(
        figure,
        [
            Line2D([], [], color=INK, marker="o", linewidth=1.8, label="claimed"),
            Line2D([], [], color=INK, marker="o", mfc=PAPER, linewidth=1.8, label="no claim"),
            Line2D([], [], color=MUTED, marker="|", linewidth=1, label="idle subtracted"),
        ],
    )
    return Plot(
        "claims",
        "Every claim with its interval",
        "Points with intervals, one row for each claim, about a line where nothing changes.",
        class_of_verdict(savings),
        figure,
        ("claim", "basis", "standing", "saving_share", "low", "high", "class"),
        tuple(rows),
    )


def phases_plot(savings: Savings) -> Plot | None:
    """Plot the joules of each arm by phase, with the joules that are in no claim below."""
    metered = [each for each in savings.ledger if each.joules is not None]
    if not metered:
        return None
    arms = [arm for arm in savings.comparison.design.arms if any(each.arm == arm for each in metered)]
    phases = list(dict.fromkeys(each.phase for each in metered))
    lost = savings.quality.lost_joules or 0.0
    totals = [sum(each.joules or 0.0 for each in metered if each.arm == arm) for arm in arms]
    size, unit = energy_unit([*totals, lost])
    labels = [*map(_short, arms), *(["in no claim (sum)"] if lost > 0 else [])]
    figure = make_canvas(WIDTH, 0.42 * len(labels) + 1.5)
    axes = add_axes(figure, grid="x")
    for row, arm in enumerate(arms):
        start = 0.0
        for each in (each for each in metered if each.arm == arm):
            width = (each.joules or 0.0) / size
            axes.barh(row, width, left=start, height=0.62, **_filling(phases.index(each.phase)))
            start += width
    rows: list[Row] = [
        (
            each.arm,
            each.phase,
            each.joules,
            class_of(savings, each.energy_class),
            each.seconds,
            each.cpu_seconds,
        )
        for each in metered
    ]
    if lost > 0:
        axes.barh(len(arms), lost / size, height=0.62, facecolor="none", edgecolor=MUTED, hatch="////")
        rows.append(("in no claim (sum)", "", lost, lost_class(savings), None, None))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(f"energy of a training, mean of the counted runs ({unit})")
    handles = [Patch(label=_short(phase), **_filling(place)) for place, phase in enumerate(phases)]
    add_key(figure, handles, columns=min(4, len(handles)))
    return Plot(
        "phases",
        "Energy by phase",
        "Stacked bars, one for each arm, divided by phase.",
        class_of_verdict(savings),
        figure,
        ("arm", "phase", "joules", "class", "seconds (measured)", "cpu_seconds (measured)"),
        tuple(rows),
    )


def history_plot(savings: Savings) -> Plot | None:
    """Plot one pair over its epochs: energy per epoch, accuracy, and the signals that decided."""
    shown = _first_counted(savings)
    if not shown:
        return None
    quality = savings.comparison.design.quality
    per_epoch = {run.arm: _per_epoch(run) for run in shown}
    size, unit = energy_unit([value for points in per_epoch.values() for _, value in points])
    labels = {
        "energy": f"energy per\nepoch ({unit})",
        "accuracy": f"validation\n{quality}",
        "d_eff": "d_eff / width",
        "H1 z": "H1, longest\nloop (z)",
    }
    read = {"accuracy", *(name for run in shown for point in run.history for name in point.signals)}
    panels = [panel for panel in labels if panel in read or (panel == "energy" and any(per_epoch.values()))]
    figure = make_canvas(WIDTH, 1.45 * len(panels) + 0.8)
    shared: Any = None
    rows: list[Row] = []
    for row, panel in enumerate(panels):
        axes = add_axes(figure, len(panels), 1, row + 1, sharex=shared, grid="y")
        shared = shared or axes
        for run in shown:
            points, kind = _series(run, panel, per_epoch[run.arm])
            style = _style(savings, run.arm)
            axes.plot(
                [x for x, _ in points],
                [y / (size if panel == "energy" else 1.0) for _, y in points],
                **{**style, "linestyle": "--" if style["color"] == INK else "-"},
                markersize=3.5,
                linewidth=1.3,
            )
            called = quality if panel == "accuracy" else panel
            rows += [(called, run.arm, run.seed, x, y, kind) for x, y in points]
            for epoch, dashes in ((run.drawn_epoch, "-"), (run.epochs, ":")):
                if epoch is not None:
                    axes.axvline(epoch, color=style["color"], linewidth=1.1, linestyle=dashes)
        axes.set_ylabel(labels[panel])
        axes.tick_params(labelbottom=row == len(panels) - 1)
        if panel == "energy":
            axes.set_ylim(bottom=0)
    figure.axes[-1].set_xlabel("epochs trained")
    add_key(
        figure,
        [
            *_arm_key(savings, [run.arm for run in shown], linestyle="-"),
            Line2D([], [], color=INK, linewidth=1.2, label="drawn"),
            Line2D([], [], color=INK, linewidth=1.2, linestyle=":", label="ended"),
        ],
    )
    return Plot(
        "history",
        "One pair over its epochs",
        f"Energy per epoch, validation {quality} and the signals over the epochs of one pair.",
        class_of_verdict(savings) if panels[0] == "energy" else "counted",
        figure,
        ("panel", "arm", "seed", "epoch", "value", "class"),
        tuple(rows),
    )


def break_even_plot(savings: Savings) -> Plot | None:
    """Plot what an arm has cost in all against the number of inferences, with the interval as a band."""
    estimates = [
        each
        for each in savings.break_even
        if each.arm == savings.verdict.arm and None not in {each.extra_joules, each.saved_joules}
    ]
    if not estimates:
        return None
    figure = make_canvas(WIDTH, 3.4)
    axes = add_axes(figure, grid="y")
    ends = [each.high or 0.0 for each in estimates]
    most = max([*ends, (savings.comparison.choices.per_day or 0.0) * 30, 1000.0]) * 1.25
    curves = [_net(each, most) for each in estimates]
    values = [value for curve in curves for value in curve]
    size, unit = energy_unit([end for _, end in curves])
    for place, (each, (start, end)) in enumerate(zip(estimates, curves, strict=True), start=1):
        axes.plot([0, most], [start / size, end / size], color=paint_of(place), linewidth=1.6)
        if each.low and each.high and start > 0:
            edges = [(start - start / bound * most) / size for bound in (each.low, each.high)]
            axes.fill_between(
                [0, most],
                [start / size, edges[0]],
                [start / size, edges[1]],
                color=paint_of(place),
                alpha=0.16,
                linewidth=0,
            )
        if each.inferences:
            axes.plot(each.inferences, 0, marker=marker_of(place), color=paint_of(place), markersize=8)
    lowest, highest = min(values) / size, max(values) / size
    margin = 0.12 * max(highest - lowest, abs(highest), abs(lowest), 1e-12)
    axes.set_ylim(min(lowest, 0) - margin, max(highest, 0) + margin)
    axes.set_xlim(0, most)
    axes.axhline(0, color=INK, linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("inferences")
    axes.set_ylabel(f"spent more than\nthe baseline ({unit})")
    handles: list[Any] = [
        Line2D([], [], color=paint_of(place), marker=marker_of(place), label=f"batch {each.batch}")
        for place, each in enumerate(estimates, start=1)
    ]
    add_key(figure, [*handles, Patch(facecolor=MUTED, alpha=0.25, label="interval")])
    return Plot(
        "break_even",
        "When the training is paid back",
        "Falling or rising lines of energy spent over inferences, one for each batch size.",
        join_class_words(class_of(savings, each.energy_class) for each in estimates),
        figure,
        (
            "arm",
            "batch",
            "extra_joules_of_training",
            "saved_joules_per_answer",
            "inference",
            "low",
            "high",
            "class",
        ),
        tuple(
            (
                each.arm,
                each.batch,
                each.extra_joules,
                each.saved_joules,
                each.inferences,
                each.low,
                each.high,
                each.energy_class,
            )
            for each in estimates
        ),
    )


def pareto_plot(savings: Savings) -> Plot | None:
    """Plot test accuracy against joules: each arm's mean with its intervals, every run as a small point.

    A line joins the arms that no other beats in both, by their means. Runs that do not count are hollow.
    """
    runs = [run for run in savings.runs if run.joules is not None and run.accuracy is not None]
    if not runs:
        return None
    size, unit = energy_unit([_joules(run) for run in runs])
    figure = make_canvas(WIDTH, 3.4)
    axes = add_axes(figure, grid="both")
    for run in runs:
        style = _style(savings, run.arm)
        hollow = {"mfc": style["color"] if run.counted else "none"}
        axes.plot(_joules(run) / size, run.accuracy, **style, **hollow, markersize=3.5, alpha=0.55)
    points = {point.arm: point for point in savings.answer.arms if point.joules is not None}
    front = [points[arm] for arm in savings.answer.front if arm in points]
    axes.plot([p.cost / size for p in front], [p.accuracy for p in front], color=MUTED, linewidth=1.0)
    for arm, point in points.items():
        bars: dict[str, Any] = {}
        if point.accuracy_low is not None and point.accuracy_high is not None:
            bars["yerr"] = [[point.accuracy - point.accuracy_low], [point.accuracy_high - point.accuracy]]
        if point.cost_low is not None and point.cost_high is not None:
            bars["xerr"] = [[(point.cost - point.cost_low) / size], [(point.cost_high - point.cost) / size]]
        style = _style(savings, arm)
        axes.errorbar(point.cost / size, point.accuracy, **bars, **style, markersize=8, linewidth=1.2)
    quality = savings.comparison.design.quality
    axes.set_xlim(left=0)
    axes.set_xlabel(f"energy of a training ({unit})")
    axes.set_ylabel(f"test {quality}")
    axes.ticklabel_format(axis="y", useOffset=False)
    found = {run.arm for run in runs}
    add_key(figure, _arm_key(savings, [arm for arm in savings.comparison.design.arms if arm in found]))
    return Plot(
        "accuracy",
        f"{capitalise(quality)} beside energy",
        f"Each arm's mean and its intervals, a small point for each run; energy across, test {quality} up.",
        class_of_verdict(savings),
        figure,
        ("arm", "seed", "pair", "joules", "class", f"{quality} (counted)", "counted"),
        tuple(
            (run.arm, run.seed, run.pair, run.joules, run.energy_class, run.accuracy, run.counted)
            for run in runs
        ),
    )


def models_plot(savings: Savings) -> Plot | None:
    """Plot the saving of every training claim as other power models have it, a row for each model."""
    claims = [claim for claim in savings.claims if claim.kind == "training" and claim.band]
    if not claims:
        return None
    models = list(dict.fromkeys(point.model for claim in claims for point in claim.band))
    figure = make_canvas(WIDTH, 0.3 * len(models) + 1.5)
    axes = add_axes(figure, grid="both")
    _zero_line(axes)
    rows: list[Row] = []
    for claim in claims:
        values = {point.model: point.saving_share for point in claim.band}
        axes.plot(
            [max(value, -_FAR) for value in values.values()],
            [models.index(model) for model in values],
            **_style(savings, claim.arm),
            markersize=6,
        )
        rows += [(claim.key, model, value, "modelled") for model, value in values.items()]
    _name_rows(axes, [_short(model, 40) for model in models])
    add_key(figure, _arm_key(savings, [claim.arm for claim in claims]))
    return Plot(
        "models",
        "The same runs under other power models",
        "A row for each power model, a point for each arm, about a line where nothing changes.",
        "modelled",
        figure,
        ("claim", "model", "saving_share", "class"),
        tuple(rows),
    )


_PLOTS: Final = {
    "pairs": (pairs_plot, "No pair counted in which both sides were metered, so no pairs are drawn."),
    "claims": (forest_plot, "No claim has an interval, so none is drawn."),
    "phases": (phases_plot, "No energy was metered, so no phases are drawn."),
    "history": (history_plot, "No counted run has a history, so no epochs are drawn."),
    "break_even": (break_even_plot, "No inference was metered, so no break-even is drawn."),
    "accuracy": (
        pareto_plot,
        "No run has both joules and a test result, so the two are not drawn together.",
    ),
    "models": (models_plot, "No energy was modelled, so no band of models is drawn."),
}
"""In the order of a report: the function of each plot, and the note where it has nothing to show."""
STEMS: Final = tuple(_PLOTS)


def _joules(run: RunLine) -> float:
    return run.joules or 0.0


def _style(savings: Savings, arm: str) -> dict[str, Any]:
    """Return the paint and marker of an arm, by its place in the design."""
    arms = savings.comparison.design.arms
    place = arms.index(arm) if arm in arms else len(arms)
    return {"color": paint_of(place), "marker": marker_of(place), "linestyle": "None"}


def _arm_key(savings: Savings, arms: Iterable[str], **more: Any) -> list[Line2D]:
    return [
        Line2D([], [], **{**_style(savings, arm), **more}, markersize=6, label=_short(arm)) for arm in arms
    ]


def _short(label: str, most: int = 18) -> str:
    """Return a label short enough for an axis; an underscore first would hide it, dollars are mathematics."""
    label = label if len(label) <= most else f"{label[: most - 1]}…"
    return (printable(label).lstrip("_") or "?").replace("$", r"\$")


def _zero_line(axes: Any) -> None:
    """Plot the line where nothing changes, on an axis of shares saved."""
    axes.axvline(0, color=INK, linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("← costs more\u2003saves →")


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _interval(axes: Any, at: float, change: Change, least: float, style: dict[str, Any]) -> None:
    """Plot a change with its interval, as an arrow at the edge where it extends beyond ``least``."""
    low, high = (max(end, least) for end in _ends(change))
    axes.plot([low, high], [at, at], color=style["color"], linewidth=style["lw"])
    point = {key: value for key, value in style.items() if key != "lw"}
    axes.plot(max(change.saving_share, least), at, **point)
    if _ends(change)[0] < least:
        axes.plot(least, at, marker=8, color=style["color"], markersize=7)


def _ends(change: Change) -> Point:
    """Return the interval with finite ends: a saving of everything, or a vast cost."""
    low, high = change.low, change.high
    return low if isfinite(low) else -2 * _FAR, high if isfinite(high) else 1.0


def _bounds(change: Change) -> tuple[float, float, float]:
    return change.saving_share, change.low, change.high


def _filling(place: int) -> dict[str, Any]:
    return {
        "facecolor": SERIES[place % len(SERIES)],
        "edgecolor": PAPER,
        "linewidth": 0.8,
        "hatch": _HATCHES[place % len(_HATCHES)],
    }


def _net(each: BreakEven, most: float) -> Point:
    """Return the joules spent more than the baseline, before the first inference and after ``most``."""
    start, saved = each.extra_joules or 0.0, each.saved_joules or 0.0
    return start, start - saved * most


def _first_counted(savings: Savings) -> list[ArmRun]:
    """Return the runs of the verdict's arm and its baseline in the first pair of which both counted."""
    verdict = savings.verdict
    counts = {(run.arm, run.pair) for run in savings.runs if run.counted}
    for pair in sorted({pair for arm, pair in counts if arm == verdict.arm}):
        runs = [savings.comparison.run_of(arm, pair) for arm in (verdict.baseline, verdict.arm)]
        found = [run for run in runs if run is not None and run.history]
        if (verdict.baseline, pair) in counts and any(run.arm == verdict.arm for run in found):
            return found
    return []


def _per_epoch(run: ArmRun) -> list[Point]:
    """Return joules per epoch between readings: none before the first, which includes the set-up."""
    metered = [(point.epoch, point.joules) for point in run.history if point.joules is not None]
    return [
        (epoch, (joules - before) / (epoch - since))
        for (since, before), (epoch, joules) in pairwise(metered)
        if epoch > since
    ]


def _series(run: ArmRun, panel: str, per_epoch: list[Point]) -> tuple[list[Point], str]:
    """Return the points of a panel and their class."""
    if panel == "energy":
        return per_epoch, join_classes(run.method.classes.values())
    if panel == "accuracy":
        values = [(point.epoch, point.validation_accuracy) for point in run.history]
        return [(epoch, value) for epoch, value in values if value is not None], "counted"
    return [(p.epoch, p.signals[panel]) for p in run.history if panel in p.signals], "derived"
