"""What a recipe would work with, found out without training: data, model, what of it a cut would leave."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tpsprune import models, pruning
from tpsprune.pipeline.bench import Bench, set_up
from tpsprune.pipeline.cut import asked
from tpsprune.pipeline.prune import filled
from tpsprune.pipeline.weights import Weights, read_weights, without_weights
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import CustomModel
from tpsprune.records import Checked, CheckedGroup

__all__ = ["check"]


def check(
    recipe: Recipe, device: str = "auto", *, weights: Path | None = None, widths: bool = True
) -> Checked:
    """Build the recipe's data and model, survey the model, and foresee the widths of its target.

    Nothing is trained, and nothing is written but the cache of an image folder. Widths hang on the weights:
    ``weights`` are read as ``prune`` reads them; without them the recipe's own are looked at, or those that
    were drawn. They are of one cut, where a recipe may go there in rounds.

    Raises:
        TpspruneError: whatever ``train`` would refuse before its first step; the weights do not fit.

    Cost: ``widths`` is a look at the model on ``prune.probe_items`` items, and for a target of latency
    seconds of measuring; without it, setting up alone.
    """
    given = None
    if weights is not None:
        given = read_weights(weights)
        recipe = without_weights(recipe)
    with set_up(recipe, device) as bench:
        settings, dataset = recipe.prune, bench.dataset
        model = bench.new_model() if given is None else filled(bench, given)
        after: dict[str, int] = {}
        cost_share = None
        if widths:
            ahead = pruning.plan_widths(
                model, bench.cut_probe, settings, **asked(bench, settings.units, settings.target)
            )
            survey, count, cost_share = ahead.survey, ahead.count, ahead.cost_share
            after = {group.name: width for group, width in zip(survey.groups, ahead.widths, strict=True)}
        else:
            survey, count = pruning.check_target(model, bench.probe[0], settings)
        words, trained = _weights(bench, given)
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
            target=str(settings.target),
            groups=tuple(
                CheckedGroup(
                    name=group.name,
                    width=group.width,
                    layers=group.producers,
                    members=group.members,
                    readers=tuple(dict.fromkeys(consumer.module for consumer in group.consumers)),
                    kind=group.kind,
                    width_after=after.get(group.name),
                )
                for group in survey.groups
            ),
            left_alone=survey.left_alone,
            layers=pruning.layers_of(model, survey, count),
            weights=words,
            trained=trained,
            cost_share=cost_share,
            rounds=settings.rounds,
            from_data=models.from_data(recipe.task.model, dataset.facts),
        )


def _weights(bench: Bench, given: Weights | None) -> tuple[str, bool]:
    """Return whose weights were looked at, and whether they are anybody's but drawn ones."""
    if given is not None:
        return given.describe(), True
    if bench.given:
        return bench.given, True
    if isinstance(bench.recipe.task.model, CustomModel):
        return "weights as the factory made them", True
    return "weights drawn anew, untrained", False


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
