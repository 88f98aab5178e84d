"""The arms of a comparison: the recipe of each, and one run, inference and idle window as measured."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from math import ceil, fsum
from pathlib import Path
from statistics import fmean
from typing import Final

import torch
from torch import nn

from tpsprune import energy, measure
from tpsprune.errors import CannotWriteError, DivergedError, PruneError, RunFolderError
from tpsprune.loop.comparison import run_folders_in, windows_in
from tpsprune.loop.meter import Meter
from tpsprune.numerics.trees import Tree, at
from tpsprune.pipeline.equal_cost import TicketFacts, fit_epochs, plan_shape
from tpsprune.pipeline.load import Weights, rebuild_trained, without_weights
from tpsprune.pipeline.train import train, train_family, train_without_pruning
from tpsprune.pipeline.transfer import move_encoder, train_frozen
from tpsprune.pipeline.workbench import Workbench, set_up
from tpsprune.recipe import Recipe
from tpsprune.recipe.compare import EQUAL_COST, FROZEN, LEADERS, SIZED, TRANSFERRED
from tpsprune.recipe.prune import Macs, Widths
from tpsprune.recipe.stop import MaskRule, NoRule, PatienceRule, Rule
from tpsprune.recipe.train import Tps
from tpsprune.records import (
    ArmRun,
    Event,
    Finished,
    HistoryPoint,
    IdleSpan,
    InferenceSpan,
    Progress,
    SizedModel,
    StepSpan,
    Trained,
)
from tpsprune.runs import Begun, ComparisonFolder, RunFolder

NEW_WEIGHTS: Final = 1_000_000
"""Added to the seed where a shape gets new weights: the ticket's initial weights are another claim."""
BN_L1: Final = 1e-4
"""Weight of the L1 norm of batch-norm scales, as published (You et al. 2020, section 3)."""
ENCODER: Final = "the training of the encoder that an arm begins with"
HASH_BLOCK: Final = 2**20
WARM_UP_SECONDS: Final = 0.5


def arm_recipe(
    arm: str, recipe: Recipe, ticket: TicketFacts | None = None, epochs: float | None = None
) -> Recipe:
    """Return the recipe that an arm runs; without ``ticket``, as far as it is fixed beforehand.

    ``epochs`` is the length of the schedule of an opponent at equal cost.
    """
    dense = replace(
        recipe,
        tps=Tps(variant="none"),
        watch=replace(recipe.watch, signals=()),
        stop=replace(recipe.stop, draw=NoRule(), end=NoRule()),
        retrain=replace(recipe.retrain, rewind="none"),
    )
    match arm:
        case "dense":
            return _read_once(dense)
        case "dense-patience":
            return dense
        case "dense-stopped":
            return replace(recipe, retrain=replace(recipe.retrain, rewind="none"))
        case "ticket-without-tps":
            return replace(recipe, tps=Tps(variant="none"))
        case "shape-scratch":
            return _from_scratch(dense, recipe.train.epochs if ticket is None else ticket.epochs)
        case "dense-joules":
            return _for_epochs(dense, epochs or recipe.train.epochs)
        case "fine-tune" | "fine-tune-joules":
            return _for_epochs(without_weights(dense), epochs or recipe.train.epochs)
        case "frozen" | "frozen-ticket":
            rate = recipe.compare.head_learning_rate or recipe.train.learning_rate
            head = replace(without_weights(dense), train=replace(recipe.train, learning_rate=rate))
            return replace(head, retrain=replace(head.retrain, adapter="none"))
        case "family":
            least = recipe.prune.target if recipe.compare.sizes is None else Macs(min(recipe.compare.sizes))
            return replace(_read_once(dense), prune=replace(recipe.prune, target=least, rounds=1))
        case "scratch-joules" | "uniform-joules" | "dense-each" | "each-joules":
            return _from_scratch(dense, epochs or recipe.train.epochs)
        case "random-ticket":
            target = recipe.prune.target if ticket is None else Widths(ticket.widths)
            prune = replace(recipe.prune, target=target, units="random", rounds=1)
            return replace(recipe, prune=prune)
        case "early-bird":
            return _early_bird(recipe)
        case _:
            return recipe


def _read_once(recipe: Recipe) -> Recipe:
    """Return the recipe with one reading, at its end: where readings change nothing, they only cost."""
    last = ceil(recipe.train.epochs)
    return replace(recipe, watch=replace(recipe.watch, every_epochs=last, every_steps=None))


def _for_epochs(recipe: Recipe, epochs: float) -> Recipe:
    return _read_once(replace(recipe, train=replace(recipe.train, epochs=epochs)))


def _from_scratch(recipe: Recipe, epochs: float) -> Recipe:
    return _for_epochs(replace(without_weights(recipe), seed=recipe.seed + NEW_WEIGHTS), epochs)


def _early_bird(recipe: Recipe) -> Recipe:
    """Return a recipe after Early-Bird: a mask an epoch, drawn below 0.1 at any accuracy.

    Pruned by batch-norm scales to the recipe's target, weights inherited, no compensation; the rest of
    the schedule is the recipe's, and its end too: an end by patience is as long in epochs. Two things differ
    from the published code: masks keep half of the units whatever the target, and the scales of a group are
    ranked over their mean.

    Source: You et al. 2020, "Drawing Early-Bird Tickets" (arXiv 1909.11957).
    """
    end, cadence = recipe.stop.end, recipe.watch.every_epochs or 1
    if isinstance(end, PatienceRule) and recipe.watch.every_steps is None:
        end = replace(end, patience=end.patience * cadence)
    return replace(
        recipe,
        tps=Tps(variant="bn-l1", coupling=BN_L1, warmup_share=0.0),
        watch=replace(recipe.watch, signals=("mask_distance",), every_epochs=1, every_steps=None),
        stop=replace(recipe.stop, draw=MaskRule(min_adjusted_accuracy=0.0), end=end),
        prune=replace(
            recipe.prune,
            widths="global-magnitude",
            units="bn-scale",
            compensate=False,
            reconstruct=False,
            recalibrate=False,
            repair=False,
            rounds=1,
        ),
        retrain=replace(recipe.retrain, rewind="none", teacher="none", adapter="none"),
    )


def measure_run(
    begun: Begun,
    recipe: Recipe,
    folder: ComparisonFolder,
    *,
    tickets: Sequence[TicketFacts] = (),
    steps: Sequence[StepSpan] = (),
    encoder: Weights | None = None,
    device: str,
) -> Generator[Event, None, ArmRun]:
    """Make the run that has begun and return it as measured; one that ends without a model names its failure.

    ``tickets``: what the run that it depends on has found, of several sizes each by itself; ``encoder``: what
    was trained elsewhere, for arms that begin with it. Training that
    leaves the finite numbers, and pruning that is refused, are outcomes of the arm; anything else ends the
    comparison.
    """
    seeded = replace(recipe, seed=begun.seed)
    out = folder.path / begun.folder
    left: list[Finished | Trained] = []
    history: list[HistoryPoint] = []
    failure = ""
    try:
        for event in _run_arm(
            begun.arm, seeded, out, tickets=tickets, steps=steps, encoder=encoder, device=device
        ):
            if isinstance(event, Progress) and event.read:
                history.append(
                    HistoryPoint(
                        epoch=event.epoch,
                        joules=event.joules,
                        validation_accuracy=event.validation_accuracy,
                        signals=dict(event.signals),
                    )
                )
            if isinstance(event, Finished | Trained):
                left.append(event)
            else:
                yield event
    except DivergedError as error:
        failure = str(error.__cause__ or error)
    except PruneError as error:
        failure = str(error)
    except CannotWriteError as error:
        raise CannotWriteError(f"{error.__cause__ or error}, then give the same command again") from error
    runs = run_folders_in(out)
    with Meter(energy.build(recipe.energy, 0)) as meter:
        method = meter.method
    if begun.arm in TRANSFERRED:
        method = replace(method, excluded=(*method.excluded, ENCODER))
    measured = ArmRun(
        arm=begun.arm,
        seed=begun.seed,
        pair=begun.pair,
        position=begun.position,
        windows=windows_in(runs),
        method=method,
        history=tuple(history),
        failure=failure,
        given=_given(begun.arm, encoder),
        folder=str(runs[0].path.relative_to(folder.path)) if runs else "",
        logical_cpus=os.cpu_count() or 1,
    )
    if failure:
        return measured
    if begun.arm in SIZED:
        return _with_sizes(measured, recipe, [each for each in left if isinstance(each, Trained)], folder)
    return _with_outcome(measured, runs[0], left[-1])


def _given(arm: str, encoder: Weights | None = None) -> str:
    """Return what an arm is handed that the ticket's run had to find, or that was trained elsewhere."""
    if arm in TRANSFERRED and encoder is not None:
        cost = " and the cost of the frozen ticket's run" if arm in EQUAL_COST else ""
        return f"an encoder, whose training is not counted ({encoder.describe()}){cost}"
    if arm in SIZED:
        cost = " and its cost" if arm in EQUAL_COST else ""
        return f"the shape of each size that the family's run found{cost}" if arm in LEADERS else ""
    if arm in EQUAL_COST:
        shape = {"dense-joules": "", "scratch-joules": "the shape and "}.get(arm, "the MACs and ")
        return f"{shape}the cost of the ticket's run"
    return "the shape, or the widths, that the ticket's run found" if arm in LEADERS else ""


def _run_arm(
    arm: str,
    recipe: Recipe,
    out: Path,
    *,
    tickets: Sequence[TicketFacts] = (),
    steps: Sequence[StepSpan] = (),
    encoder: Weights | None = None,
    device: str = "auto",
) -> Iterator[Event]:
    """Run one arm of the recipe, whose seed is the pair's; yield what happens, last what came out."""
    ticket = tickets[0] if tickets else None
    rules: dict[str, Rule | None] = {
        "dense": NoRule(),
        "dense-stopped": None,
        "dense-patience": PatienceRule(patience=recipe.compare.patience),
        "shape-scratch": NoRule(),
        "fine-tune": NoRule(),
    }
    new_model: Callable[[Workbench], nn.Module] = Workbench.new_model
    if arm in TRANSFERRED:
        assert encoder is not None, "compare refuses these arms without one"
        if arm in FROZEN:
            adapted, cuts = arm_recipe(arm, recipe), arm == "frozen-ticket"
            return train_frozen(adapted, out, encoder, cuts=cuts, device=device)
        new_model = partial(_with_encoder, encoder=encoder)
    if arm == "family":
        adapted, sizes = arm_recipe(arm, recipe), recipe.compare.sizes or ()
        return train_family(adapted, out, [Macs(each) for each in sizes], device=device)
    if arm in EQUAL_COST or arm == "dense-each":
        assert ticket is not None, "opponents come after the ticket"
        epochs = None
        # The shape is for nothing: what finding it takes is charged to no opponent.
        with set_up(arm_recipe("dense", recipe), device, prunes=False) as bench:
            plans = [plan_shape(arm, bench, each) for each in tickets]
            if arm in EQUAL_COST:
                epochs = fit_epochs(arm, steps, ticket, bench.steps_per_epoch)
        adapted = arm_recipe(arm, recipe, ticket, epochs)
        return chain.from_iterable(
            train_without_pruning(
                adapted, out, arm=arm, rule=NoRule(), plan=plan, new_model=new_model, device=device
            )
            for plan in plans
        )
    adapted = arm_recipe(arm, recipe, ticket)
    if arm not in rules:
        return train(adapted, out, device=device, again=True, timed=False)
    plan = ticket.plan if ticket is not None and arm == "shape-scratch" else None
    return train_without_pruning(
        adapted, out, arm=arm, rule=rules[arm], plan=plan, new_model=new_model, device=device
    )


def _with_encoder(bench: Workbench, *, encoder: Weights) -> nn.Module:
    return move_encoder(bench, encoder).ticket


def _with_sizes(
    measured: ArmRun, recipe: Recipe, left: Sequence[Trained], folder: ComparisonFolder
) -> ArmRun:
    """Return a run with the models it left; readings of several trainings make no history."""
    sizes = tuple(
        SizedModel(
            size=size,
            accuracy=each.figures.accuracy,
            parameters=each.figures.parameters,
            macs=each.figures.macs,
            folder=str(Path(each.folder).relative_to(folder.path)),
            weights_sha256=_sha256(RunFolder(Path(each.folder)).ticket),
        )
        for size, each in zip(recipe.compare.sizes or (), left, strict=True)
    )
    trainings = left[:1] if measured.arm == "family" else left
    return replace(
        measured,
        accuracy=fmean(each.accuracy for each in sizes),
        epochs=fsum(each.stopped.epoch for each in trainings),
        stopped_by=left[-1].stopped.rule,
        history=(),
        sizes=sizes,
    )


def _with_outcome(measured: ArmRun, run: RunFolder, last: Finished | Trained) -> ArmRun:
    drawn_epoch: float | None
    if isinstance(last, Finished):
        outcome = last.outcome
        figures, stopped, drawn_epoch = outcome.ticket, outcome.stopped, outcome.drawn.epoch
        measured = replace(measured, method=outcome.method, notes=outcome.notes)
    else:
        figures, stopped, drawn_epoch = last.figures, last.stopped, last.drawn_epoch
    return replace(
        measured,
        accuracy=figures.accuracy,
        validation_accuracy=measured.history[-1].validation_accuracy if measured.history else None,
        parameters=figures.parameters,
        macs=figures.macs,
        epochs=stopped.epoch,
        drawn_epoch=drawn_epoch,
        stopped_by=stopped.rule,
        weights_sha256=_sha256(_weights_of(run)),
    )


def measure_inference(
    runs: Sequence[ArmRun],
    recipe: Recipe,
    folder: ComparisonFolder,
    device: str,
    *,
    done: set[tuple[str, int]],
) -> Iterator[InferenceSpan]:
    """Yield, for each batch size and each run, what a window of inference took; arms take turns, ABBA.

    What is ``done``, by arm and batch size, is not done again.

    Models are rebuilt from their files, which must be those that the runs left. The batch is of test
    items, on the device, prepared as for evaluation; half a second of inference comes first that
    does not count.

    Raises:
        RunFolderError: a run's folder is missing, or holds another model than the one it left.
    """
    rules = recipe.compare
    due = [run for run in runs if any((run.arm, batch) not in done for batch in rules.inference_batches)]
    with set_up(recipe, device, prunes=False) as bench, Meter(energy.build(recipe.energy, 0)) as meter:
        models = {run.arm: bench.execution.place(_rebuild_left(run, folder, bench)) for run in due}
        order = list(due)
        for batch in rules.inference_batches:
            items_n = _test_batch(bench, batch)
            for run in (run for run in order if (run.arm, batch) not in done):
                with bench.execution.autocasting():
                    measure.infer_for(min(WARM_UP_SECONDS, rules.inference_seconds), models[run.arm], items_n)
                    with meter.window(f"inference at batch {batch}") as span:
                        items = measure.infer_for(rules.inference_seconds, models[run.arm], items_n)
                yield InferenceSpan(
                    arm=run.arm, seed=run.seed, pair=run.pair, batch=batch, items=items, window=span.window
                )
            order.reverse()


def _rebuild_left(run: ArmRun, folder: ComparisonFolder, bench: Workbench) -> nn.Module:
    """Return the model that a run left, from its files, once they are found to be the ones it wrote."""
    path = RunFolder(folder.path / run.folder)
    weights = _weights_of(path)
    if not weights.is_file() or _sha256(weights) != run.weights_sha256:
        raise RunFolderError(
            f"{weights} is not what the run of '{run.arm}', seed {run.seed}, left: restore it, or begin "
            "again with another --out"
        )
    return rebuild_trained(path, bench.recipe.task.model, bench.dataset.facts)


def _weights_of(run: RunFolder) -> Path:
    return run.ticket if run.plan.is_file() else run.dense


def _test_batch(bench: Workbench, items: int) -> Tree:
    test = bench.dataset.test
    index = torch.arange(items, device=test.labels.device) % len(test)
    return bench.execution.arrange(bench.dataset.prepare(at(test.inputs, index)))


def measure_idle(pair: int, recipe: Recipe) -> IdleSpan:
    """Watch the machine do nothing for ``compare.idle_seconds``, in this process, through the same meter."""
    with Meter(energy.build(recipe.energy, 0)) as meter:
        with meter.window("idle") as span:
            time.sleep(recipe.compare.idle_seconds)
        return IdleSpan(pair=pair, window=span.window)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
