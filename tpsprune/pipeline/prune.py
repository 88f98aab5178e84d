"""The second job: a trained model is given; cut it, retrain it only if the recipe says so, weigh both."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from tpsprune import energy, pruning
from tpsprune.errors import Fault, RecipeError
from tpsprune.pipeline.begin import begun
from tpsprune.pipeline.bench import Bench, set_up
from tpsprune.pipeline.bill import Bill
from tpsprune.pipeline.cut import drawn
from tpsprune.pipeline.rounds import keep_base, round_target
from tpsprune.pipeline.running import attempt, found_run, longest_window, running_in
from tpsprune.pipeline.state import State, load_checkpoint, save_checkpoint
from tpsprune.pipeline.ticket import finished, restored
from tpsprune.pipeline.weights import Weights, given_weights, without_weights
from tpsprune.recipe import Recipe, dumps
from tpsprune.records import GIVEN, Decided, Decision, Event, Note
from tpsprune.runs import RunFolder, digest_of
from tpsprune.runs.tensors import save_tensors

__all__ = ["filled", "prune", "prune_dry"]


def prune(
    recipe: Recipe,
    weights: Path | None,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    again: bool = False,
) -> Iterator[Event]:
    """Cut the recipe's model with the weights given; yield what happens, last the outcome.

    Without ``weights`` they are those that the recipe's model begins with; given ones take their place.

    The run folder is made as ``train`` makes it; its digest is of recipe and weights together. There is no
    training that could leave a rest: ``retrain.epochs = "rest"`` is none, a number is that many epochs.
    Between rounds the ticket trains only where it is retrained at all. A model given as a bundle is a
    ticket; its further cut is written as one plan from the recipe's own model.

    Raises:
        TpspruneError: something asked for cannot be had, or the weights do not fit; nothing has been
            written by then.
    """
    recipe, given = _retrofit(recipe, weights), given_weights(recipe, weights)
    text = dumps(recipe)
    digest = digest_of(f"{text}\nprune {given.digest}")
    found = found_run(out, recipe.name, digest) if resume else None
    with Bill(energy.build(recipe.energy, attempt(found)), longest_window(recipe)) as bill:
        bill.switch("setup")
        with set_up(recipe, device) as bench:
            model = filled(bench, given)
            folder = found or RunFolder.create(out, recipe.name, digest, again=again)
            with running_in(folder, text, bill):
                yield from _flow(bench, folder, bill, given, model)


def prune_dry(recipe: Recipe, weights: Path | None, *, device: str = "auto") -> Iterator[Event]:
    """Do the first cut in memory and show what it would cost; nothing is written.

    Raises:
        TpspruneError: as ``prune``.
    """
    recipe, given = _retrofit(recipe, weights), given_weights(recipe, weights)
    with Bill(energy.build(replace(recipe.energy, meter="none"), 0)) as bill:
        bill.switch("setup")
        with set_up(recipe, device) as bench:
            target = round_target(recipe.prune.target, 1, recipe.prune.rounds)
            assert target is not None, "before the first round nothing is met"
            yield from drawn(bench, bill, filled(bench, given), target)
            if recipe.prune.rounds > 1:
                yield Note(f"this is the first of {recipe.prune.rounds} rounds, to {target}")


def _flow(
    bench: Bench, folder: RunFolder, bill: Bill, given: Weights, model: nn.Module
) -> Generator[Event, None, None]:
    checkpoint = load_checkpoint(folder)
    if checkpoint is not None:
        state = restored(bench, folder, checkpoint)
        yield Note(f"resumed in stage '{state.stage}' at step {state.step}")
    else:
        state = _begun(bench, folder, given, model)
        assert state.drawn is not None
        yield Decided(decision=state.drawn)
    yield from finished(bench, folder, bill, state)


def _begun(bench: Bench, folder: RunFolder, given: Weights, model: nn.Module) -> State:
    decision = Decision(kind="draw", act=True, step=0, epoch=0.0, rule=GIVEN, reason=given.describe())
    if given.plan is not None:
        keep_base(folder, given.plan)
    save_tensors(folder.dense, model.state_dict(), {})
    state = begun(bench, model, "cut", bench.recipe.stop.end)
    state = replace(state, drawn=decision).having_written(folder, [], [decision])
    save_checkpoint(folder, state, bench.panel)
    return state


def filled(bench: Bench, given: Weights) -> nn.Module:
    """Return the recipe's model with the weights given, where it will be computed.

    Raises:
        ArtifactError: they do not fit.
        PruneError: they are a ticket's, whose target is out of reach.
    """
    model = bench.execution.place(given.fill(bench.new_model(fill=False)))
    if given.plan is not None:  # set_up asked it of the recipe's own model, which this one is not
        pruning.check_target(model, bench.probe[0], bench.recipe.prune)
    return model


def _retrofit(recipe: Recipe, weights: Path | None) -> Recipe:
    """Return the recipe as it is meant for a model that is given: what needs a training is refused."""
    if weights is not None:
        recipe = without_weights(recipe)
    if recipe.retrain.rewind != "none":
        message = (
            f"'{recipe.retrain.rewind}' needs the training that 'tpsprune train' does; "
            "--set retrain.rewind=none would do here"
        )
        raise RecipeError(recipe.name, [Fault("retrain.rewind", message)])
    if recipe.retrain.epochs == "rest":
        return replace(recipe, retrain=replace(recipe.retrain, epochs=0))
    return recipe
