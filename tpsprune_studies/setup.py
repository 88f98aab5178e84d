"""The settings that studies share, and a recipe made ready to be trained on the processor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, TypeVar, final

import torch
from torch import Tensor, nn

from tpsprune import data, models, tps, training
from tpsprune.data import Dataset, Split
from tpsprune.errors import DivergedError
from tpsprune.numerics.objective import Objective
from tpsprune.numerics.trees import Tree
from tpsprune.recipe import Recipe
from tpsprune.recipe.train import Tps
from tpsprune.tps import Regulariser
from tpsprune_studies.tasks import describe_data, split_data

FULL_SEEDS: Final = 10
ORDER_PARAMETER_ITEMS: Final = 256
"""Items that order parameters are read on, where a variant needs any."""
DEVICE: Final = torch.device("cpu")
"""What is compared is processor time, which does not count a graphics processor's."""
NO_TPS: Final = Tps(variant="none")
LATER: Final = (
    ("temperature", 1.0),
    ("attention", "softmax"),
    ("shards", None),
    ("spread", None),
    ("gather", None),
)
"""Settings that came later, at what a training without them is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The size of a study and its fixed rules.

    Pairs have the ``seeds`` seeds that follow ``pilot_seed``, on which alone rules and settings are chosen. A
    training ends at the first reading of validation accuracy at ``level`` or above, read every
    ``reading_steps`` optimiser steps, or after ``cap_steps``.
    """

    recipe: Recipe
    seeds: int = 4
    cap_steps: int = 5000
    level: float = 0.95
    reading_steps: int = 25
    weight_decays: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pilot_seed: int = 0
    threads: int = 1

    @property
    def pair_seeds(self) -> range:
        """The seeds of the comparison."""
        return range(self.pilot_seed + 1, self.pilot_seed + 1 + self.seeds)

    def command(self, name: str) -> str:
        """Return the command that runs the study at this size."""
        return f"tpsprune study {name} --seeds {self.seeds} --cap {self.cap_steps}"

    def describe(self) -> dict[str, Any]:
        """Return the settings that a finding names."""
        return {"seeds": list(self.pair_seeds), **self.decisive()}

    def decisive(self) -> dict[str, Any]:
        """Return, flat, every setting that a finished training depends on; the number of seeds is not one.

        Trainings with equal settings may stand in one journal. What trials vary among themselves (seed, arm,
        weight decay) is left to them.
        """
        own = {each.name: getattr(self, each.name) for each in fields(Setup)}
        sections = {
            "": {name: value for name, value in own.items() if name not in {"recipe", "seeds"}},
            "task.data.": describe_data(self.recipe.task.data),
            "task.model.": _without(self.recipe.task.model),
            "train.": _without(
                self.recipe.train, "weight_decay", "threads", "epochs", "checkpoint_seconds", "compile"
            ),
            "tps.": _without(self.recipe.tps, "variant"),
        }
        return {
            f"{section}{key}": list(value) if isinstance(value, tuple) else value
            for section, values in sections.items()
            for key, value in values.items()
        }


@dataclass(frozen=True, slots=True)
class Climb:
    """A training up to a reading of validation accuracy, and whether that is at the level.

    ``cpu_seconds`` are the processor time of its steps, TPS's own (``tps_cpu_seconds``) included, evaluation
    not.
    """

    steps: int = 0
    accuracy: float = 0.0
    reached: bool = False
    cpu_seconds: float = 0.0
    tps_cpu_seconds: float = 0.0


Sized = TypeVar("Sized", bound=Setup)


def resize(setup: Sized, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Sized:
    """Return the setup at the requested size; ``full`` is ten seeds, where no number is given."""
    if full:
        setup = replace(setup, seeds=FULL_SEEDS)
    return replace(setup, seeds=seeds or setup.seeds, cap_steps=cap_steps or setup.cap_steps)


def at_seed(recipe: Recipe, seed: int, regulariser: Tps = NO_TPS, **train: Any) -> Recipe:
    """Return the recipe with all that is random drawn from ``seed``, and with these settings of ``[train]``.

    One thread, unless ``train`` sets another number.
    """
    return replace(
        recipe,
        seed=seed,
        task=replace(recipe.task, data=split_data(recipe.task.data, seed)),
        train=replace(recipe.train, **{"threads": 1, **train}),
        tps=regulariser,
    )


@final
@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A recipe ready to be trained: its data, and its model before the first step, the same for a seed."""

    recipe: Recipe
    dataset: Dataset
    model: nn.Module
    execution: training.Execution

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return training.steps_per_epoch(len(self.dataset.train), self.recipe.train)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the recipe's whole schedule."""
        return training.count_steps(self.recipe.train.epochs, self.steps_per_epoch)

    def fit(
        self,
        last_step: int,
        regulariser: Regulariser | None = None,
        *,
        model: nn.Module | None = None,
        first_step: int = 0,
        total_steps: int | None = None,
    ) -> Iterator[training.Tick]:
        """Train the model, or another on the same data, up to ``last_step`` of ``total_steps``.

        A fresh optimiser; the schedule ends with ``last_step`` without a total. The processor seconds of a
        tick's penalty are all that the regulariser took in that step.

        Raises:
            DivergedError: the loss is no longer finite.
        """
        trained = model or self.model
        ticks = training.fit(
            trained,
            training.make_optimizer(trained, self.recipe.train),
            self.dataset.train.inputs,
            self.dataset.train.labels,
            prepare=self.dataset.prepare,
            settings=self.recipe.train,
            execution=self.execution,
            seed=self.recipe.seed,
            first_step=first_step,
            last_step=last_step,
            total_steps=total_steps or last_step,
            penalty=regulariser if regulariser and regulariser.in_loss else None,
            objective=Objective.of(self.recipe.task.loss, self.recipe.train.temperature),
        )
        for tick in ticks:
            if regulariser is None:
                yield tick
                continue
            started = time.process_time()
            regulariser.move(tick.step - 1, tick.learning_rate)
            spent = tick.penalty_cpu_seconds + time.process_time() - started
            yield replace(tick, penalty_cpu_seconds=spent)

    def climb(
        self,
        level: float,
        last_step: int,
        reading_steps: int,
        regulariser: Regulariser | None = None,
        *,
        model: nn.Module | None = None,
        total_steps: int | None = None,
        may_diverge: bool = False,
    ) -> Climb:
        """Train as ``fit`` does until validation accuracy is at the level; return the last reading.

        It is read every ``reading_steps`` and at the end. A training that ``may_diverge`` has lost where its
        loss is no longer finite: it never reaches the level, and its accuracy is 0.

        Raises:
            DivergedError: the loss of another is no longer finite.
        """
        climb, of_tps, resumed = Climb(), 0.0, time.process_time()
        try:
            for tick in self.fit(last_step, regulariser, model=model, total_steps=total_steps):
                of_tps += tick.penalty_cpu_seconds
                if tick.step % reading_steps and tick.step < last_step:
                    continue
                spent = climb.cpu_seconds + time.process_time() - resumed
                accuracy = self.evaluate(model=model).accuracy
                climb = Climb(tick.step, accuracy, accuracy >= level, spent, of_tps)
                if climb.reached:
                    break
                resumed = time.process_time()
        except DivergedError:
            if not may_diverge:
                raise
            return replace(climb, steps=last_step, accuracy=0.0)
        return climb

    def evaluate(self, split: Split | None = None, model: nn.Module | None = None) -> training.Score:
        """Return loss and accuracy on a split, the validation split if none is named."""
        split = split or self.dataset.validation
        return training.evaluate(
            model or self.model,
            split.inputs,
            split.labels,
            prepare=self.dataset.prepare,
            execution=self.execution,
            objective=Objective.of(self.recipe.task.loss, self.recipe.train.temperature),
        )

    def sample_calibration(self, items: int) -> tuple[Tree, Tensor]:
        """Return so many training items, ready for the model, and their labels, sampled by the seed."""
        order = torch.randperm(
            len(self.dataset.train), generator=torch.Generator().manual_seed(self.recipe.seed)
        )[:items]
        sampled = self.dataset.train.at(order)
        return self.dataset.prepare(sampled.inputs), sampled.labels

    def build_regulariser(self, total_steps: int, settings: Tps | None = None) -> Regulariser | None:
        """Bind the recipe's TPS, or that of ``settings``, to model and data; none where there is none.

        Raises:
            VariantError: the variant does not fit the task or the model.
        """
        train = self.dataset.train
        few = slice(0, ORDER_PARAMETER_ITEMS)
        return tps.build(
            settings or self.recipe.tps,
            self.model,
            self.dataset.facts,
            train_inputs=train.inputs,
            train_labels=train.labels,
            total_steps=total_steps,
            calibration=(self.dataset.prepare(train.inputs[few]), train.labels[few]),
        )


def prepare(recipe: Recipe) -> Prepared:
    """Load the data and build the model of a recipe, the same in every arm of a seed."""
    training.prepare_process(recipe.train, recipe.seed, DEVICE)
    dataset = data.load(recipe.task.data, recipe.task.loss)
    model = models.build(recipe.task.model, dataset.facts)
    return Prepared(recipe, dataset, model, training.Execution.of(recipe.train, DEVICE))


def _without(section: Any, *names: str) -> dict[str, Any]:
    held = {name: value for name, value in asdict(section).items() if name not in names}
    # Journals from before there was such a key are of trainings without.
    return {name: value for name, value in held.items() if (name, value) not in LATER}
