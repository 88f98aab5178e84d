"""The finding of the study ``coupling``: exponents, the ruling, sentences, tables and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import exp, log
from statistics import fmean
from typing import Any, Final, final

from tpsprune.numerics.small_samples import Interval
from tpsprune_studies.catalogue import Prediction, write_protocol
from tpsprune_studies.coupling_edges import (
    FACTOR,
    PATIENCE,
    Answers,
    Cell,
    CouplingTraining,
    Ramp,
    collect_cell,
    collect_ramps,
    coupling_of,
    find_without_tps,
    fit_exponent,
)
from tpsprune_studies.finding import Curve, Finding, Panel, Quantity, Ruling, Table
from tpsprune_studies.setup import Setup

VARIANTS: Final = ("labels", "weights")
ANSWERS: Final[tuple[Answers, ...]] = ("sums", "random")
ORDER_NAMES: Final = {"labels": "mean R", "weights": "|z₁| of the first layer"}
PREDICTED: Final = -0.5
RIVALS: Final = (0.0, -1.0)
"""Exponents that an interval must exclude to tell −1/2 from no dependence and from 1/N."""
ENOUGH: Final = 0.75
"""The share of cells that must have an edge for an exponent of it: the rest is not missing at random."""
JUMP: Final = 0.9
"""The share of a rise between two λ half a decade apart from which on it is called a jump."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CouplingSetup(Setup):
    """The settings that studies share, the widths, and the steps that a ramp spends at each λ.

    What is expensive takes the first half of the seeds: ramps, ``weights``, and the widest nets. The ramp of
    ``slow_size`` is run once more at ``slow_steps``: a loop that is only lag shrinks there.
    """

    sizes: tuple[int, ...]
    ramp_steps: int = 50
    slow_steps: int = 200
    slow_size: int = 160

    @property
    def half_seeds(self) -> range:
        """The seeds of ramps, of ``weights`` and of the widest nets."""
        return self.pair_seeds[: (self.seeds + 1) // 2]

    def decisive(self) -> dict[str, Any]:
        """Return, flat, every setting that a finished training depends on and its trial does not name."""
        idle = {
            "weight_decays",
            "task.model.widths",
            "tps.coupling",
            "tps.apply",
            "tps.scaling",
            "tps.warmup_share",
            "pilot_seed",
            "cap_steps",
        }
        return {
            **{name: value for name, value in Setup.decisive(self).items() if name not in idle},
            "train.weight_decay": self.recipe.train.weight_decay,
        }


@dataclass(frozen=True, slots=True)
class FittedEdge:
    """An edge of λ: of how many cells it was measured, and its exponent if of enough."""

    name: str
    known: int
    cells: int
    measured: Interval | None
    judged: bool = True


def write_finding(
    setup: CouplingSetup, done: Sequence[CouplingTraining], prediction: Prediction, machine: Mapping[str, Any]
) -> Finding:
    """Return what the trainings of a finished plan show."""
    cells = _collect_cells(setup, done)
    ramps = collect_ramps(done)
    edges = _fit_edges(cells)
    known = [edge.measured for edge in edges if edge.judged and edge.measured is not None]
    rises = _fit_rises(ramps, setup.ramp_steps)
    return Finding(
        prediction=prediction,
        ruling=rule(known),
        sentence=" ".join(
            (_write_edges(edges, cells), *(_write_order(setup, each, ramps) for each in VARIANTS))
        ),
        quantities=tuple(
            Quantity(name=name, predicted=predicted, measured=measured)
            for name, predicted, measured in (
                *((edge.name, "−1/2" if edge.judged else "", edge.measured) for edge in edges),
                *((name, "", measured) for name, measured in rises.items()),
            )
            if measured is not None
        ),
        measure="exponent of N",
        counted="nets",
        predicted_range=(PREDICTED, PREDICTED),
        protocol=write_protocol(
            prediction.name,
            setup=setup,
            sizes=", ".join(f"{size:,}" for size in setup.sizes),
            half_seeds=", ".join(map(str, setup.half_seeds)),
            factor=FACTOR,
            patience=PATIENCE,
            enough=ENOUGH,
            scaled=_describe_scaled(setup, done),
            jump=JUMP,
        ),
        tables=(
            _edge_table(setup, cells, done),
            *(_step_table(setup, cells, variant) for variant in VARIANTS),
            _loop_table(ramps),
        ),
        command=setup.command(prediction.name),
        settings={
            "seeds": list(setup.pair_seeds),
            "sizes": list(setup.sizes),
            "cap_steps": setup.cap_steps,
            **setup.decisive(),
        },
        machine=machine,
        trainings=tuple(done),
        panels=(_edge_panel(cells), *(_order_panel(setup, ramps, variant) for variant in VARIANTS)),
    )


def rule(exponents: Sequence[Interval]) -> Ruling:
    """Return confirmed where every interval holds −1/2 and neither 0 nor −1, refuted where none holds −1/2.

    Undecided else, and where there is no exponent at all.
    """
    holds = [each.low <= PREDICTED <= each.high for each in exponents]
    if not holds or (any(holds) and not all(holds)):
        return Ruling.UNDECIDED
    if not any(holds):
        return Ruling.REFUTED
    blurred = any(each.low <= rival <= each.high for each in exponents for rival in RIVALS)
    return Ruling.UNDECIDED if blurred else Ruling.CONFIRMED


def _collect_cells(setup: CouplingSetup, done: Sequence[CouplingTraining]) -> list[Cell]:
    found = (
        collect_cell(done, variant, width, seed)
        for variant, seeds in (("labels", setup.pair_seeds), ("weights", setup.half_seeds))
        for width in setup.sizes
        for seed in seeds
    )
    return [cell for cell in found if cell is not None]


def _fit_edges(cells: Sequence[Cell]) -> list[FittedEdge]:
    edges = []
    narrowest = min((cell.width for cell in cells), default=0)
    widest = max((cell.width for cell in cells), default=0)
    for variant in VARIANTS:
        mine = [cell for cell in cells if cell.variant == variant]
        rest = [cell for cell in mine if cell.width > narrowest]
        wide = [cell for cell in mine if 10 * cell.width > widest]
        for words, judged, among, values in (
            ("smallest λ that speeds up", True, mine, [cell.lower for cell in mine]),
            ("speeds up, without the narrowest", False, rest, [cell.lower for cell in rest]),
            ("speeds up, widest decade", False, wide, [cell.lower for cell in wide]),
            ("twice as fast", False, mine, [cell.doubles for cell in mine]),
            ("largest λ that still learns", True, mine, [cell.upper for cell in mine]),
            ("still learns, widest decade", False, wide, [cell.upper for cell in wide]),
        ):
            known = sum(value is not None for value in values)
            points = zip((cell.width for cell in among), values, strict=True)
            enough = bool(among) and known >= ENOUGH * len(among)
            measured = fit_exponent(points) if enough else None
            edges.append(FittedEdge(f"{variant}, {words}", known, len(among), measured, judged))
    return edges


def _fit_rises(ramps: Sequence[Ramp], steps_each: int) -> dict[str, Interval | None]:
    """Return the exponent of the λ at half rise, by variant and answers; it depends on the ramp's pace."""
    return {
        f"{variant}, λ at half rise, {answers}": fit_exponent(
            (ramp.width, ramp.loop.rise if ramp.loop else None)
            for ramp in ramps
            if ramp.kind[:3] == (variant, answers, steps_each)
        )
        for variant, answers in product(VARIANTS, ANSWERS)
    }


def _write_edges(edges: Sequence[FittedEdge], cells: Sequence[Cell]) -> str:
    judged = [(edge, edge.measured) for edge in edges if edge.judged]
    known = [f"{edge.name}, {_format_range(found)}" for edge, found in judged if found is not None]
    text = (
        f"exponents of N, with 95 % intervals: {'; '.join(known)}."
        if known
        else "no edge is known of enough nets."
    )
    per_unit = [
        _format_range(found, shift=-1.0)
        for edge, found in judged
        if found is not None and edge.name.startswith("labels")
    ]
    if per_unit:
        text += f" Counted per unit (λ/N) those of `labels` are {' and '.join(per_unit)}."
    for edge, found in judged:
        if found is None:
            text += f" No exponent: {edge.name}, known of {edge.known} of {edge.cells} nets only."
    best = " and ".join(
        f"{max((cell.best for cell in cells if cell.variant == each), default=0):.1f} times with `{each}`"
        for each in VARIANTS
    )
    return f"{text} The fastest training of all gained {best}."


def _write_order(setup: CouplingSetup, variant: str, ramps: Sequence[Ramp]) -> str:
    """Describe how wide the loops are, whether they are lag, and whether the order jumps."""
    loops = [
        (ramp.kind[1:], ramp.loop) for ramp in ramps if ramp.kind[0] == variant and ramp.loop is not None
    ]
    areas = {
        answers: [loop.area for kind, loop in loops if kind[:2] == (answers, setup.ramp_steps)]
        for answers in ANSWERS
    }
    at_both = [
        [loop.area for kind, loop in loops if kind == ("random", steps_each, setup.slow_size)]
        for steps_each in (setup.ramp_steps, setup.slow_steps)
    ]
    if not all((*areas.values(), *at_both)):
        return f"The order of `{variant}` did not rise in every ramp: nothing is said of its loop."
    fast, slow = (fmean(each) for each in at_both)
    kept = "more than half of it stays" if slow > fast / 2 else "half of it or more goes: that was lag"
    most = max(loop.jump_share for _, loop in loops)
    jump = f"a jump, {most:.2f}" if most >= JUMP else f"no jump, {most:.2f} at most"
    paths = [
        (kind[2], loop.width_decades)
        for kind, loop in loops
        if kind[:2] == ("random", setup.ramp_steps) and loop.width_decades is not None
    ]
    return (
        f"Order of `{variant}` up and down: the loop (1 = never comes back) is {fmean(areas['sums']):.2f} on "
        f"sums and {fmean(areas['random']):.2f} on random answers; at {setup.slow_size} units, led "
        f"{setup.slow_steps / setup.ramp_steps:g} times as slowly, {slow:.2f} in the place of {fast:.2f}, "
        f"{kept}; {jump} of the rise between neighbouring λ.{_write_sharpness(paths)}"
    )


def _write_sharpness(paths: Sequence[tuple[int, float]]) -> str:
    """Describe over how many decades of λ the order rises in the narrowest and in the widest net."""
    if not paths:
        return ""
    widths = min(paths)[0], max(paths)[0]
    ends = [(end, fmean(decades for width, decades in paths if width == end)) for end in widths]
    listed = " and ".join(f"{decades:.1f} decades of λ at {width:,} units" for width, decades in ends)
    return f" On random answers it rises from 10 to 90 % over {listed}."


def _format_range(interval: Interval, shift: float = 0.0) -> str:
    low, mean, high = (each + shift for each in (interval.low, interval.mean, interval.high))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _describe_scaled(setup: CouplingSetup, done: Sequence[CouplingTraining]) -> str:
    """Compare the steps of λ = √N with ``sqrt-n`` to those of λ = 1 without: equal, if the two are one."""
    pairs = [
        (unscaled.steps, scaled.steps)
        for scaled in done
        if scaled.trial.scaling == "sqrt-n"
        for unscaled in done
        if unscaled.trial == replace(scaled.trial, couplings=(1.0,), scaling="none")
    ]
    listed = ", ".join(f"{unscaled} and {scaled}" for unscaled, scaled in pairs)
    return (
        "the same term with λ times N^(−1/2), so every exponent is 1/2 more and needs no trainings of its "
        f"own. Held against λ = 1 without, λ = √N with it took, at {setup.slow_size} units, so many steps: "
        f"{listed or 'none was done'}."
    )


def _edge_table(setup: CouplingSetup, cells: Sequence[Cell], done: Sequence[CouplingTraining]) -> Table:
    rows = []
    for width in setup.sizes:
        baselines = [find_without_tps(done, width, seed) for seed in setup.pair_seeds]
        steps = [each.steps for each in baselines if each is not None and each.reached]
        row = [f"{width:,}", f"{_geometric_mean(steps):.0f}" if steps else "never"]
        for variant in VARIANTS:
            mine = [cell for cell in cells if (cell.variant, cell.width) == (variant, width)]
            row += [
                _format_mean([each.lower for each in mine]),
                _format_mean([each.upper for each in mine]),
            ]
        rows.append(tuple(row))
    return Table(
        "Edges of λ by width: geometric mean over seeds, and of how many nets they are known",
        "units | steps without TPS | `labels`, speeds up from | still learns to | "
        "`weights`, speeds up from | still learns to",
        rows,
    )


def _step_table(setup: CouplingSetup, cells: Sequence[Cell], variant: str) -> Table:
    mine = [cell for cell in cells if cell.variant == variant]
    ranks = sorted({rank for cell in mine for rank in cell.steps})
    rows = []
    for width in setup.sizes:
        row = [f"{width:,}"]
        for rank in ranks:
            tried = [
                (each.without, each.steps[rank])
                for each in mine
                if each.width == width and rank in each.steps
            ]
            speeds = [without / steps.taken for without, steps in tried if steps.reached]
            missed = len(tried) - len(speeds)
            texts = [f"{_geometric_mean(speeds):.2f}"] if speeds else []
            row.append(", ".join([*texts, *([f"{missed} failed"] if missed else [])]))
        rows.append(tuple(row))
    return Table(
        f"Steps without TPS over steps with `{variant}`, by λ: geometric mean of seeds that got there",
        " | ".join(["units", *(f"{coupling_of(rank):.3g}" for rank in ranks)]),
        rows,
    )


def _loop_table(ramps: Sequence[Ramp]) -> Table:
    rows = []
    for kind in sorted({ramp.kind for ramp in ramps}):
        variant, answers, steps_each, width = kind
        loops = [ramp.loop for ramp in ramps if ramp.kind == kind and ramp.loop is not None]
        if not loops:
            rows.append((variant, answers, str(steps_each), f"{width:,}", *("no rise",) * 6))
            continue
        widths = [loop.width_decades for loop in loops if loop.width_decades is not None]
        rows.append(
            (
                variant,
                answers,
                str(steps_each),
                f"{width:,}",
                f"{fmean(loop.low for loop in loops):.2f} to {fmean(loop.high for loop in loops):.2f}",
                _format_mean([loop.rise for loop in loops]),
                _format_mean([loop.fall for loop in loops], none="never fell"),
                f"{fmean(widths):.2f}" if widths else "unknown",
                f"{max(loop.jump_share for loop in loops):.2f}",
                f"{fmean(loop.area for loop in loops):.2f}",
            )
        )
    return Table(
        "Order up and down, mean over seeds",
        "TPS | answers | steps a λ | units | order from first to top | λ at half rise | λ at half fall | "
        "decades from 10 to 90 % | largest jump | loop",
        rows,
    )


def _edge_panel(cells: Sequence[Cell]) -> Panel:
    curves = []
    for variant in VARIANTS:
        for words, edge in (("speeds up from", "lower"), ("learns to", "upper")):
            if points := _average_edge(cells, variant, edge):
                curves.append(Curve(name=f"{variant}, {words}", points=points))
    if curves:
        (left, start), (right, _) = curves[0].points[0], curves[0].points[-1]
        line = ((left, start), (right, start * (right / left) ** -0.5))
        curves.insert(1, Curve(name="predicted slope, −1/2", points=line, dashed=True))
    return Panel(title="edges of λ", x="units", y="λ", curves=tuple(curves), log_x=True, log_y=True)


def _average_edge(cells: Sequence[Cell], variant: str, edge: str) -> tuple[tuple[float, float], ...]:
    """Return the widths at which an edge was measured, and its geometric mean over seeds."""
    by_width: dict[int, list[float]] = {}
    for cell in cells:
        value = getattr(cell, edge)
        if cell.variant == variant and value is not None:
            by_width.setdefault(cell.width, []).append(value)
    return tuple((float(width), _geometric_mean(values)) for width, values in sorted(by_width.items()))


def _order_panel(setup: CouplingSetup, ramps: Sequence[Ramp], variant: str) -> Panel:
    curves = []
    for steps_each, answers in product((setup.ramp_steps, setup.slow_steps), ANSWERS):
        kind = (variant, answers, steps_each, setup.slow_size)
        mine = [ramp.training for ramp in ramps if ramp.kind == kind]
        if not mine:
            continue
        orders = [fmean(read) for read in zip(*(each.orders for each in mine), strict=True)]
        points = tuple(zip(mine[0].trial.couplings, orders, strict=True))
        top = len(points) // 2
        curves.append(Curve(name=f"{answers}, {steps_each} steps a λ, up", points=points[: top + 1]))
        curves.append(Curve(name="down", points=points[top:], dashed=True))
    return Panel(
        title=f"{variant}, {setup.slow_size} units",
        x="λ",
        y=ORDER_NAMES[variant],
        curves=tuple(curves),
        log_x=True,
    )


def _geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return exp(fmean(log(value) for value in values))


def _format_mean(values: Sequence[float | None], none: str = "none") -> str:
    found = [value for value in values if value is not None]
    return f"{_geometric_mean(found):.3g} ({len(found)} of {len(values)})" if found else none
