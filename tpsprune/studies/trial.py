"""What the trainings of all studies are put together from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from tpsprune import data, models, tps, training
from tpsprune.data import Dataset, Split
from tpsprune.numerics.objective import Objective
from tpsprune.recipe import Recipe
from tpsprune.tps import Regulariser

__all__ = [
    "DEVICE",
    "accuracy_of",
    "begin",
    "probe_of",
    "regulariser_of",
    "ticks_of",
]

FEW_ITEMS: Final = 256
"""Items that order parameters are read on, where a variant needs any."""
DEVICE: Final = torch.device("cpu")
"""What is compared is processor time, and a graphics processor's is not on that clock."""


def begin(recipe: Recipe) -> tuple[Dataset, nn.Module]:
    """Return the data and the model before its first step: the same in every arm of a seed."""
    training.prepare_process(recipe.train, recipe.seed, DEVICE)
    dataset = data.load(recipe.task.data, recipe.task.loss)
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
        objective=Objective.of(recipe.task.loss),
    )


def regulariser_of(
    recipe: Recipe, dataset: Dataset, model: nn.Module, total_steps: int
) -> Regulariser | None:
    """Bind the recipe's TPS to the model and the data that it trains on; none where there is none.

    Raises:
        VariantError: the variant does not fit the task or the model.
    """
    return tps.build(
        recipe.tps,
        model,
        dataset.facts,
        train_inputs=dataset.train.inputs,
        train_labels=dataset.train.labels,
        total_steps=total_steps,
        calibration=(dataset.prepare(dataset.train.inputs[:FEW_ITEMS]), dataset.train.labels[:FEW_ITEMS]),
    )


def probe_of(dataset: Dataset, seed: int, items: int) -> Tensor:
    """Return so many training items, ready for the model, drawn by the seed."""
    index = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:items]
    probe: Tensor = dataset.prepare(dataset.train.inputs[index])
    return probe


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
        objective=Objective.of(dataset.facts.loss),
    ).accuracy
