"""One training of the study ``dimension``: a net, its effective dimensions, and what cuts of it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Final

import torch
from torch import nn

from tpsprune import pruning, recipe, training
from tpsprune.numerics.moments import input_moments
from tpsprune.numerics.spectra import effective_rank
from tpsprune.recipe import Recipe
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs
from tpsprune.recipe.task import split_by
from tpsprune.recipe.tps import Tps
from tpsprune.studies.setup import Setup
from tpsprune.studies.trial import DEVICE, accuracy_of, begin, probe_of, regulariser_of, ticks_of

__all__ = [
    "ADDITION",
    "DIGITS",
    "OTHER",
    "PARITY",
    "PROBE_ITEMS",
    "SHARES",
    "WEIGHT_DECAYS",
    "DimensionTrial",
    "Dimensions",
    "run_dimension",
]

SHARES: Final = (0.5, 0.25)
PROBE_ITEMS: Final = 512
ADDITION: Final = "modular addition"
DIGITS: Final = "digits"
PARITY: Final = "parity"
PARITY_CHANGES: Final = (
    "task.data={kind='parity',bits=40,support=2,items=600}",
    "train.epochs=200",
    "train.learning_rate=0.03",
    "train.weight_decay=0.5",
)
WEIGHT_DECAYS: Final[Mapping[str, float]] = {"labels": 1.0, "moments": 1.0}
"""Weight decays on addition, the best of a few at this learning rate; ``OTHER`` for all else."""
OTHER: Final = 4.0


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
class Dimensions:
    """A net after training: its accuracy, d_eff over the width by group, and accuracy straight after cuts."""

    trial: DimensionTrial
    accuracy: float
    shares: Mapping[str, float]
    cut_accuracies: Mapping[str, float]
    seconds: float

    @property
    def share(self) -> float:
        """The mean over groups."""
        return fmean(self.shares.values())

    def to_json(self) -> dict[str, Any]:
        """Return the training as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Dimensions:
        """Rebuild a training written by ``to_json``."""
        return cls(**{**raw, "trial": DimensionTrial(**raw["trial"])})


def run_dimension(setup: Setup, trial: DimensionTrial) -> Dimensions:
    """Do one training, read its dimensions, cut it.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    started = time.monotonic()
    found = _recipe_of(setup, trial)
    dataset, model = begin(found)
    execution = training.Execution.of(found.train, DEVICE)
    steps = setup.cap_steps
    if trial.task != ADDITION:
        steps = found.train.epochs * training.steps_per_epoch(len(dataset.train), found.train)
    regulariser = regulariser_of(found, dataset, model, steps)
    penalty = regulariser if regulariser and regulariser.in_loss else None
    for tick in ticks_of(found, dataset, model, execution, steps, penalty):
        if regulariser is not None:
            regulariser.move(tick.step - 1, tick.learning_rate)
    probe = probe_of(dataset, trial.seed, PROBE_ITEMS)
    return Dimensions(
        trial=trial,
        accuracy=accuracy_of(model, dataset, execution),
        shares=_shares(model, probe),
        cut_accuracies={
            f"{share:g}": accuracy_of(
                pruning.extract(model, [probe], Prune(target=Macs(share))).ticket, dataset, execution
            )
            for share in SHARES
        },
        seconds=time.monotonic() - started,
    )


def _recipe_of(setup: Setup, trial: DimensionTrial) -> Recipe:
    if trial.task == ADDITION:
        found = setup.recipe
    elif trial.task == PARITY:
        found = recipe.read("modular-addition", PARITY_CHANGES)
    else:
        found = recipe.read(DIGITS)
    train = replace(found.train, threads=setup.threads)
    if trial.task == ADDITION:
        train = replace(train, weight_decay=WEIGHT_DECAYS.get(trial.variant, OTHER))
    return replace(
        found,
        seed=trial.seed,
        task=replace(found.task, data=split_by(found.task.data, trial.seed)),
        train=train,
        tps=Tps(variant=trial.variant, coupling=1.0, apply="loss"),  # type: ignore[arg-type]
    )


def _shares(model: nn.Module, probe: torch.Tensor) -> dict[str, float]:
    """Return the effective rank of what each group's consumers are fed, over the width."""
    widths = pruning.consumer_widths(model, pruning.find_groups(model, probe[:2]))
    moments = input_moments(model, [probe], {name: n for fed in widths.values() for name, n in fed.items()})
    return {
        group: fmean(
            float(effective_rank(torch.linalg.eigvalsh(moments[name].covariance_nn))) / width
            for name, width in fed.items()
        )
        for group, fed in widths.items()
        if fed
    }
