"""Study ``dimension``: whether training with TPS leaves fewer dimensions, and pruning then costs less.

The same nets from the same weights on the same data, without TPS and with each variant that fits; before and
after training the dimension of every group is read by three measures, and the net is pruned without
retraining.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, TypeAlias

import torch
from torch import nn

import tpsprune
from tpsprune import pruning, recipe
from tpsprune.numerics.intrinsic_dimension import (
    LEAST_POINTS,
    levina_bickel,
    neighbour_distances,
    two_nn,
)
from tpsprune.numerics.moments import input_moments
from tpsprune.numerics.row_samples import ROWS, input_rows
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.numerics.spectra import effective_rank
from tpsprune.recipe import Recipe
from tpsprune.recipe.train import Tps
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling, rule_all
from tpsprune_studies.setup import Setup, at_seed, prepare, resize

PREDICTED_SHARE: Final = 0.1
RANK, MLE, TWO_NN = MEASURES = ("effective rank", "Levina–Bickel", "TwoNN")
CITED: Final = MLE
"""The measure that the theory's own list of sources has: the ruling is by it."""
POINTS: Final = ROWS
FEWEST_POINTS: Final = LEAST_POINTS
WITH, WITHOUT, UNTRAINED = KINDS = ("with TPS", "without", "untrained")
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


Shares: TypeAlias = Mapping[str, Mapping[str, float | None]]
"""By measure and group the dimension over the width, none where there are too few distinct points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionTraining:
    """A net before and after training: its dimensions, and accuracy dense and straight after pruning."""

    trial: DimensionTrial
    accuracy: float
    shares: Shares
    untrained_shares: Shares
    cut_accuracies: Mapping[str, float]
    seconds: float = 0.0

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
    inputs, _ = prepared.sample_calibration(CALIBRATION_ITEMS)
    untrained_shares = measure_shares(prepared.model, inputs)
    on_addition = trial.task == ADDITION
    steps = setup.cap_steps if on_addition else prepared.total_steps
    for _ in prepared.fit(steps, prepared.build_regulariser(steps)):
        pass
    return DimensionTraining(
        trial=trial,
        accuracy=prepared.evaluate().accuracy,
        shares=measure_shares(prepared.model, inputs),
        untrained_shares=untrained_shares,
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


def measure_shares(model: nn.Module, inputs: torch.Tensor) -> dict[str, dict[str, float | None]]:
    """Return, by measure and group, the dimension of what its consumers are fed, over the group's width.

    A row is an item, of a map an item's position. The rank is that of the covariance of all rows; neighbours
    are sought among a sample of ``POINTS`` of them.
    """
    found = pruning.find_groups(model, inputs[:2])
    widths, blocks = pruning.consumer_widths(model, found), pruning.consumer_blocks(found)
    modules = {name: width for consumers in widths.values() for name, width in consumers.items()}
    moments = input_moments(model, [inputs], modules, blocks)
    clouds = {
        name: neighbour_distances(rows) for name, rows in input_rows(model, [inputs], modules, blocks).items()
    }
    by_layer: dict[str, dict[str, float | None]] = {
        RANK: {
            name: float(effective_rank(torch.linalg.eigvalsh(each.covariance_nn)))
            for name, each in moments.items()
        },
        **{
            measure: {
                name: estimate(cloud) if len(cloud) >= LEAST_POINTS else None
                for name, cloud in clouds.items()
            }
            for measure, estimate in ((MLE, levina_bickel), (TWO_NN, two_nn))
        },
    }
    return {
        measure: {
            group: mean_known(
                None if (each := dimensions[name]) is None else each / width
                for name, width in consumers.items()
            )
            for group, consumers in widths.items()
            if consumers
        }
        for measure, dimensions in by_layer.items()
    }


def mean_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known, or none."""
    known = [each for each in values if each is not None]
    return fmean(known) if known else None


def conclude(setup: Setup, done: Sequence[DimensionTraining], machine: Mapping[str, Any]) -> Finding:
    """Return dimensions and prunability by arm; the ruling is on the arms with TPS, task by task.

    Each measure has a ruling of its own, and that of ``CITED`` is the study's.
    """
    arms = dict.fromkeys(each.trial.arm for each in done)
    by_arm = {arm: [each for each in done if each.trial.arm == arm] for arm in arms}
    regularised = [each for each in done if each.trial.variant != "none"]
    plain = [each for each in done if each.trial.variant == "none"]
    tables = {
        measure: {
            task: {
                WITH: _spread(each.shares[measure] for each in _of(regularised, task)),
                WITHOUT: _spread(each.shares[measure] for each in _of(plain, task)),
                # The variants of a seed start from the same net, and it counts once.
                UNTRAINED: _spread(each.untrained_shares[measure] for each in _of(plain, task)),
            }
            for task in VARIANTS
        }
        for measure in MEASURES
    }
    rulings = {
        measure: rule_all(_rule(each[WITH]) for each in tasks.values()) for measure, tasks in tables.items()
    }
    return Finding(
        name="dimension",
        setup=setup,
        machine=machine,
        ruling=rulings[CITED],
        quantities=tuple(
            Quantity(
                name=f"{measure}: {task}, {kind}",
                predicted="below 0.1" if kind == WITH else "",
                measured=spread,
            )
            for measure, tasks in tables.items()
            for task, kinds in tasks.items()
            for kind, spread in kinds.items()
            if spread is not None
        ),
        predicted_range=(None, PREDICTED_SHARE),
        figures={
            "tables": tables,
            "rulings": rulings,
            "below": {measure: _count_below(measure, regularised, plain) for measure in MEASURES},
            "by_arm": by_arm,
            "mean_known": mean_known,
            "gains": [
                (task, variant, _measure_gain(by_arm[f"{task}, none"], by_arm[f"{task}, {variant}"]))
                for task, variants in VARIANTS.items()
                for variant in variants[1:]
            ],
        },
        trainings=tuple(done),
    )


def _of(trainings: Iterable[DimensionTraining], task: str) -> list[DimensionTraining]:
    return [each for each in trainings if each.trial.task == task]


def _count_below(
    measure: str, regularised: Sequence[DimensionTraining], plain: Sequence[DimensionTraining]
) -> dict[str, int]:
    """Return how many groups are below the prediction on average over nets, and of how many."""
    groups = list(dict.fromkeys((each.trial.task, group) for each in plain for group in each.shares[measure]))
    counts = dict.fromkeys(KINDS, 0)
    for task, group in groups:
        means = (
            mean_known(each.shares[measure][group] for each in _of(regularised, task)),
            mean_known(each.shares[measure][group] for each in _of(plain, task)),
            mean_known(each.untrained_shares[measure][group] for each in _of(plain, task)),
        )
        for kind, mean in zip(KINDS, means, strict=True):
            counts[kind] += mean is not None and mean < PREDICTED_SHARE
    return {**counts, "all": len(groups)}


def _spread(shares: Iterable[Mapping[str, float | None]]) -> Interval | None:
    """Return the mean over nets of their groups' mean, or none where too few nets have one."""
    known = [share for each in shares if (share := mean_known(each.values())) is not None]
    return mean_interval(known) if len(known) > 1 else None


def _rule(found: Interval | None) -> Ruling:
    if found is None:
        return Ruling.UNDECIDED
    if found.low >= PREDICTED_SHARE:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if found.high < PREDICTED_SHARE else Ruling.UNDECIDED


def _measure_gain(without: Iterable[DimensionTraining], with_tps: Iterable[DimensionTraining]) -> Interval:
    """Return by how much less accuracy the smallest share of MACs costs with TPS, paired by seed."""
    losses = {each.trial.seed: each.loss for each in without}
    return mean_interval(losses[each.trial.seed] - each.loss for each in with_tps)
