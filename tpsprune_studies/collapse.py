"""Study ``collapse``: whether neural collapse says when a cut is free.

Small nets learn digits. On the way, at steps further and further apart, NC1, NC4, effective dimension and
validation accuracy are read, and a copy is cut: what does the cut cost, and which reading says so?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

import tpsprune
from tpsprune.numerics.last_layer import passes
from tpsprune.numerics.neural_collapse import neural_collapse
from tpsprune.numerics.predictions import rank_correlation
from tpsprune.numerics.small_samples import fisher_greater, mean_interval
from tpsprune.numerics.spectra import effective_rank
from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Setup, at_seed, prepare, resize

MODELS: Final = {
    "MLP": "task.model={kind='mlp', widths=[64, 64]}",
    "CNN": "task.model={kind='cnn', widths=[16, 32, 32]}",
}
SHARE: Final = 0.15
CALIBRATION_ITEMS: Final = 512
STEPS: Final = (6, 13, 26, 52, 104, 208, 416)
"""At which a net is read and a copy of it cut."""
COLLAPSED: Final = 0.05
"""NC4 below this share counts as collapsed, from the one trial there was."""
FREE: Final = 0.01
"""A cut that costs less accuracy than this is free."""
SURE: Final = 0.05
READINGS: Final = ("nc1", "nc4", "d_eff", "validation_accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseTrial:
    """A training: the net, and the seed."""

    model: str
    seed: int

    @property
    def arm(self) -> str:
        """What is compared."""
        return self.model


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was read at a step, and the test accuracy that a cut cost there."""

    step: int
    nc1: float
    nc4: float
    d_eff: float
    validation_accuracy: float
    cost: float

    @property
    def is_free(self) -> bool:
        """Whether the cut was free."""
        return self.cost < FREE


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseTraining:
    """A training, moment by moment."""

    trial: CollapseTrial
    moments: tuple[Moment, ...]
    seconds: float = 0.0


TRAINING: Final = CollapseTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=6, cap_steps=STEPS[-1]), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[CollapseTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every net on every seed."""
    return Plan(tuple(CollapseTrial(model=model, seed=seed) for seed in setup.pair_seeds for model in MODELS))


def run(setup: Setup, trial: CollapseTrial) -> CollapseTraining:
    """Train a net, and read and cut it on the way.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    from tpsprune import recipe

    prepared = prepare(
        at_seed(recipe.read("digits", (MODELS[trial.model],)), trial.seed, threads=setup.threads)
    )
    model, test = prepared.model, prepared.dataset.test
    inputs, labels = prepared.sample_calibration(CALIBRATION_ITEMS)
    moments = []
    for tick in prepared.fit(setup.cap_steps):
        if tick.step not in STEPS:
            continue
        nc1, nc4, d_eff = _read(model, inputs, labels)
        ticket = tpsprune.extract(model, [inputs], tpsprune.Macs(SHARE), quality="fast", round_to=1).ticket
        cost = prepared.evaluate(test).accuracy - prepared.evaluate(test, ticket).accuracy
        moments.append(
            Moment(
                step=tick.step,
                nc1=nc1,
                nc4=nc4,
                d_eff=d_eff,
                validation_accuracy=prepared.evaluate().accuracy,
                cost=cost,
            )
        )
    return CollapseTraining(trial=trial, moments=tuple(moments))


def _read(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """Return NC1, NC4 and the effective rank of the last features over their width."""
    (seen,) = passes(model, [inputs])
    assert seen.read is not None, "the nets end in a linear layer"
    found = neural_collapse(seen.read, labels, seen.output.argmax(1))
    spectrum = torch.linalg.eigvalsh(seen.read.double().T.cov())
    return found.nc1, found.nc4, float(effective_rank(spectrum)) / seen.read.shape[1]


def conclude(setup: Setup, done: Sequence[CollapseTraining], machine: Mapping[str, Any]) -> Finding:
    """Return how far each reading goes with the cost of a cut; the ruling is on NC4 as a criterion."""
    moments = [moment for each in done for moment in each.moments]
    collapsed = [each for each in moments if each.nc4 < COLLAPSED]
    others = [each for each in moments if each.nc4 >= COLLAPSED]
    tables = {
        "NC4": (collapsed, others),
        "validation accuracy": (
            [each for each in moments if each.validation_accuracy >= 1 - COLLAPSED],
            [each for each in moments if each.validation_accuracy < 1 - COLLAPSED],
        ),
    }
    counts = {
        name: (sum(each.is_free for each in yes), len(yes), sum(each.is_free for each in no), len(no))
        for name, (yes, no) in tables.items()
    }
    correlations = {
        name: mean_interval(
            rank_correlation(
                [getattr(moment, name) for moment in each.moments], [moment.cost for moment in each.moments]
            )
            for each in done
        )
        for name in READINGS
    }
    return Finding(
        name="collapse",
        setup=setup,
        machine=machine,
        ruling=_rule(*counts["NC4"]),
        quantities=tuple(
            Quantity(
                name=f"{name}, rank correlation with the cost",
                predicted="above 0" if name.startswith("nc") else "",
                measured=interval,
            )
            for name, interval in correlations.items()
        ),
        predicted_range=(0.0, None),
        figures={
            "counts": counts,
            "correlations": correlations,
            "by_step": {
                (model, step): [
                    moment
                    for each in done
                    if each.trial.model == model
                    for moment in each.moments
                    if moment.step == step
                ]
                for model in MODELS
                for step in STEPS
            },
        },
        trainings=tuple(done),
    )


def _rule(free: int, collapsed: int, other_free: int, others: int) -> Ruling:
    """Return confirmed where nearly all that collapsed are free, and more often than the rest beyond luck."""
    if not collapsed or not others:
        return Ruling.UNDECIDED
    tells = fisher_greater(free, collapsed, other_free, others) < SURE
    if tells and free >= 0.9 * collapsed:
        return Ruling.CONFIRMED
    return Ruling.UNDECIDED if tells else Ruling.REFUTED
