"""What the trainings of the study ``coupling`` show together: exponents, the ruling and curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, geometric_mean
from typing import Any, Final, final

from tpsprune.numerics.small_samples import Interval
from tpsprune_studies.coupling_edges import (
    Answers,
    Cell,
    Ramp,
    fit_exponent,
)
from tpsprune_studies.finding import Curve, Panel, Ruling
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

    def describe(self) -> dict[str, Any]:
        """Return the settings that a finding names."""
        return {**Setup.describe(self), "sizes": list(self.sizes), "cap_steps": self.cap_steps}

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


def fit_edges(cells: Sequence[Cell]) -> list[FittedEdge]:
    """Return the exponent of every edge, by variant; those without the narrowest nets or of the widest too."""
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


def fit_rises(ramps: Sequence[Ramp], steps_each: int) -> dict[str, Interval | None]:
    """Return the exponent of the λ at half rise, by variant and answers; it depends on the ramp's pace."""
    return {
        f"{variant}, λ at half rise, {answers}": fit_exponent(
            (ramp.width, ramp.loop.rise if ramp.loop else None)
            for ramp in ramps
            if ramp.kind[:3] == (variant, answers, steps_each)
        )
        for variant, answers in product(VARIANTS, ANSWERS)
    }


def describe_mean(values: Sequence[float | None], none: str = "none") -> str:
    """Return the geometric mean of what is known, and of how many it is known.

    >>> describe_mean([2.0, None, 8.0])
    '4 (2 of 3)'
    """
    found = [value for value in values if value is not None]
    return f"{geometric_mean(found):.3g} ({len(found)} of {len(values)})" if found else none


def draw_panels(setup: CouplingSetup, cells: Sequence[Cell], ramps: Sequence[Ramp]) -> tuple[Panel, ...]:
    """Return the curves: edges by width, and the order of each variant up and down."""
    edges = [
        Curve(name=f"{variant}, {words}", points=points)
        for variant, (words, edge) in product(VARIANTS, (("speeds up from", "lower"), ("learns to", "upper")))
        if (points := tuple(_average_edge(cells, variant, edge)))
    ]
    if edges:
        (left, start), (right, _) = edges[0].points[0], edges[0].points[-1]
        line = ((left, start), (right, start * (right / left) ** PREDICTED))
        edges.insert(1, Curve(name="predicted slope, −1/2", points=line, dashed=True))
    return (
        Panel(title="edges of λ", x="units", y="λ", curves=tuple(edges), log_x=True, log_y=True),
        *(
            Panel(
                title=f"{variant}, {setup.slow_size} units",
                x="λ",
                y=ORDER_NAMES[variant],
                curves=tuple(_follow_order(setup, ramps, variant)),
                log_x=True,
            )
            for variant in VARIANTS
        ),
    )


def _average_edge(cells: Sequence[Cell], variant: str, edge: str) -> Iterator[tuple[float, float]]:
    """Yield the widths at which an edge was measured, and its geometric mean over seeds."""
    for width in sorted({cell.width for cell in cells}):
        mine = [getattr(cell, edge) for cell in cells if (cell.variant, cell.width) == (variant, width)]
        if known := [value for value in mine if value is not None]:
            yield float(width), geometric_mean(known)


def _follow_order(setup: CouplingSetup, ramps: Sequence[Ramp], variant: str) -> Iterator[Curve]:
    for steps_each, answers in product((setup.ramp_steps, setup.slow_steps), ANSWERS):
        kind = (variant, answers, steps_each, setup.slow_size)
        if mine := [ramp.training for ramp in ramps if ramp.kind == kind]:
            orders = [fmean(read) for read in zip(*(each.orders for each in mine), strict=True)]
            points = tuple(zip(mine[0].trial.couplings, orders, strict=True))
            top = len(points) // 2
            yield Curve(name=f"{answers}, {steps_each} steps a λ, up", points=points[: top + 1])
            yield Curve(name="down", points=points[top:], dashed=True)
