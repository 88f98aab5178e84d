"""What a recipe would work with, found out without training: data, model, what can be pruned, the target."""

from __future__ import annotations

from torch import nn

from tpsprune import pruning
from tpsprune.pipeline.bench import set_up
from tpsprune.recipe import Recipe
from tpsprune.records import Checked, CheckedGroup

__all__ = ["check"]


def check(recipe: Recipe, device: str = "auto") -> Checked:
    """Build the recipe's data and model and survey the model; nothing is trained.

    Nothing is written but the cache of an image folder.

    Raises:
        TpspruneError: whatever ``train`` would refuse before its first step.
    """
    with set_up(recipe, device) as bench:
        model = bench.new_model()
        survey, count = pruning.check_target(model, bench.probe[0], recipe.prune)
        dataset = bench.dataset
        return Checked(
            name=recipe.name,
            device=bench.execution.describe(),
            task=dataset.facts,
            items={
                "train": len(dataset.train),
                "validation": len(dataset.validation),
                "test": len(dataset.test),
            },
            steps_per_epoch=bench.steps_per_epoch,
            parameters=_parameters(model),
            macs=count.total,
            target=str(recipe.prune.target),
            groups=tuple(
                CheckedGroup(
                    name=group.name,
                    width=group.width,
                    layers=group.producers,
                    members=group.members,
                    readers=tuple(dict.fromkeys(consumer.module for consumer in group.consumers)),
                    kind=group.kind,
                )
                for group in survey.groups
            ),
            left_alone=survey.left_alone,
        )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
