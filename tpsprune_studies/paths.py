"""Study ``paths``: whether trainings fall into classes that no easy path joins.

Pairs of nets learn digits from different seeds, or part from one start. The barrier of error on the straight
line between their weights is read as they are, and with the hidden units of the second in the order of the
first's; then from a net to its ticket.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

import tpsprune
from tpsprune import pruning
from tpsprune.numerics.paths import POINTS, barrier, state_between
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.numerics.unit_matching import match_units
from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Prepared, Setup, at_seed, prepare, resize

BETWEEN: Final = 0.03
"""By how much the error of nets of different classes differs, as published; as a barrier here."""
WIDTHS: Final = (64, 64)
LAYERS: Final = ("hidden.0", "hidden.2", "head")
OTHER_SEED: Final = 1000
"""Added to a seed for the second net of its pair."""
FORKS: Final = (0, 1)
"""Epochs after which two trainings of one start see their data in another order."""
SHARE: Final = 0.25
CALIBRATION_ITEMS: Final = 512
RAW: Final = "two seeds, as they are"
MATCHED: Final = "two seeds, units matched"
TICKET: Final = f"dense model to its ticket of {SHARE:g} of the MACs"
MAGNITUDE: Final = "the same, by magnitude, not compensated"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTrial:
    """A pair of trainings by its seed."""

    seed: int

    @property
    def arm(self) -> str:
        """All are one arm."""
        return "pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTraining:
    """A pair: both errors on the test split, and the barrier of error and of loss by path."""

    trial: PathTrial
    errors: tuple[float, float]
    error_barriers: Mapping[str, float]
    loss_barriers: Mapping[str, float]
    seconds: float = 0.0


TRAINING: Final = PathTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=12), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[PathTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every pair."""
    return Plan(tuple(PathTrial(seed=seed) for seed in setup.pair_seeds))


def run(setup: Setup, trial: PathTrial) -> PathTraining:
    """Train a pair and what parts from its first net; read every path.

    Raises:
        DivergedError: a loss is no longer finite.
    """
    first = _prepare(setup, trial.seed)
    fork_steps = {epochs: epochs * first.steps_per_epoch for epochs in FORKS}
    starts = {0: copy.deepcopy(first.model.state_dict())}
    for tick in first.fit(first.total_steps):
        if tick.step in fork_steps.values():
            starts[tick.step] = copy.deepcopy(first.model.state_dict())
    second = _prepare(setup, trial.seed + OTHER_SEED)
    for _ in second.fit(second.total_steps):
        pass
    paths: dict[str, nn.Module] = {
        RAW: second.model,
        MATCHED: match_units(first.model, second.model, LAYERS),
    }
    for epochs, step in fork_steps.items():
        paths[_fork(epochs)] = _train_on(first, second, starts[step], step)
    inputs, _ = first.sample_calibration(CALIBRATION_ITEMS)
    by_magnitude: dict[str, Any] = {"units": "magnitude", "compensate": False, "reconstruct": False}
    for name, settings in ((TICKET, {}), (MAGNITUDE, by_magnitude)):
        found = tpsprune.extract(
            first.model, [inputs], tpsprune.Macs(SHARE), quality="fast", round_to=1, **settings
        )
        _, paths[name] = pruning.expand(first.model, found.ticket, found.plan)
    read = {name: _read_path(first, model) for name, model in paths.items()}
    test = first.dataset.test
    errors = [1.0 - first.evaluate(test, model).accuracy for model in (first.model, second.model)]
    return PathTraining(
        trial=trial,
        errors=(errors[0], errors[1]),
        error_barriers={name: error for name, (error, _) in read.items()},
        loss_barriers={name: loss for name, (_, loss) in read.items()},
    )


def _prepare(setup: Setup, seed: int) -> Prepared:
    """Return the task with a net from another seed, its items and their split those of the pilot seed."""
    widths = list(WIDTHS)
    from tpsprune import recipe

    found = recipe.read("digits", (f"task.model={{kind='mlp', widths={widths}}}",))
    chosen = at_seed(found, setup.pilot_seed, threads=setup.threads)
    return prepare(replace(chosen, seed=seed))


def _fork(epochs: int) -> str:
    return f"one start, parted after {epochs} epochs"


def _train_on(first: Prepared, second: Prepared, start: Mapping[str, torch.Tensor], step: int) -> nn.Module:
    """Train the first net on from a state that it was in, with data in the second's order."""
    model = copy.deepcopy(first.model)
    model.load_state_dict(start)
    for _ in second.fit(second.total_steps, model=model, first_step=step, total_steps=second.total_steps):
        pass
    return model


def _read_path(first: Prepared, end: nn.Module) -> tuple[float, float]:
    """Return the barriers of error and loss on the test split from the first net to another of its shape."""
    walked = copy.deepcopy(end)
    start = dict(first.model.state_dict())
    # A layer that pruning gave a bias begins without one.
    start |= {name: torch.zeros_like(each) for name, each in end.state_dict().items() if name not in start}
    scores = []
    for point in range(POINTS):
        walked.load_state_dict(state_between(start, end.state_dict(), point / (POINTS - 1)))
        scores.append(first.evaluate(first.dataset.test, walked))
    return barrier([1.0 - each.accuracy for each in scores]), barrier([each.loss for each in scores])


def conclude(setup: Setup, done: Sequence[PathTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the barriers by path; the ruling is on nets of two seeds whose units are matched."""
    names = tuple(done[0].error_barriers)
    errors = {name: mean_interval(each.error_barriers[name] for each in done) for name in names}
    losses = {name: mean_interval(each.loss_barriers[name] for each in done) for name in names}
    return Finding(
        name="paths",
        setup=setup,
        machine=machine,
        ruling=_rule(errors[MATCHED]),
        quantities=tuple(
            Quantity(
                name=name,
                predicted=f"{BETWEEN:g} or more" if name in {RAW, MATCHED} else "",
                measured=errors[name],
            )
            for name in names
        ),
        predicted_range=(BETWEEN, None),
        figures={
            "errors": errors,
            "losses": losses,
            "ends": mean_interval(error for each in done for error in each.errors),
            "differ": mean_interval(abs(each.errors[0] - each.errors[1]) for each in done),
        },
        trainings=tuple(done),
    )


def _rule(matched: Interval) -> Ruling:
    if matched.low >= BETWEEN:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if matched.high < BETWEEN else Ruling.UNDECIDED
