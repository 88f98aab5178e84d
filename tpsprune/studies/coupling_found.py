"""What the study ``coupling`` found: exponents beside −1/2, the ruling, and the sentences about the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from tpsprune.numerics.small_samples import Interval
from tpsprune.studies.catalogue import Prediction
from tpsprune.studies.coupling_cells import Cell, Ramp, cell_of, exponent, ramps_of
from tpsprune.studies.coupling_edges import FACTOR, PATIENCE
from tpsprune.studies.coupling_run import Coupled, CouplingSetup
from tpsprune.studies.coupling_tables import panels_of, tables_of
from tpsprune.studies.figures import count
from tpsprune.studies.finding import Finding, Quantity
from tpsprune.studies.verdict import Bound, Ruling

__all__ = ["found_by", "ruling_of"]

PREDICTED: Final = -0.5
RIVALS: Final = (0.0, -1.0)
"""Exponents that an interval must exclude to tell −1/2 from no dependence and from a plain 1/N."""
ENOUGH: Final = 0.75
"""The share of cells that must have an edge for an exponent of it: the rest is not missing at random."""
JUMP: Final = 0.9
"""The share of a rise between two λ half a decade apart from which on it is called a jump."""
LIMITS: Final = (
    "The published abstract gives no formula and does not say what N counts. What is put to the "
    "test is our TPS on one task family and one architecture, N taken by the units of its hidden layer.",
    "An exponent depends on what λ multiplies. `labels` adds λ times a mean over units to the loss, so that "
    "the pull on one unit goes as λ/N: counted per unit (λ/N, a sum in the place of the mean) every exponent "
    'of `labels` is one less; with `scaling = "sqrt-n"` it is 1/2 more. `weights` moves each oscillator by a '
    "force of order one, as in Kuramoto's model, and has no such freedom.",
    "Wider nets have more parameters too. Learning rate and weight decay were not tuned by size, nor by λ.",
    "Modulus, share, learning rate and level were chosen in trials on the first two seeds, so that narrow "
    "nets learn at all; two runs at other sizes and another modulus were broken off on the way, for their "
    "cost and because the narrowest nets did not learn. Some of these still have no λ that speeds up, and "
    "are missing there.",
    "A power law is fitted, not tested: a bend within two decades would go unseen by the interval. Widths of "
    "a seed share the split of the data, so points are not quite independent.",
    "An order parameter that stays high on the way down is not hysteresis by itself: it is read after a "
    "fixed number of steps at each λ, and whoever has learned the sums stays with what was learned. Random "
    "answers and the slower ramp are there to tell these apart; neither is slow without end.",
    "Finite nets have no phase transition in the strict sense. Five sizes cannot tell a continuous "
    "transition from a smooth crossover.",
)


@dataclass(frozen=True, slots=True)
class Edge:
    """A critical λ by one reading: of how many cells it is known, and its exponent if of enough."""

    name: str
    known: int
    cells: int
    measured: Interval | None
    judged: bool = True


def found_by(
    setup: CouplingSetup, done: Sequence[Coupled], prediction: Prediction, machine: Mapping[str, Any]
) -> Finding:
    """Return what the trainings of a finished plan say."""
    cells = _cells(setup, done)
    ramps = ramps_of(done)
    edges = _edges(cells)
    known = [edge.measured for edge in edges if edge.judged and edge.measured is not None]
    rises = _rises(ramps, setup.ramp_steps)
    return Finding(
        prediction=prediction,
        ruling=ruling_of(known),
        sentence=" ".join((_edge_sentence(edges, cells), _order_sentence(setup, ramps))),
        quantities=tuple(
            Quantity(name=name, predicted=predicted, measured=measured, bound=Bound())
            for name, predicted, measured in (
                *((edge.name, "−1/2" if edge.judged else "", edge.measured) for edge in edges),
                *((name, "", measured) for name, measured in rises.items()),
            )
            if measured is not None
        ),
        measure="exponent of N",
        counted="nets",
        predicted_range=(PREDICTED, PREDICTED),
        protocol=_protocol(setup, done),
        tables=tables_of(setup, cells, ramps, done),
        limits=LIMITS,
        command=(
            f"tpsprune study {prediction.name} --seeds {setup.common.seeds} --cap {setup.common.cap_steps}"
        ),
        settings={
            "seeds": list(setup.common.pair_seeds),
            "sizes": list(setup.sizes),
            "cap_steps": setup.common.cap_steps,
            **setup.decisive(),
        },
        machine=machine,
        trainings=tuple(done),
        panels=panels_of(setup, cells, ramps),
    )


def ruling_of(exponents: Sequence[Interval]) -> Ruling:
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


def _cells(setup: CouplingSetup, done: Sequence[Coupled]) -> list[Cell]:
    found = (
        cell_of(done, variant, width, seed)
        for variant, seeds in (("labels", setup.common.pair_seeds), ("weights", setup.half_seeds))
        for width in setup.sizes
        for seed in seeds
    )
    return [cell for cell in found if cell is not None]


def _edges(cells: Sequence[Cell]) -> list[Edge]:
    edges = []
    narrowest = min((cell.width for cell in cells), default=0)
    widest = max((cell.width for cell in cells), default=0)
    for variant in ("labels", "weights"):
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
            measured = exponent(points) if enough else None
            edges.append(Edge(f"{variant}, {words}", known, len(among), measured, judged))
    return edges


def _rises(ramps: Sequence[Ramp], steps_each: int) -> dict[str, Interval | None]:
    """Return the exponent of the λ at half rise, by variant and answers; it depends on the ramp's pace."""
    return {
        f"{variant}, λ at half rise, {answers}": exponent(
            (ramp.width, ramp.loop.rise if ramp.loop else None)
            for ramp in ramps
            if (ramp.variant, ramp.answers, ramp.steps_each) == (variant, answers, steps_each)
        )
        for variant in ("labels", "weights")
        for answers in ("sums", "random")
    }


def _edge_sentence(edges: Sequence[Edge], cells: Sequence[Cell]) -> str:
    judged = [(edge, edge.measured) for edge in edges if edge.judged]
    told = [f"{edge.name}, {_range(found)}" for edge, found in judged if found is not None]
    text = (
        f"exponents of N, with 95 % intervals: {'; '.join(told)}."
        if told
        else "no edge is known of enough nets."
    )
    per_unit = [
        _range(found, shift=-1.0)
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
        for each in ("labels", "weights")
    )
    return f"{text} The fastest training of all gained {best}."


def _order_sentence(setup: CouplingSetup, ramps: Sequence[Ramp]) -> str:
    """Say how wide the loops are, whether they are lag, and whether the order jumps."""
    return " ".join(_order_of(setup, variant, ramps) for variant in ("labels", "weights"))


def _order_of(setup: CouplingSetup, variant: str, ramps: Sequence[Ramp]) -> str:
    loops = [(ramp, ramp.loop) for ramp in ramps if ramp.variant == variant and ramp.loop is not None]
    areas = {
        answers: [
            loop.area
            for ramp, loop in loops
            if ramp.answers == answers and ramp.steps_each == setup.ramp_steps
        ]
        for answers in ("sums", "random")
    }
    at_both = [
        [
            loop.area
            for ramp, loop in loops
            if (ramp.answers, ramp.width, ramp.steps_each) == ("random", setup.slow_size, steps)
        ]
        for steps in (setup.ramp_steps, setup.slow_steps)
    ]
    if not all((*areas.values(), *at_both)):
        return f"The order of `{variant}` did not rise in every ramp: nothing is said of its loop."
    fast, slow = (fmean(each) for each in at_both)
    kept = "more than half of it stays" if slow > fast / 2 else "half of it or more goes: that was lag"
    most = max(loop.jump_share for _, loop in loops)
    jump = f"a jump, {most:.2f}" if most >= JUMP else f"no jump, {most:.2f} at most"
    paths = [
        (ramp.width, loop.width_decades)
        for ramp, loop in loops
        if (ramp.answers, ramp.steps_each) == ("random", setup.ramp_steps) and loop.width_decades is not None
    ]
    return (
        f"Order of `{variant}` up and down: the loop (1 = never comes back) is {fmean(areas['sums']):.2f} on "
        f"sums and {fmean(areas['random']):.2f} on random answers; at {setup.slow_size} units, led "
        f"{setup.slow_steps / setup.ramp_steps:g} times as slowly, {slow:.2f} in the place of {fast:.2f}, "
        f"{kept}; {jump} of the rise between neighbouring λ.{_sharper(paths)}"
    )


def _sharper(paths: Sequence[tuple[int, float]]) -> str:
    """Say over how many decades of λ the order rises in the narrowest and in the widest net."""
    if not paths:
        return ""
    widths = min(paths)[0], max(paths)[0]
    ends = [(end, fmean(decades for width, decades in paths if width == end)) for end in widths]
    told = " and ".join(f"{decades:.1f} decades of λ at {count(width)} units" for width, decades in ends)
    return f" On random answers it rises from 10 to 90 % over {told}."


def _range(interval: Interval, shift: float = 0.0) -> str:
    low, mean, high = (each + shift for each in (interval.low, interval.mean, interval.high))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _protocol(setup: CouplingSetup, done: Sequence[Coupled]) -> tuple[str, ...]:
    recipe = setup.common.recipe
    data: Any = recipe.task.data
    model: Any = recipe.task.model
    return (
        f"Task: recipe `{recipe.name}` made smaller: modulus {data.modulus}, {data.train_share:g} of the "
        f"pairs trained on, embedding {model.embedding}, learning rate {recipe.train.learning_rate:g}, "
        f"weight decay {recipe.train.weight_decay:g} at every λ. Hidden layers of "
        f"{', '.join(count(size) for size in setup.sizes)} units; the widest, `weights` and ramps on seeds "
        f"{', '.join(str(seed) for seed in setup.half_seeds)} alone.",
        "N: oscillators of a group as TPS counts them. `labels` (in the loss): the units. `weights` "
        "(decoupled): the elements of the first layer, 32 a unit, so that an exponent of units is one of N.",
        f"Held: λ fixed from the first step, on a grid of half decades, until validation accuracy "
        f"{setup.common.level:g} (read every {setup.common.reading_steps} steps). Smallest λ that speeds "
        f"up: from the fastest λ down, where the steps cross those of the same seed without TPS divided by "
        f"{FACTOR:g}, linear in logarithms. Largest that still learns: midway to the first λ above the "
        f"fastest that is not there within {PATIENCE} times the steps without TPS.",
        "Exponent: least squares of log λ on log N over all nets, Student's t-interval of the slope; given "
        f"where the edge is known of {ENOUGH:.0%} of the nets.",
        "Verdict, on exponents of edges as TPS is shipped: confirmed where every interval holds −1/2 and "
        "neither 0 nor −1, refuted where none holds −1/2, undecided else. What the order does has no "
        "part in it.",
        f"`sqrt-n`: {_scaled_words(setup, done)}",
        f"Ramps: one training, λ up by half decades and down again, {setup.ramp_steps} steps at each, at "
        f"every size but the largest; {setup.slow_steps} steps at {setup.slow_size} units. Order: mean R "
        "(`labels`), |z₁| of the first layer (`weights`), read at the end of each λ. Once on "
        "sums, once with the answers trained on dealt out at random. Loop: mean of down less up over "
        f"log λ, as a share of the rise. A jump: {JUMP:g} or more of the rise between neighbouring λ; the "
        "line stood at 0.5 and was moved after a first look, the grid being no finer than half a decade.",
    )


def _scaled_words(setup: CouplingSetup, done: Sequence[Coupled]) -> str:
    """Say what λ = √N with ``sqrt-n`` took beside λ = 1 without: the same, if the two are one."""
    pairs = [
        (plain.steps, scaled.steps)
        for scaled in done
        if scaled.trial.scaling == "sqrt-n"
        for plain in done
        if plain.trial.couplings == (1.0,)
        and (plain.trial.variant, plain.trial.width, plain.trial.seed)
        == ("labels", scaled.trial.width, scaled.trial.seed)
        and plain.trial.scaling == "none"
    ]
    told = ", ".join(f"{plain} and {scaled}" for plain, scaled in pairs)
    return (
        "the same term with λ times N^(−1/2), so every exponent is 1/2 more and needs no trainings of its "
        f"own. Held against λ = 1 without, λ = √N with it took, at {setup.slow_size} units, so many steps: "
        f"{told or 'none was done'}."
    )
