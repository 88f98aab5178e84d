"""One training of the study ``coupling``: held at one λ up to the level, or led through many, up and down."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Final, Literal, TypeAlias, final

import torch
from torch import Tensor

from tpsprune import training
from tpsprune.data import Dataset
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import split_by
from tpsprune.recipe.train import Tps
from tpsprune.studies.setup import Setup
from tpsprune.studies.trial import DEVICE, accuracy_of, begin, regulariser_of, ticks_of
from tpsprune.tps.regulariser import Regulariser

__all__ = ["ORDERS", "Answers", "Coupled", "CouplingSetup", "CouplingTrial", "Scaling", "run_coupling"]

Answers: TypeAlias = Literal["sums", "random"]
Scaling: TypeAlias = Literal["none", "sqrt-n"]

ORDERS: Final = {"labels": ("tps_coherence", ""), "weights": ("tps_z1", "hidden.0")}
"""The order parameter of each variant: its signal and its group."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CouplingSetup:
    """The study's size: what all studies have, the widths tried, and the steps that a ramp spends at a λ.

    What is dear takes the first half of the seeds: ramps, ``weights``, and the widest nets. The ramp of
    ``slow_size`` is led through once more at ``slow_steps``: a loop that is only lag shrinks there.
    """

    common: Setup
    sizes: tuple[int, ...]
    ramp_steps: int = 50
    slow_steps: int = 200
    slow_size: int = 160

    @property
    def half_seeds(self) -> range:
        """The seeds of ramps, of ``weights`` and of the widest nets."""
        seeds = self.common.pair_seeds
        return seeds[: (len(seeds) + 1) // 2]

    def decisive(self) -> dict[str, Any]:
        """Return, flat, every setting that a finished training depends on and its trial does not name."""
        idle = {
            "weight_decays",
            "task.model.widths",
            "tps.coupling",
            "tps.apply",
            "tps.scaling",
            "pilot_seed",
        }
        idle |= {"tps.warmup_share", "cap_steps"}
        return {
            **{name: value for name, value in self.common.decisive().items() if name not in idle},
            "train.weight_decay": self.common.recipe.train.weight_decay,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CouplingTrial:
    """A training: each of ``couplings`` for ``steps_each`` steps; one that is held ends at the level."""

    variant: str
    width: int
    seed: int
    couplings: tuple[float, ...]
    steps_each: int
    answers: Answers = "sums"
    scaling: Scaling = "none"

    @property
    def arm(self) -> str:
        """What costs alike."""
        kind = f"ramp of {self.steps_each}" if self.is_ramp else "held"
        return f"{kind} {self.variant} {self.width}"

    @property
    def is_ramp(self) -> bool:
        """Whether λ changes."""
        return len(self.couplings) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupled:
    """A training that is done: steps taken, whether the level was reached, validation accuracy then.

    ``orders`` is the variant's order parameter at the end of each coupling, ``train_accuracies`` what of the
    answers trained on is known there. Without TPS the order is that of ``labels``.
    """

    trial: CouplingTrial
    steps: int
    reached: bool
    accuracy: float
    orders: tuple[float, ...]
    train_accuracies: tuple[float, ...]
    cpu_seconds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the training as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Coupled:
        """Rebuild a training written by ``to_json``."""
        trial = CouplingTrial(**{**raw["trial"], "couplings": tuple(raw["trial"]["couplings"])})
        lists = {name: tuple(raw[name]) for name in ("orders", "train_accuracies")}
        return cls(**{**raw, **lists, "trial": trial})


def run_coupling(setup: CouplingSetup, trial: CouplingTrial) -> Coupled:
    """Do one training on the processor.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    found = _recipe_of(setup, trial)
    dataset, model = begin(found)
    if trial.answers == "random":
        dataset = _with_random_answers(dataset, trial.seed)
    execution = training.Execution.of(found.train, DEVICE)
    last_step = trial.steps_each * len(trial.couplings)
    regulariser = regulariser_of(found, dataset, model, last_step)
    assert regulariser is not None
    penalty = _Led(regulariser, trial) if regulariser.in_loss else None
    steps, accuracy, orders, train_accuracies = 0, 0.0, [], []
    for tick in ticks_of(found, dataset, model, execution, last_step, penalty):
        steps, coupling = tick.step, _coupling(trial, tick.step - 1)
        if coupling:
            regulariser.move(steps - 1, tick.learning_rate * coupling)
        at_the_end = False
        if not trial.is_ramp and (steps % setup.common.reading_steps == 0 or steps == last_step):
            accuracy = accuracy_of(model, dataset, execution)
            at_the_end = accuracy >= setup.common.level
        if at_the_end or steps % trial.steps_each == 0:
            orders.append(_order(regulariser, found.tps.variant))
            train_accuracies.append(accuracy_of(model, dataset, execution, dataset.train))
        if at_the_end:
            break
    accuracy = accuracy_of(model, dataset, execution)
    return Coupled(
        trial=trial,
        steps=steps,
        reached=accuracy >= setup.common.level,
        accuracy=accuracy,
        orders=tuple(orders),
        train_accuracies=tuple(train_accuracies),
        cpu_seconds=time.process_time() - cpu_started,
        seconds=time.monotonic() - started,
    )


def _recipe_of(setup: CouplingSetup, trial: CouplingTrial) -> Recipe:
    """Return the recipe as ``trial`` runs it; the regulariser has λ = 1, which each step multiplies."""
    found = setup.common.recipe
    variant = "labels" if trial.variant == "none" else trial.variant
    return replace(
        found,
        seed=trial.seed,
        task=replace(
            found.task,
            data=split_by(found.task.data, trial.seed),
            model=replace(found.task.model, widths=(trial.width,)),  # type: ignore[arg-type]
        ),
        train=replace(found.train, threads=setup.common.threads),
        tps=Tps(
            variant=variant,  # type: ignore[arg-type]
            coupling=1.0,
            scaling=trial.scaling,
            warmup_share=0.0,
        ),
    )


def _with_random_answers(dataset: Dataset, seed: int) -> Dataset:
    """Return the data with the answers trained on dealt out anew: nothing is left to understand."""
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))
    return replace(dataset, train=replace(dataset.train, labels=dataset.train.labels[order]))


def _coupling(trial: CouplingTrial, step: int) -> float:
    return trial.couplings[step // trial.steps_each]


@final
@dataclass(frozen=True, slots=True)
class _Led:
    """A regulariser of λ = 1, led through the couplings of a trial; it reads weights alone."""

    regulariser: Regulariser
    trial: CouplingTrial
    rides: ClassVar[bool] = False

    def listening(self) -> AbstractContextManager[None]:
        return nullcontext()

    def penalty(
        self, step: int, label_i: Tensor | None = None, task_loss: Tensor | None = None
    ) -> Tensor | None:
        coupling = _coupling(self.trial, step)
        term = self.regulariser.penalty(step, label_i, task_loss) if coupling else None
        return None if term is None else coupling * term


def _order(regulariser: Regulariser, variant: str) -> float:
    signal, group = ORDERS[variant]
    return next(
        float(reading.value or 0.0)
        for reading in regulariser.order_parameters(step=0, epoch=0.0)
        if (reading.signal, reading.group) == (signal, group)
    )
