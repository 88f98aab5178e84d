"""One training of a study: from a seed and an arm to the steps and processor seconds it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tpsprune import data, models, tps, training
from tpsprune.data import Dataset, Split
from tpsprune.recipe import Recipe
from tpsprune.studies.setup import Setup

__all__ = [
    "DEVICE",
    "Arm",
    "Stage",
    "Trained",
    "Trial",
    "accuracy_of",
    "begin",
    "probe_of",
    "recipe_of",
    "run_trial",
    "ticks_of",
]

Arm: TypeAlias = Literal["none", "weights", "neurons", "fourier", "labels"]
Stage: TypeAlias = Literal["pilot", "pair"]

DEVICE: Final = torch.device("cpu")
"""What is compared is processor time, and a graphics processor's is not on that clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A training to be done: ``arm`` is a TPS variant; ``seed`` decides weights, split and order alike."""

    stage: Stage
    seed: int
    arm: Arm
    weight_decay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A training that is done.

    ``steps`` were taken until the first reading at the level, or up to the cap where it was not ``reached``;
    ``cpu_seconds`` are those steps' processor time, TPS's own (``tps_cpu_seconds``) among it, evaluation not.
    ``seconds`` is wall time of the whole, for estimates of time left only.
    """

    trial: Trial
    steps: int
    reached: bool
    validation_accuracy: float
    cpu_seconds: float
    tps_cpu_seconds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the training as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Trained:
        """Rebuild a training written by ``to_json``."""
        return cls(**{**raw, "trial": Trial(**raw["trial"])})


def recipe_of(setup: Setup, trial: Trial) -> Recipe:
    """Return the study's recipe as ``trial`` runs it: one thread, and all that differs between trials."""
    recipe = setup.recipe
    return replace(
        recipe,
        seed=trial.seed,
        task=replace(recipe.task, data=replace(recipe.task.data, split_seed=trial.seed)),
        train=replace(recipe.train, weight_decay=trial.weight_decay, threads=setup.threads),
        tps=replace(recipe.tps, variant=trial.arm),
    )


def begin(recipe: Recipe) -> tuple[Dataset, nn.Module]:
    """Return the data and the model before its first step: the same in every arm of a seed."""
    training.prepare_process(recipe.train, recipe.seed, DEVICE)
    dataset = data.load(recipe.task.data)
    return dataset, models.build(recipe.task.model, dataset.facts)


def ticks_of(
    recipe: Recipe,
    dataset: Dataset,
    model: nn.Module,
    execution: training.Execution,
    cap_steps: int,
    penalty: training.Penalty | None = None,
) -> Iterator[training.Tick]:
    """Return the training from its first step to the cap, on a schedule of that length."""
    return training.fit(
        model,
        training.make_optimizer(model, recipe.train),
        dataset.train.inputs,
        dataset.train.labels,
        prepare=dataset.prepare,
        settings=recipe.train,
        execution=execution,
        seed=recipe.seed,
        first_step=0,
        last_step=cap_steps,
        total_steps=cap_steps,
        penalty=penalty,
    )


def probe_of(dataset: Dataset, seed: int, items: int) -> Tensor:
    """Return so many training items, ready for the model, drawn by the seed."""
    index = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:items]
    return dataset.prepare(dataset.train.inputs[index])


def accuracy_of(
    model: nn.Module, dataset: Dataset, execution: training.Execution, split: Split | None = None
) -> float:
    """Return the accuracy on a split, the validation split if none is named."""
    split = split or dataset.validation
    return training.evaluate(
        model,
        split.inputs,
        split.labels,
        prepare=dataset.prepare,
        execution=execution,
    ).accuracy


def run_trial(setup: Setup, trial: Trial) -> Trained:
    """Train on the processor until validation accuracy is at the level, or up to the cap.

    Validation is read every ``setup.reading_steps`` steps and once more at the cap.

    Raises:
        VariantError: the arm's TPS variant does not fit the task or the model.
        DivergedError: the loss is no longer finite.
    """
    started = time.monotonic()
    recipe = recipe_of(setup, trial)
    dataset, model = begin(recipe)
    execution = training.Execution.of(recipe.train, DEVICE)
    regulariser = tps.build(
        recipe.tps,
        model,
        dataset.facts,
        train_inputs=dataset.train.inputs,
        train_labels=dataset.train.labels,
        total_steps=setup.cap_steps,
    )
    penalty = regulariser if regulariser and regulariser.in_loss else None
    ticks = ticks_of(recipe, dataset, model, execution, setup.cap_steps, penalty)
    steps, accuracy, cpu_seconds, tps_cpu_seconds = 0, 0.0, 0.0, 0.0
    resumed = time.process_time()
    for tick in ticks:
        moved = time.process_time()
        if regulariser is not None:
            regulariser.move(tick.step - 1, tick.learning_rate)
            tps_cpu_seconds += tick.penalty_cpu_seconds + time.process_time() - moved
        if tick.step % setup.reading_steps and tick.step < setup.cap_steps:
            continue
        cpu_seconds += time.process_time() - resumed
        steps = tick.step
        accuracy = accuracy_of(model, dataset, execution)
        if accuracy >= setup.level:
            break
        resumed = time.process_time()
    return Trained(
        trial=trial,
        steps=steps,
        reached=accuracy >= setup.level,
        validation_accuracy=accuracy,
        cpu_seconds=cpu_seconds,
        tps_cpu_seconds=tps_cpu_seconds,
        seconds=time.monotonic() - started,
    )
