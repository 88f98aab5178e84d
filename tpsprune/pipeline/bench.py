"""What a run works with, set up once and not changed thereafter."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from tpsprune import data, models, pruning, tps, training
from tpsprune.data import Dataset
from tpsprune.numerics.objective import Objective
from tpsprune.numerics.trees import Tree, at, join_items, split_evenly
from tpsprune.pipeline.weights import begins_with
from tpsprune.recipe import Recipe
from tpsprune.signals import Panel
from tpsprune.training import Execution, Score

__all__ = ["Bench", "set_up"]

PROBE_BATCH_ITEMS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Data on the device, the probes, the signals and how to compute, all from one recipe.

    ``probe`` is what the signals look at, ``cut_probe`` what a cut is chosen and fitted on.
    """

    recipe: Recipe
    dataset: Dataset
    execution: Execution
    objective: Objective
    probe: tuple[Tree, ...]
    probe_labels: tuple[Tensor, ...]
    cut_probe: tuple[Tree, ...]
    cut_labels: tuple[Tensor, ...]
    panel: Panel
    given: str = ""
    """The weights that the model begins with, where they are not drawn anew."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.panel.close()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return training.steps_per_epoch(len(self.dataset.train), self.recipe.train)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole budget."""
        return self.recipe.train.epochs * self.steps_per_epoch

    @property
    def reading_steps(self) -> int:
        """Steps between two readings."""
        watch = self.recipe.watch
        return watch.every_steps or (watch.every_epochs or 1) * self.steps_per_epoch

    @property
    def chance_accuracy(self) -> float:
        """What guessing scores: of classes, as if they were equally common; else as ``Objective`` has it."""
        return self.objective.chance(self.dataset.train.labels, self.dataset.facts.classes)

    def new_model(self, *, fill: bool = True) -> nn.Module:
        """Build the model as it is before the first step: equal at equal seeds.

        Who fills it from elsewhere says ``fill=False``: the weights that the recipe names are not read then.
        """
        torch.manual_seed(self.recipe.seed)
        facts = self.dataset.facts
        return self.execution.place(models.build(self.recipe.task.model, facts, fill=fill))

    def regulariser(self, model: nn.Module) -> tps.Regulariser | None:
        """Bind the recipe's TPS to ``model``; ``None`` where there is none."""
        return tps.build(
            self.recipe.tps,
            model,
            self.dataset.facts,
            train_inputs=self.dataset.train.inputs,
            train_labels=self.dataset.train.labels,
            total_steps=self.total_steps,
            probe=(join_items(self.probe), torch.cat(self.probe_labels)),
        )

    def sites(self, model: nn.Module) -> pruning.Sites:
        """Return where the signals look in a model of this width; nowhere where there are none."""
        if not self.recipe.watch.signals:
            return pruning.Sites({}, {}, {})
        return pruning.sites(model, pruning.survey(model, self.probe[0], self.recipe.prune.leave_alone))

    def score(self, model: nn.Module, split: data.Split) -> Score:
        """Evaluate ``model`` on one split."""
        return training.evaluate(
            model,
            split.inputs,
            split.labels,
            prepare=self.dataset.prepare,
            execution=self.execution,
            objective=self.objective,
        )


def set_up(recipe: Recipe, device_word: str, *, cuts: bool = True) -> Bench:
    """Load the data, fix the process, draw the probe batch; build once what could be refused.

    Where nothing ``cuts`` the model, the target is not asked of it and no probe is drawn for a cut: a model
    that is only trained pays for neither.

    Raises:
        TpspruneError: anything the recipe asks for that cannot be had here. Nothing is written by then.
    """
    execution = Execution.of(recipe.train, training.choose_device(device_word))
    training.prepare_process(recipe.train, recipe.seed, execution.device)
    objective = Objective.of(recipe.task.loss)
    dataset = data.load(recipe.task.data, recipe.task.loss).to(execution.device)
    probe, probe_labels = _probe(recipe.seed, dataset, execution, recipe.watch.probe_items)
    no_probe: tuple[tuple[Tree, ...], tuple[Tensor, ...]] = ((), ())
    cut_probe, labels = (
        _probe(recipe.seed, dataset, execution, recipe.prune.probe_items) if cuts else no_probe
    )
    panel = Panel.of(recipe.watch, recipe.seed)
    given = begins_with(recipe)
    bench = Bench(recipe, dataset, execution, objective, probe, probe_labels, cut_probe, labels, panel, given)
    model = bench.new_model()
    few = slice(0, 8)
    models.check_fits(
        model,
        execution.arrange(dataset.prepare(at(dataset.train.inputs, few))),
        dataset.train.labels[few],
        dataset.facts.classes,
        objective,
    )
    bench.regulariser(model)
    if cuts:
        pruning.check_target(model, bench.probe[0], recipe.prune)
    return bench


def _probe(
    seed: int, dataset: Dataset, execution: Execution, items: int
) -> tuple[tuple[Tree, ...], tuple[Tensor, ...]]:
    """Return fixed probe batches and their labels: training items, drawn once, without augmentation."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(dataset.train), generator=generator)[:items]
    index = index.to(execution.device)
    inputs = execution.arrange(dataset.prepare(at(dataset.train.inputs, index)))
    # Equal parts: a last batch of one item would stop a batch norm over vectors.
    parts = ceil(len(index) / PROBE_BATCH_ITEMS)
    return split_evenly(inputs, parts), torch.tensor_split(dataset.train.labels[index], parts)
