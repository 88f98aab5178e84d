"""The second job: prune a trained model, retrain it only if the recipe has epochs for it, benchmark both.

``check`` reports beforehand, without training, what the recipe works with and what pruning would leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from tpsprune import energy, models, pruning
from tpsprune.errors import Fault, RecipeError
from tpsprune.loop.meter import Ledger, Meter
from tpsprune.pipeline.load import Weights, read_pretrained_weights, read_weights, without_weights
from tpsprune.pipeline.plans import keep_base_plan
from tpsprune.pipeline.state import State, load_checkpoint, save_checkpoint
from tpsprune.pipeline.ticket import (
    count_parameters,
    draw_ticket,
    extraction_inputs,
    finish,
    restore_state,
    round_target,
)
from tpsprune.pipeline.workbench import Run, Workbench, find_unfinished, set_up, set_up_metered
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.prune import Joules
from tpsprune.recipe.task import CustomModel
from tpsprune.records import GIVEN, Checked, CheckedGroup, Decided, Decision, Event, Note
from tpsprune.runs import RunFolder, digest_of
from tpsprune.runs.tensors import save_tensors


def prune(
    recipe: Recipe,
    weights: Path | None,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    again: bool = False,
    timed: bool = True,
) -> Iterator[Event]:
    """Prune the recipe's model with trained weights; yield what happens, last the outcome.

    ``weights`` take the place of those that the recipe's model begins with, which are used without them.

    The run folder is made as ``train`` makes it; its digest is of recipe and weights together. There is no
    training that could leave a rest: ``retrain.epochs = "rest"`` is none, a number is that many epochs.
    Between rounds the ticket trains only where it is retrained at all. A bundle holds a
    ticket already; its further pruning is written as one plan from the recipe's own model. ``timed``: with
    the latency of both models at the end.

    Raises:
        TpspruneError: something requested is not available, or the weights do not fit; nothing has been
            written by then.
    """
    recipe, pretrained = without_training(recipe, weights), read_pretrained_weights(recipe, weights)
    text = dumps(recipe)
    digest = digest_of(f"{text}\nprune {pretrained.digest}")
    found = find_unfinished(out, recipe.name, digest) if resume else None
    with set_up_metered(recipe, device, found.energy if found else None) as (bench, ledger):
        model = build_pretrained(bench, pretrained)
        folder = found or RunFolder.create(out, recipe.name, digest, again=again)
        with Run(bench, folder, ledger).writing(text) as run:
            checkpoint = load_checkpoint(folder)
            if checkpoint is not None:
                state = restore_state(bench, folder, checkpoint)
                yield Note(f"resumed in stage '{state.stage}' at step {state.step}")
            else:
                state = _begin_pretrained(run, pretrained, model)
                assert state.drawn is not None
                yield Decided(decision=state.drawn)
            yield from finish(run, state, timed=timed)


def prune_dry(recipe: Recipe, weights: Path | None, *, device: str = "auto") -> Iterator[Event]:
    """Prune once in memory and show what it would cost; nothing is written.

    Raises:
        TpspruneError: as ``prune``.
    """
    recipe, pretrained = without_training(recipe, weights), read_pretrained_weights(recipe, weights)
    with set_up(recipe, device) as bench, _unkept_ledger(recipe) as ledger:
        target = round_target(recipe.prune.target, 1, recipe.prune.rounds)
        assert target is not None, "before the first round nothing is met"
        model = build_pretrained(bench, pretrained)
        yield from draw_ticket(bench, ledger, model, target, trains_on=recipe.retrain.epochs != 0)
        if recipe.prune.rounds > 1:
            yield Note(f"this is the first of {recipe.prune.rounds} rounds, to {target}")


def check(
    recipe: Recipe, device: str = "auto", *, weights: Path | None = None, widths: bool = True
) -> Checked:
    """Build the recipe's data and model, survey the model, and plan the widths of its target.

    Nothing is trained, and nothing is written but the cache of an image folder. Widths depend on the weights:
    ``weights`` are read as ``prune`` reads them; without them the recipe's own are used, or initial ones.
    They are of one round, where a recipe may go there in several.

    Raises:
        TpspruneError: whatever ``train`` would refuse before its first step; the weights do not fit.

    Cost: ``widths`` is a pass of ``prune.calibration_items`` items, and for a target of latency seconds, of
    joules minutes, of measuring; without it, setting up alone.
    """
    pretrained = None
    if weights is not None:
        pretrained = read_weights(weights)
        recipe = without_weights(recipe)
    with set_up(recipe, device) as bench, _unkept_ledger(recipe) as ledger:
        settings, dataset = recipe.prune, bench.dataset
        model = bench.new_model() if pretrained is None else build_pretrained(bench, pretrained)
        after: dict[str, int] = {}
        cost_share = None
        if widths:
            ready = bench.calibrated(model)
            inputs = extraction_inputs(ready, ledger, settings.units, settings.target)
            planned = pruning.plan_widths(model, ready.prune_batches, settings, **inputs)
            survey, count, cost_share = planned.prunability, planned.count, planned.cost_share
            after = planned.width_of
        else:
            survey, count = pruning.check_target(model, bench.watch_batches[0], settings)
        description, trained = _whose_weights(bench, pretrained)
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
            parameters=count_parameters(model),
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
            unpruned=survey.unpruned,
            layers=pruning.list_layers(model, survey, count),
            weights=description,
            trained=trained,
            cost_share=cost_share,
            rounds=settings.rounds,
            from_data=models.from_data(recipe.task.model, dataset.facts),
        )


def _unkept_ledger(recipe: Recipe) -> Ledger:
    """Return a ledger that nobody reads: it meters nothing, unless the target is a share of joules."""
    metered = isinstance(recipe.prune.target, Joules)
    ledger = Ledger(
        Meter(energy.build(recipe.energy if metered else replace(recipe.energy, meter="none"), 0))
    )
    ledger.switch("prune")
    return ledger


def _begin_pretrained(run: Run, pretrained: Weights, model: nn.Module) -> State:
    decision = Decision(kind="draw", act=True, step=0, epoch=0.0, rule=GIVEN, reason=pretrained.describe())
    if pretrained.plan is not None:
        keep_base_plan(run.folder, pretrained.plan)
    save_tensors(run.folder.dense, model.state_dict(), {})
    state = run.bench.begin(model, "prune", run.bench.recipe.stop.end)
    state = replace(state, drawn=decision).having_written(run.folder, [], [decision])
    save_checkpoint(run.folder, state, run.bench.panel)
    return state


def build_pretrained(bench: Workbench, pretrained: Weights) -> nn.Module:
    """Return the recipe's model with the trained weights, on the device of the run.

    Raises:
        ArtifactError: they do not fit.
        PruneError: they are a ticket's, whose target is out of reach.
    """
    model = bench.execution.place(pretrained.fill(bench.new_model(fill=False)))
    if pretrained.plan is not None:  # set_up checked it on the recipe's own model, which this one is not
        pruning.check_target(model, bench.watch_batches[0], bench.recipe.prune)
    return model


def without_training(recipe: Recipe, weights: Path | None) -> Recipe:
    """Return the recipe for a model that is trained already: what needs a training is refused."""
    if weights is not None:
        recipe = without_weights(recipe)
    if recipe.retrain.rewind != "none":
        message = (
            f"'{recipe.retrain.rewind}' needs the training that 'tpsprune train' does; "
            "use --set retrain.rewind=none here"
        )
        raise RecipeError(recipe.name, [Fault("retrain.rewind", message)])
    if recipe.retrain.epochs == "rest":
        return replace(recipe, retrain=replace(recipe.retrain, epochs=0))
    return recipe


def _whose_weights(bench: Workbench, pretrained: Weights | None) -> tuple[str, bool]:
    """Return whose weights were used, and whether they are anybody's but initial ones."""
    if pretrained is not None:
        return pretrained.describe(), True
    if bench.initial_weights:
        return bench.initial_weights, True
    if isinstance(bench.recipe.task.model, CustomModel):
        return "weights as the factory made them", True
    return "initial weights, untrained", False
