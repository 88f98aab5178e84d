"""Study ``coupling``: how the critical coupling goes with the number of oscillators, and how order sets in.

Nets of one hidden layer, two decades of widths, learn modular addition at many couplings λ, each held; the
edges of what speeds up and of what still learns are fitted against N. Then λ is raised and lowered within one
training, on sums and on random labels, where there is no rule to learn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean, geometric_mean
from typing import Any, Final, final

import torch

from tpsprune.numerics.small_samples import Interval
from tpsprune.recipe import Recipe, read
from tpsprune.recipe.train import Tps
from tpsprune_studies.catalogue import STUDIES
from tpsprune_studies.coupling_edges import (
    FACTOR,  # noqa: F401 -- its page names it
    PATIENCE,
    Answers,
    Cell,
    CouplingTraining,
    CouplingTrial,
    Steps,
    choose_next_rank,
    coupling_of,
    fit_exponent,
)
from tpsprune_studies.finding import Curve, Finding, Panel, Plan, Quantity, Ruling, Strand, by_trial, follow
from tpsprune_studies.setup import Climb, Setup, at_seed, prepare, resize

TRAINING: Final = CouplingTraining
SIZES: Final = (64, 160, 400, 1000, 2500, 6400)
FIRST: Final[Mapping[str, tuple[int, ...]]] = {"labels": (-2, -1, 0), "weights": (-1, 0)}
RAMPS: Final[Mapping[str, range]] = {"labels": range(-4, 6), "weights": range(-2, 5)}
"""Ranks of λ, half decades: those that every cell begins with, and those that a ramp climbs."""
USUAL_RANKS: Final = 7
CHANGES: Final = (
    "task.data.modulus=23",
    "task.data.train_share=0.8",
    "task.data.validation_share=0.95",
    "task.model.embedding=16",
    "train.learning_rate=0.003",
)
"""The recipe's task made small enough for hundreds of nets."""
LEVEL: Final = 0.9
ORDERS: Final = {"labels": ("tps_coherence", ""), "weights": ("tps_z1", "hidden.0")}
"""The order parameter of each variant: its signal and its group."""
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


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:  # noqa: ARG001 -- the protocol of a study; this one changes its recipe before it is read
    """Return the settings of the study at that size."""
    smaller = read(STUDIES["coupling"].recipe, CHANGES)
    setup = CouplingSetup(recipe=smaller, level=LEVEL, reading_steps=10, sizes=SIZES)
    return resize(setup, seeds, cap_steps, full=full)


def plan(setup: CouplingSetup, done: Sequence[CouplingTraining]) -> Plan:
    """Return, seed by seed and width by width, the trainings needed so far."""
    return _follow(setup, done)[0]


def _follow(
    setup: CouplingSetup, done: Sequence[CouplingTraining]
) -> tuple[Plan, list[Cell], list[tuple[int, int]]]:
    """Return the plan, the cells that are done, and steps without and with ``sqrt-n``."""
    finished = by_trial(done)
    plans, cells, scaled = [], [], []
    for seed in setup.pair_seeds:
        expensive = seed in setup.half_seeds
        for width in setup.sizes if expensive else setup.sizes[:-1]:
            for variant in VARIANTS if expensive else VARIANTS[:1]:
                needed, cell = follow(_climb_cell(setup, variant, width, seed), finished)
                plans.append(needed)
                cells += [cell] if cell else []
        needed, pair = follow(_climb_scaled(setup, setup.slow_size, seed), finished)
        plans += [needed, Plan(tuple(_plan_ramps(setup, seed)) if expensive else ())]
        scaled += [pair] if pair else []
    return Plan.join(plans), sorted(cells, key=lambda cell: (cell.variant, cell.width, cell.seed)), scaled


def _climb_cell(
    setup: CouplingSetup, variant: str, width: int, seed: int
) -> Strand[CouplingTrial, CouplingTraining, Cell | None]:
    """Train without TPS, then down to the first λ that does not speed up and up to the first that fails."""
    later = [f"held {variant} {width}"]
    baseline = yield CouplingTrial("none", width, seed, (0.0,), setup.cap_steps), later * USUAL_RANKS
    steps: dict[int, Steps] = {}
    while baseline.reached:
        rank = choose_next_rank(baseline.steps, steps, FIRST[variant])
        if rank is None:
            return Cell(variant=variant, width=width, seed=seed, without=baseline.steps, steps=steps)
        trial = CouplingTrial(variant, width, seed, (coupling_of(rank),), PATIENCE * baseline.steps)
        training = yield trial, later * (USUAL_RANKS - len(steps) - 1)
        steps[rank] = Steps(training.steps, training.reached)
    return None


def _climb_scaled(
    setup: CouplingSetup, width: int, seed: int
) -> Strand[CouplingTrial, CouplingTraining, tuple[int, int] | None]:
    """Train at λ = 1, and at its equal with ``sqrt-n``, which is λ = √N."""
    baseline = yield CouplingTrial("none", width, seed, (0.0,), setup.cap_steps), ()
    if not baseline.reached:
        return None
    trial = CouplingTrial("labels", width, seed, (1.0,), PATIENCE * baseline.steps)
    unscaled = yield trial, ()
    scaled = yield replace(trial, couplings=(width**0.5,), scaling="sqrt-n"), ()
    return unscaled.steps, scaled.steps


def _plan_ramps(setup: CouplingSetup, seed: int) -> Iterator[CouplingTrial]:
    """Yield the ramps of a seed: every width but the largest, and one width slowly once more."""
    widths = [(width, setup.ramp_steps) for width in setup.sizes[:-1]]
    for width, steps_each in (*widths, (setup.slow_size, setup.slow_steps)):
        for variant, ranks in RAMPS.items():
            climbing = [coupling_of(rank) for rank in ranks]
            for answers in ANSWERS:
                couplings = (*climbing, *climbing[-2::-1])
                yield CouplingTrial(variant, width, seed, couplings, steps_each, answers)


def run(setup: CouplingSetup, trial: CouplingTrial) -> CouplingTraining:
    """Run one training on the processor.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    started = time.process_time()
    prepared = prepare(_make_recipe(setup, trial))
    if trial.answers == "random":  # There is no rule left to learn.
        train, generator = prepared.dataset.train, torch.Generator().manual_seed(trial.seed)
        shuffled = replace(train, labels=train.labels[torch.randperm(len(train), generator=generator)])
        prepared = replace(prepared, dataset=replace(prepared.dataset, train=shuffled))
    last_step = trial.steps_each * len(trial.couplings)
    regulariser = prepared.build_regulariser(last_step)
    assert regulariser is not None
    regulariser.schedule = lambda step: trial.couplings[step // trial.steps_each]
    orders, train_accuracies = [], []

    def note() -> None:
        read = {
            (each.signal, each.group): each.value for each in regulariser.order_parameters(step=0, epoch=0.0)
        }
        orders.append(float(read[ORDERS[prepared.recipe.tps.variant]] or 0.0))
        train_accuracies.append(prepared.evaluate(prepared.dataset.train).accuracy)

    if trial.is_ramp:
        for tick in prepared.fit(last_step, regulariser):
            if tick.step % trial.steps_each == 0:
                note()
        accuracy = prepared.evaluate().accuracy
        climb = Climb(steps=last_step, accuracy=accuracy, reached=accuracy >= setup.level)
    else:
        climb = prepared.climb(setup.level, last_step, setup.reading_steps, regulariser)
        note()
    return CouplingTraining(
        trial=trial,
        steps=climb.steps,
        reached=climb.reached,
        accuracy=climb.accuracy,
        orders=tuple(orders),
        train_accuracies=tuple(train_accuracies),
        cpu_seconds=time.process_time() - started,
    )


def _make_recipe(setup: CouplingSetup, trial: CouplingTrial) -> Recipe:
    """Return the recipe as ``trial`` runs it; λ is set step by step."""
    variant = "labels" if trial.variant == "none" else trial.variant
    regulariser = Tps(variant=variant, coupling=1.0, scaling=trial.scaling, warmup_share=0.0)  # type: ignore[arg-type]
    found = at_seed(setup.recipe, trial.seed, regulariser, threads=setup.threads)
    model = replace(found.task.model, widths=(trial.width,))  # type: ignore[arg-type]
    return replace(found, task=replace(found.task, model=model))


def conclude(setup: CouplingSetup, done: Sequence[CouplingTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the exponents of both edges, to compare with −1/2, and how the order rises and falls."""
    planned, cells, scaled = _follow(setup, done)
    done = [each for each in done if each.trial in set(planned.trials)]
    ramps = [each for each in done if each.trial.is_ramp]
    edges = _fit_edges(cells)
    rises = _fit_rises(ramps, setup.ramp_steps)
    return Finding(
        name="coupling",
        setup=setup,
        machine=machine,
        ruling=rule([edge.measured for edge in edges if edge.judged and edge.measured is not None]),
        quantities=tuple(
            Quantity(name=name, predicted=predicted, measured=measured)
            for name, predicted, measured in (
                *((edge.name, "−1/2" if edge.judged else "", edge.measured) for edge in edges),
                *((name, "", measured) for name, measured in rises.items()),
            )
            if measured is not None
        ),
        predicted_range=(PREDICTED, PREDICTED),
        figures={
            "cells": cells,
            "ramps": ramps,
            "edges": edges,
            "scaled": scaled,
            "without": {
                width: [
                    each.steps
                    for each in done
                    if (each.trial.variant, each.trial.width) == ("none", width) and each.reached
                ]
                for width in setup.sizes
            },
            "coupling_of": coupling_of,
            "describe_mean": describe_mean,
            "geometric_mean": geometric_mean,
        },
        trainings=tuple(done),
        panels=_draw_panels(setup, cells, ramps),
    )


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


def _fit_edges(cells: Sequence[Cell]) -> list[FittedEdge]:
    """Return the exponent of every edge, by variant; once more without the narrowest nets."""
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


def _fit_rises(ramps: Sequence[CouplingTraining], steps_each: int) -> dict[str, Interval | None]:
    """Return the exponent of the λ at half rise, by variant and answers; it depends on the ramp's pace."""
    return {
        f"{variant}, λ at half rise, {answers}": fit_exponent(
            (ramp.trial.width, loop.rise if (loop := ramp.loop) else None)
            for ramp in ramps
            if ramp.trial.kind[:3] == (variant, answers, steps_each)
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


def _draw_panels(
    setup: CouplingSetup, cells: Sequence[Cell], ramps: Sequence[CouplingTraining]
) -> tuple[Panel, ...]:
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


def _follow_order(setup: CouplingSetup, ramps: Sequence[CouplingTraining], variant: str) -> Iterator[Curve]:
    for steps_each, answers in product((setup.ramp_steps, setup.slow_steps), ANSWERS):
        kind = (variant, answers, steps_each, setup.slow_size)
        if mine := [ramp for ramp in ramps if ramp.trial.kind == kind]:
            orders = [fmean(read) for read in zip(*(each.orders for each in mine), strict=True)]
            points = tuple(zip(mine[0].trial.couplings, orders, strict=True))
            top = len(points) // 2
            yield Curve(name=f"{answers}, {steps_each} steps a λ, up", points=points[: top + 1])
            yield Curve(name="down", points=points[top:], dashed=True)
