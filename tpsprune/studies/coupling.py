"""Study ``coupling``: how the coupling that matters goes with the number of oscillators, and how order comes.

Nets of one hidden layer, two decades of widths, learn modular addition at many couplings λ, each held; the
edges of what speeds up and of what still learns are fitted against N. Then λ is led up and down within one
training, on sums and on random answers, where there is nothing to understand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.coupling_cells import cell_of, without_tps
from tpsprune.studies.coupling_edges import PATIENCE, coupling_of, due
from tpsprune.studies.coupling_found import found_by
from tpsprune.studies.coupling_run import (
    Answers,
    Coupled,
    CouplingSetup,
    CouplingTrial,
    run_coupling,
)
from tpsprune.studies.figures import count
from tpsprune.studies.finding import Finding, Plan
from tpsprune.studies.setup import Setup, sized

__all__ = ["finding", "plan", "record", "run", "setup", "words"]

PREDICTION: Final = STUDIES["coupling"]
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


run = run_coupling
record = Coupled.from_json


def setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> CouplingSetup:
    """Return the study's settings at that size: the recipe's task made small enough for hundreds of nets."""
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
    common = Setup(recipe=smaller, level=LEVEL, reading_steps=10)
    common = sized(common, seeds, cap_steps, full=full)
    return CouplingSetup(common=common, sizes=SIZES)


def plan(setup: CouplingSetup, done: Sequence[Coupled]) -> Plan:
    """Return, seed by seed and width by width, all that is known to be needed.

    Which λ are tried of a cell follows from those that are done: down to the first that does not speed up, up
    to the first that does not learn.
    """
    trials: list[CouplingTrial] = []
    later: list[str] = []
    for seed in setup.common.pair_seeds:
        dear = seed in setup.half_seeds
        for width in setup.sizes if dear else setup.sizes[:-1]:
            plain = CouplingTrial(
                variant="none", width=width, seed=seed, couplings=(0.0,), steps_each=setup.common.cap_steps
            )
            trials.append(plain)
            for variant in ("labels", "weights") if dear else ("labels",):
                tried, open_ranks = _held(done, variant, width, seed)
                trials += tried
                later += [f"held {variant} {width}"] * open_ranks
        trials += _scaled(done, setup.slow_size, seed)
        trials += _ramps(setup, seed) if dear else ()
    return Plan(tuple(trials), tuple(later))


def words(setup: CouplingSetup, last: Coupled) -> str:
    """Return which training ended, and how."""
    trial = last.trial
    name = f"seed {trial.seed} {trial.width} units {trial.variant}"
    if trial.is_ramp:
        top = len(last.orders) // 2
        return (
            f"{name}, {trial.answers}, λ up and down at {trial.steps_each} steps each: order "
            f"{last.orders[0]:.2f}, {last.orders[top]:.2f}, {last.orders[-1]:.2f}"
        )
    reached = f"{setup.common.level:g} at step" if last.reached else f"{last.accuracy:.3f} after"
    scaled = ", sqrt-n" if trial.scaling != "none" else ""
    return f"{name} λ {trial.couplings[0]:.3g}{scaled}: {reached} {count(last.steps)}"


def finding(setup: CouplingSetup, done: Sequence[Coupled], machine: Mapping[str, Any]) -> Finding:
    """Return exponents of both edges beside −1/2, and what the order does on its way up and down."""
    wanted = set(plan(setup, done).trials)
    return found_by(setup, [each for each in done if each.trial in wanted], PREDICTION, machine)


def _held(done: Sequence[Coupled], variant: str, width: int, seed: int) -> tuple[list[CouplingTrial], int]:
    """Return a cell's trainings, done and next, and about how many more there will be."""
    plain = without_tps(done, width, seed)
    if plain is None:
        return [], USUAL_RANKS
    cell = cell_of(done, variant, width, seed)
    if cell is None:
        return [], 0
    following = due(cell.without, cell.outcomes, FIRST[variant])
    ranks = [*cell.outcomes, *(() if following is None else (following,))]
    tried = [
        CouplingTrial(
            variant=variant,
            width=width,
            seed=seed,
            couplings=(coupling_of(rank),),
            steps_each=PATIENCE * cell.without,
        )
        for rank in ranks
    ]
    return tried, 0 if following is None else max(0, USUAL_RANKS - len(ranks))


def _scaled(done: Sequence[Coupled], width: int, seed: int) -> Iterator[CouplingTrial]:
    """Yield, once it is known what that takes, the same as λ = 1 with ``sqrt-n``: λ = √N."""
    plain = without_tps(done, width, seed)
    if plain is not None and plain.reached:
        yield CouplingTrial(
            variant="labels",
            width=width,
            seed=seed,
            couplings=(width**0.5,),
            steps_each=PATIENCE * plain.steps,
            scaling="sqrt-n",
        )


def _ramps(setup: CouplingSetup, seed: int) -> Iterator[CouplingTrial]:
    """Yield the ramps of a seed: every width but the largest, and one width slowly once more."""
    widths = [(width, setup.ramp_steps) for width in setup.sizes[:-1]]
    kinds: tuple[Answers, ...] = ("sums", "random")
    for width, steps_each in (*widths, (setup.slow_size, setup.slow_steps)):
        for variant, ranks in RAMPS.items():
            climbing = [coupling_of(rank) for rank in ranks]
            for answers in kinds:
                yield CouplingTrial(
                    variant=variant,
                    width=width,
                    seed=seed,
                    couplings=(*climbing, *climbing[-2::-1]),
                    steps_each=steps_each,
                    answers=answers,
                )
