"""The study ``coupling`` in tables and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import exp, log
from statistics import fmean
from typing import Final

from tpsprune.studies.coupling_cells import Cell, Ramp, without_tps
from tpsprune.studies.coupling_edges import coupling_of
from tpsprune.studies.coupling_run import Coupled, CouplingSetup
from tpsprune.studies.figures import count
from tpsprune.studies.finding import Curve, Panel, Table

__all__ = ["panels_of", "tables_of"]

ORDER_NAMES: Final = {"labels": "mean R", "weights": "|z₁| of the first layer"}


def tables_of(
    setup: CouplingSetup, cells: Sequence[Cell], ramps: Sequence[Ramp], done: Sequence[Coupled]
) -> tuple[Table, ...]:
    """Return edges, steps by λ, and loops, each by width."""
    return (
        _edge_table(setup, cells, done),
        *(_step_table(setup, cells, variant) for variant in ("labels", "weights")),
        _loop_table(ramps),
    )


def panels_of(setup: CouplingSetup, cells: Sequence[Cell], ramps: Sequence[Ramp]) -> tuple[Panel, ...]:
    """Return the edges against N, and the order against λ on its way up and down."""
    return (
        _edge_panel(cells),
        *(_order_panel(setup, ramps, variant) for variant in ORDER_NAMES),
    )


def _edge_table(setup: CouplingSetup, cells: Sequence[Cell], done: Sequence[Coupled]) -> Table:
    rows = []
    for width in setup.sizes:
        plain = [without_tps(done, width, seed) for seed in setup.common.pair_seeds]
        steps = [each.steps for each in plain if each is not None and each.reached]
        row = [count(width), f"{_middle(steps):.0f}" if steps else "never"]
        for variant in ("labels", "weights"):
            mine = [cell for cell in cells if (cell.variant, cell.width) == (variant, width)]
            row += [_known([cell.lower for cell in mine]), _known([cell.upper for cell in mine])]
        rows.append(tuple(row))
    return Table(
        title="Edges of λ by width: geometric mean over seeds, and of how many nets they are known",
        columns=(
            "units",
            "steps without TPS",
            "`labels`, speeds up from",
            "still learns to",
            "`weights`, speeds up from",
            "still learns to",
        ),
        rows=tuple(rows),
    )


def _step_table(setup: CouplingSetup, cells: Sequence[Cell], variant: str) -> Table:
    mine = [cell for cell in cells if cell.variant == variant]
    ranks = sorted({rank for cell in mine for rank in cell.outcomes})
    rows = []
    for width in setup.sizes:
        row = [count(width)]
        for rank in ranks:
            found = [
                (cell.without, cell.outcomes[rank])
                for cell in mine
                if cell.width == width and rank in cell.outcomes
            ]
            speeds = [without / outcome.steps for without, outcome in found if outcome.reached]
            missed = len(found) - len(speeds)
            told = [f"{_middle(speeds):.2f}"] if speeds else []
            told += [f"{missed} failed"] if missed else []
            row.append(", ".join(told))
        rows.append(tuple(row))
    return Table(
        title=f"Steps without TPS over steps with `{variant}`, by λ: geometric mean of seeds that got there",
        columns=("units", *(f"{coupling_of(rank):.3g}" for rank in ranks)),
        rows=tuple(rows),
    )


def _loop_table(ramps: Sequence[Ramp]) -> Table:
    keys = dict.fromkeys((each.variant, each.answers, each.steps_each, each.width) for each in ramps)
    rows = []
    for variant, answers, steps_each, width in sorted(keys):
        mine = [
            each.loop
            for each in ramps
            if (each.variant, each.answers, each.steps_each, each.width)
            == (variant, answers, steps_each, width)
        ]
        loops = [loop for loop in mine if loop is not None]
        if not loops:
            rows.append((variant, answers, str(steps_each), count(width), *("no rise",) * 6))
            continue
        widths = [loop.width_decades for loop in loops if loop.width_decades is not None]
        rows.append(
            (
                variant,
                answers,
                str(steps_each),
                count(width),
                f"{fmean(loop.low for loop in loops):.2f} to {fmean(loop.high for loop in loops):.2f}",
                _known([loop.rise for loop in loops]),
                _known([loop.fall for loop in loops], none="never fell"),
                f"{fmean(widths):.2f}" if widths else "unknown",
                f"{max(loop.jump_share for loop in loops):.2f}",
                f"{fmean(loop.area for loop in loops):.2f}",
            )
        )
    return Table(
        title="Order up and down, mean over seeds",
        columns=(
            "TPS",
            "answers",
            "steps a λ",
            "units",
            "order from first to top",
            "λ at half rise",
            "λ at half fall",
            "decades from 10 to 90 %",
            "largest jump",
            "loop",
        ),
        rows=tuple(rows),
    )


def _edge_panel(cells: Sequence[Cell]) -> Panel:
    curves = []
    for variant in ("labels", "weights"):
        for words, edge in (("speeds up from", _lower), ("learns to", _upper)):
            points = _by_width(cells, variant, edge)
            if points:
                curves.append(Curve(name=f"{variant}, {words}", points=points))
    if curves:
        (left, start), (right, _) = curves[0].points[0], curves[0].points[-1]
        line = ((left, start), (right, start * (right / left) ** -0.5))
        curves.insert(1, Curve(name="predicted slope, −1/2", points=line, dashed=True))
    return Panel(title="edges of λ", x="units", y="λ", curves=tuple(curves), log_x=True, log_y=True)


def _lower(cell: Cell) -> float | None:
    return cell.lower


def _upper(cell: Cell) -> float | None:
    return cell.upper


def _by_width(
    cells: Iterable[Cell], variant: str, edge: Callable[[Cell], float | None]
) -> tuple[tuple[float, float], ...]:
    found: dict[int, list[float]] = {}
    for cell in cells:
        value = edge(cell)
        if cell.variant == variant and value is not None:
            found.setdefault(cell.width, []).append(value)
    return tuple((float(width), _middle(values)) for width, values in sorted(found.items()))


def _order_panel(setup: CouplingSetup, ramps: Sequence[Ramp], variant: str) -> Panel:
    curves = []
    for steps_each, width in ((setup.ramp_steps, setup.slow_size), (setup.slow_steps, setup.slow_size)):
        for answers in ("sums", "random"):
            mine = [
                each.done
                for each in ramps
                if (each.variant, each.answers, each.steps_each, each.width)
                == (variant, answers, steps_each, width)
            ]
            if not mine:
                continue
            couplings = mine[0].trial.couplings
            orders = [fmean(read) for read in zip(*(each.orders for each in mine), strict=True)]
            points = list(zip(couplings, orders, strict=True))
            top = len(points) // 2
            name = f"{answers}, {steps_each} steps a λ"
            curves.append(Curve(name=f"{name}, up", points=tuple(points[: top + 1])))
            curves.append(Curve(name="down", points=tuple(points[top:]), dashed=True))
    return Panel(
        title=f"{variant}, {setup.slow_size} units",
        x="λ",
        y=ORDER_NAMES[variant],
        curves=tuple(curves),
        log_x=True,
    )


def _middle(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return exp(fmean(log(value) for value in values))


def _known(values: Sequence[float | None], none: str = "none") -> str:
    found = [value for value in values if value is not None]
    return f"{_middle(found):.3g} ({len(found)} of {len(values)})" if found else none
