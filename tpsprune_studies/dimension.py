"""Study ``dimension``: whether training with TPS leaves fewer dimensions, and pruning then costs less.

The same nets from the same weights on the same data, without TPS and with each variant that fits; after
training the effective dimension of every group is read, and the net is pruned without retraining.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import torch
from torch import nn

import tpsprune
from tpsprune import pruning, recipe
from tpsprune.numerics.moments import input_moments
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.numerics.spectra import effective_rank
from tpsprune.recipe import Recipe
from tpsprune.recipe.train import Tps
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling, rule_all
from tpsprune_studies.setup import Setup, at_seed, prepare, resize

PREDICTED_SHARE: Final = 0.1
SHARES: Final = (0.5, 0.25)
CALIBRATION_ITEMS: Final = 512
ADDITION: Final = "modular addition"
DIGITS: Final = "digits"
PARITY: Final = "parity"
PARITY_CHANGES: Final = (
    "task.data={kind='custom',factory='tpsprune_studies.tasks:parity',"
    "data_args={bits=40,support=2,items=600}}",
    "train.epochs=200",
    "train.learning_rate=0.03",
    "train.weight_decay=0.5",
)
WEIGHT_DECAYS: Final[Mapping[str, float]] = {"labels": 1.0, "moments": 1.0}
"""Weight decays on addition, the best of a few at this learning rate; ``OTHER`` for all else."""
OTHER: Final = 4.0
VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    ADDITION: ("none", "weights", "neurons", "labels", "moments"),
    DIGITS: ("none", "weights", "neurons", "moments"),
    PARITY: ("none", "moments"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionTrial:
    """A training: the task, the TPS variant, the seed of all that is random."""

    task: str
    variant: str
    seed: int

    @property
    def arm(self) -> str:
        """Task and variant."""
        return f"{self.task}, {self.variant}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionTraining:
    """A net after training: accuracy, d_eff over the width by group, and accuracy straight after pruning."""

    trial: DimensionTrial
    accuracy: float
    shares: Mapping[str, float]
    cut_accuracies: Mapping[str, float]
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """The mean over groups."""
        return fmean(self.shares.values())

    @property
    def loss(self) -> float:
        """The accuracy that the smallest share of MACs costs."""
        return self.accuracy - self.cut_accuracies[f"{SHARES[-1]:g}"]


TRAINING: Final = DimensionTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=3), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[DimensionTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every task and variant on every seed, the variants of a seed one after the other."""
    return Plan(
        tuple(
            DimensionTrial(task=task, variant=variant, seed=seed)
            for seed in setup.pair_seeds
            for task, variants in VARIANTS.items()
            for variant in variants
        )
    )


def run(setup: Setup, trial: DimensionTrial) -> DimensionTraining:
    """Train a net, read its dimensions, prune it.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    prepared = prepare(_make_recipe(setup, trial))
    on_addition = trial.task == ADDITION
    steps = setup.cap_steps if on_addition else prepared.total_steps
    for _ in prepared.fit(steps, prepared.build_regulariser(steps)):
        pass
    inputs, _ = prepared.sample_calibration(CALIBRATION_ITEMS)
    return DimensionTraining(
        trial=trial,
        accuracy=prepared.evaluate().accuracy,
        shares=_measure_shares(prepared.model, inputs),
        cut_accuracies={
            f"{share:g}": prepared.evaluate(
                model=tpsprune.extract(prepared.model, [inputs], tpsprune.Macs(share), repair=False).ticket
            ).accuracy
            for share in SHARES
        },
    )


def _make_recipe(setup: Setup, trial: DimensionTrial) -> Recipe:
    regulariser = Tps(variant=trial.variant, coupling=1.0, apply="loss")  # type: ignore[arg-type]
    if trial.task == ADDITION:
        decay = WEIGHT_DECAYS.get(trial.variant, OTHER)
        return at_seed(setup.recipe, trial.seed, regulariser, threads=setup.threads, weight_decay=decay)
    found = recipe.read("modular-addition", PARITY_CHANGES) if trial.task == PARITY else recipe.read(DIGITS)
    return at_seed(found, trial.seed, regulariser, threads=setup.threads)


def _measure_shares(model: nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    """Return, by group, the effective rank of the inputs of its consumers over the width."""
    widths = pruning.consumer_widths(model, pruning.find_groups(model, inputs[:2]))
    modules = {name: width for consumers in widths.values() for name, width in consumers.items()}
    moments = input_moments(model, [inputs], modules)
    return {
        group: fmean(
            float(effective_rank(torch.linalg.eigvalsh(moments[name].covariance_nn))) / width
            for name, width in consumers.items()
        )
        for group, consumers in widths.items()
        if consumers
    }


def conclude(setup: Setup, done: Sequence[DimensionTraining], machine: Mapping[str, Any]) -> Finding:
    """Return dimensions and prunability by arm; the ruling is on the arms with TPS, task by task."""
    arms = dict.fromkeys(each.trial.arm for each in done)
    by_arm = {arm: [each for each in done if each.trial.arm == arm] for arm in arms}
    with_tps, without = (
        {
            task: mean_interval(
                each.share
                for each in done
                if each.trial.task == task and (each.trial.variant != "none") is regularised
            )
            for task in VARIANTS
        }
        for regularised in (True, False)
    )
    return Finding(
        name="dimension",
        setup=setup,
        machine=machine,
        ruling=rule_all(map(_rule, with_tps.values())),
        quantities=tuple(
            Quantity(
                name=arm,
                predicted="below 0.1" if not arm.endswith("none") else "",
                measured=mean_interval(each.share for each in trainings),
            )
            for arm, trainings in by_arm.items()
        ),
        predicted_range=(None, PREDICTED_SHARE),
        figures={
            "with_tps": with_tps,
            "without": without,
            "by_arm": by_arm,
            "gains": [
                (task, variant, _measure_gain(by_arm[f"{task}, none"], by_arm[f"{task}, {variant}"]))
                for task, variants in VARIANTS.items()
                for variant in variants[1:]
            ],
        },
        trainings=tuple(done),
    )


def _rule(found: Interval) -> Ruling:
    if found.low >= PREDICTED_SHARE:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if found.high < PREDICTED_SHARE else Ruling.UNDECIDED


def _measure_gain(without: Iterable[DimensionTraining], with_tps: Iterable[DimensionTraining]) -> Interval:
    """Return by how much less accuracy the smallest share of MACs costs with TPS, paired by seed."""
    losses = {each.trial.seed: each.loss for each in without}
    return mean_interval(losses[each.trial.seed] - each.loss for each in with_tps)
