"""Study ``coupling``: how the critical coupling goes with the number of oscillators, and how order sets in.

Nets of one hidden layer, two decades of widths, learn modular addition at many couplings λ, each held; the
edges of what speeds up and of what still learns are fitted against N. Then λ is raised and lowered within one
training, on sums and on random labels, where there is no rule to learn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor

from tpsprune.data import Dataset
from tpsprune.recipe import Recipe
from tpsprune.recipe.train import Tps
from tpsprune.tps import Regulariser
from tpsprune_studies.coupling_edges import (
    FACTOR,  # noqa: F401 -- its page names it
    PATIENCE,
    Answers,
    Cell,
    CouplingTraining,
    CouplingTrial,
    Steps,
    choose_next_rank,
    collect_ramps,
    coupling_of,
)
from tpsprune_studies.coupling_finding import (
    ENOUGH,  # noqa: F401 -- its page names it
    JUMP,  # noqa: F401 -- its page names it
    PREDICTED,
    VARIANTS,
    CouplingSetup,
    describe_mean,
    draw_panels,
    fit_edges,
    fit_rises,
    rule,
)
from tpsprune_studies.finding import Finding, Plan, Quantity, Strand, follow
from tpsprune_studies.setup import Climb, at_seed, prepare, resize

TRAINING: Final = CouplingTraining
SIZES: Final = (64, 160, 400, 1000, 2500, 6400)
FIRST: Final[Mapping[str, tuple[int, ...]]] = {"labels": (-2, -1, 0), "weights": (-1, 0)}
RAMPS: Final[Mapping[str, range]] = {"labels": range(-4, 6), "weights": range(-2, 5)}
"""Ranks of λ, half decades: those that every cell begins with, and those that a ramp climbs."""
USUAL_RANKS: Final = 7
MODULUS: Final = 23
TRAIN_SHARE: Final = 0.8
VALIDATION_SHARE: Final = 0.95
EMBEDDING: Final = 16
LEARNING_RATE: Final = 3e-3
LEVEL: Final = 0.9
ORDERS: Final = {"labels": ("tps_coherence", ""), "weights": ("tps_z1", "hidden.0")}
"""The order parameter of each variant: its signal and its group."""


def make_setup(
    recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False
) -> CouplingSetup:
    """Return the settings at that size: the recipe's task made small enough for hundreds of nets."""
    data = replace(
        recipe.task.data,
        modulus=MODULUS,  # type: ignore[arg-type]
        train_share=TRAIN_SHARE,  # type: ignore[arg-type]
        validation_share=VALIDATION_SHARE,
    )
    model = replace(recipe.task.model, embedding=EMBEDDING)  # type: ignore[arg-type]
    smaller = replace(
        recipe,
        task=replace(recipe.task, data=data, model=model),
        train=replace(recipe.train, learning_rate=LEARNING_RATE),
    )
    setup = CouplingSetup(recipe=smaller, level=LEVEL, reading_steps=10, sizes=SIZES)
    return resize(setup, seeds, cap_steps, full=full)


def plan(setup: CouplingSetup, done: Sequence[CouplingTraining]) -> Plan:
    """Return, seed by seed and width by width, the trainings needed so far."""
    return _follow(setup, done)[0]


def _follow(
    setup: CouplingSetup, done: Sequence[CouplingTraining]
) -> tuple[Plan, list[Cell], list[tuple[int, int]]]:
    """Return the plan, the cells that are done, and steps without and with ``sqrt-n``."""
    finished = {each.trial: each for each in reversed(done)}
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


def describe(setup: CouplingSetup, last: CouplingTraining) -> str:
    """Return which training ended, and how."""
    trial = last.trial
    name = f"seed {trial.seed} {trial.width} units {trial.variant}"
    if trial.is_ramp:
        top = len(last.orders) // 2
        return (
            f"{name}, {trial.answers}, λ up and down at {trial.steps_each} steps each: order "
            f"{last.orders[0]:.2f}, {last.orders[top]:.2f}, {last.orders[-1]:.2f}"
        )
    reached = f"{setup.level:g} at step" if last.reached else f"{last.accuracy:.3f} after"
    scaled = ", sqrt-n" if trial.scaling != "none" else ""
    return f"{name} λ {trial.couplings[0]:.3g}{scaled}: {reached} {last.steps:,}"


def conclude(setup: CouplingSetup, done: Sequence[CouplingTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the exponents of both edges, to compare with −1/2, and how the order rises and falls."""
    planned, cells, scaled = _follow(setup, done)
    done = [each for each in done if each.trial in set(planned.trials)]
    ramps = collect_ramps(done)
    edges = fit_edges(cells)
    rises = fit_rises(ramps, setup.ramp_steps)
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
            "describe_mean": describe_mean,
            "geometric_mean": geometric_mean,
        },
        trainings=tuple(done),
        panels=draw_panels(setup, cells, ramps),
    )


def _plan_ramps(setup: CouplingSetup, seed: int) -> Iterator[CouplingTrial]:
    """Yield the ramps of a seed: every width but the largest, and one width slowly once more."""
    widths = [(width, setup.ramp_steps) for width in setup.sizes[:-1]]
    kinds: tuple[Answers, ...] = ("sums", "random")
    for width, steps_each in (*widths, (setup.slow_size, setup.slow_steps)):
        for variant, ranks in RAMPS.items():
            climbing = [coupling_of(rank) for rank in ranks]
            for answers in kinds:
                couplings = (*climbing, *climbing[-2::-1])
                yield CouplingTrial(variant, width, seed, couplings, steps_each, answers)


def run(setup: CouplingSetup, trial: CouplingTrial) -> CouplingTraining:
    """Run one training on the processor.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    prepared = prepare(_make_recipe(setup, trial))
    if trial.answers == "random":
        prepared = replace(prepared, dataset=_shuffle_labels(prepared.dataset, trial.seed))
    last_step = trial.steps_each * len(trial.couplings)
    regulariser = prepared.build_regulariser(last_step)
    assert regulariser is not None
    term = _Scheduled(regulariser, trial)
    orders, train_accuracies = [], []

    def note() -> None:
        orders.append(_read_order(regulariser, prepared.recipe.tps.variant))
        train_accuracies.append(prepared.evaluate(prepared.dataset.train).accuracy)

    if trial.is_ramp:
        for tick in prepared.fit(last_step, term):
            if tick.step % trial.steps_each == 0:
                note()
        accuracy = prepared.evaluate().accuracy
        climb = Climb(steps=last_step, accuracy=accuracy, reached=accuracy >= setup.level)
    else:
        *_, climb = prepared.climb(setup.level, last_step, setup.reading_steps, term)
        note()
    return CouplingTraining(
        trial=trial,
        steps=climb.steps,
        reached=climb.reached,
        accuracy=climb.accuracy,
        orders=tuple(orders),
        train_accuracies=tuple(train_accuracies),
        cpu_seconds=time.process_time() - cpu_started,
        seconds=time.monotonic() - started,
    )


def _make_recipe(setup: CouplingSetup, trial: CouplingTrial) -> Recipe:
    """Return the recipe as ``trial`` runs it; the regulariser has λ = 1, which each step multiplies."""
    variant = "labels" if trial.variant == "none" else trial.variant
    regulariser = Tps(variant=variant, coupling=1.0, scaling=trial.scaling, warmup_share=0.0)  # type: ignore[arg-type]
    found = at_seed(setup.recipe, trial.seed, regulariser, threads=setup.threads)
    model = replace(found.task.model, widths=(trial.width,))  # type: ignore[arg-type]
    return replace(found, task=replace(found.task, model=model))


def _shuffle_labels(dataset: Dataset, seed: int) -> Dataset:
    """Return the data with its training labels shuffled: there is no rule left to learn."""
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))
    return replace(dataset, train=replace(dataset.train, labels=dataset.train.labels[order]))


@final
@dataclass(frozen=True, slots=True)
class _Scheduled:
    """A regulariser of λ = 1 under the couplings of a trial, step by step; it reads weights alone."""

    regulariser: Regulariser
    trial: CouplingTrial
    shares_forward_pass: ClassVar[bool] = False

    @property
    def in_loss(self) -> bool:
        return self.regulariser.in_loss

    def coupling(self, step: int) -> float:
        return self.trial.couplings[step // self.trial.steps_each]

    def listening(self) -> AbstractContextManager[None]:
        return nullcontext()

    def penalty(
        self, step: int, label_i: Tensor | None = None, task_loss: Tensor | None = None
    ) -> Tensor | None:
        coupling = self.coupling(step)
        term = self.regulariser.penalty(step, label_i, task_loss) if coupling else None
        return None if term is None else coupling * term

    def move(self, step: int, learning_rate: float) -> None:
        if coupling := self.coupling(step):
            self.regulariser.move(step, learning_rate * coupling)


def _read_order(regulariser: Regulariser, variant: str) -> float:
    signal, group = ORDERS[variant]
    return next(
        float(reading.value or 0.0)
        for reading in regulariser.order_parameters(step=0, epoch=0.0)
        if (reading.signal, reading.group) == (signal, group)
    )
