"""A trained encoder, frozen, on a new task: its last linear layer is made new and trained alone."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from torch import nn

from tpsprune import export as bundles
from tpsprune import training
from tpsprune.energy import total
from tpsprune.errors import Fault, RecipeError
from tpsprune.loop.meter import Ledger
from tpsprune.numerics.macs import count_macs
from tpsprune.numerics.trees import at
from tpsprune.pipeline.load import Weights, read_weights
from tpsprune.pipeline.prune import without_training
from tpsprune.pipeline.save import write_bundle
from tpsprune.pipeline.stage import PROGRESS_SECONDS
from tpsprune.pipeline.ticket import draw_ticket
from tpsprune.pipeline.train import read_test
from tpsprune.pipeline.workbench import Run, Workbench, set_up_metered
from tpsprune.pruning import Extraction, Plan
from tpsprune.pruning.plan import signature_of, versions
from tpsprune.pruning.replay import compose
from tpsprune.recipe import Recipe, dumps
from tpsprune.records import Cost, Decision, Event, PhaseEnded, PhaseStarted, Progress, Transferred
from tpsprune.runs import RunFolder, digest_of, write_json_atomically
from tpsprune.runs.tensors import save_tensors

OPTION: Final = "--from"
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "features": ("features",),
    "head": ("train",),
    "cut": ("prune", "repair"),
}
"""What a transfer is charged for, and the phases of the ledger that each part is the sum of."""
NEW_TARGET: Final = "nothing was cut"


def transfer(
    recipe: Recipe, source: Path, out: Path, *, cuts: bool = True, device: str = "auto"
) -> Iterator[Event]:
    """Put a trained encoder on the recipe's task; yield what happens, last the figures.

    1. The weights of ``source`` fill the recipe's model but for its last linear layer, which is as the
    recipe's seed draws it. 2. What that layer reads is computed once for every training item, and the layer
    is trained on it by ``[train]``: no other number moves. 3. With ``cuts``, the model is then cut to
    ``[prune]``, on items of this task without labels, and step 2 is done again with what is left, from the
    layer as the cut left it. The head is trained before the cut since units are weighed by what their
    readers would lose: by a head drawn at random, they would be weighed at random. Test items are read once
    at the end.

    Args:
        recipe: the new task and the model; its ``[stop]``, ``[tps]`` and ``[retrain]`` do not count.
        source: weights of the same architecture, as ``prune`` takes them; of a bundle, its ticket's.
        out: a folder that is not there, or empty: a bundle, which ``load`` reads.
        cuts: whether the encoder is cut for the new task.
        device: as ``prune`` takes it.

    Does not see augmentation: features are of the items as they are.

    Raises:
        TpspruneError: something requested is not available; the task has no classes, no linear layer comes
            last, or the weights do not fit. Nothing is written then.

    Cost: a forward pass of the training items, and one more of the cut encoder; the head's steps.
    """
    require_classes(recipe)
    recipe, weights = without_training(recipe, source), read_weights(source, OPTION)
    bundles.check_free(out)
    with set_up_metered(recipe, device, prunes=cuts) as (bench, ledger):
        moved = move_encoder(bench, weights)
        encoder = moved.ticket
        head = yield from _train_head(bench, ledger, encoder)
        found = moved
        models = [encoder]
        if cuts:
            found, head = yield from _cut_for_task(bench, ledger, moved)
            models.append(found.ticket)
        ledger.switch("evaluate")
        scores = [bench.score(each, bench.dataset.test).accuracy for each in models]
        with bundles.new_folder(out) as folder:
            write_bundle(folder, found, dumps(recipe), bench.dataset.facts)
        ledger.close()
        yield Transferred(
            quality=bench.objective.quality,
            encoder=scores[0],
            ticket=scores[1] if cuts else None,
            macs_share=found.macs_share,
            trained_parameters=head.parameters,
            parameters=sum(each.numel() for each in models[-1].parameters()),
            parts=_costs(ledger),
            total=ledger.total,
            folder=str(out),
        )


def require_classes(recipe: Recipe) -> None:
    """Refuse a task that no new last layer can be made for.

    Raises:
        RecipeError: its loss is not over classes.
    """
    if recipe.task.loss != "cross-entropy":
        message = f"'{recipe.task.loss}': a new last layer needs a task of classes and 'cross-entropy'"
        raise RecipeError(recipe.name, [Fault("task.loss", message)])


def train_frozen(
    recipe: Recipe, out: Path, weights: Weights, *, cuts: bool, device: str = "auto"
) -> Iterator[Event]:
    """Put a trained encoder on the recipe's task, in a run folder; yield what happens, last the figures.

    Steps 1 to 3 of ``transfer``, as an arm of a comparison; a run that is broken off is not resumed.

    Raises:
        TpspruneError: as ``transfer``.
    """
    text = dumps(recipe)
    with set_up_metered(recipe, device, prunes=cuts) as (bench, ledger):
        digest = digest_of(f"{text}\nfrozen {cuts} {weights.digest}")
        folder = RunFolder.create(out, recipe.name, digest, again=True)
        with Run(bench, folder, ledger).writing(text) as run:
            found = move_encoder(bench, weights)
            yield from _train_head(bench, ledger, found.ticket)
            if cuts:
                found, _ = yield from _cut_for_task(bench, ledger, found)
                write_json_atomically(folder.plan, found.plan.to_json())
            ledger.switch("benchmark")
            model = found.ticket
            save_tensors(folder.ticket if cuts else folder.dense, model.state_dict(), {})
            epoch, reason = bench.total_steps / bench.steps_per_epoch, "the schedule is at its end"
            stopped = Decision(
                kind="stop", act=True, step=bench.total_steps, epoch=epoch, rule="deadline", reason=reason
            )
            trained = read_test(run, model, stopped)
            ledger.close()
            yield trained


def move_encoder(bench: Workbench, weights: Weights) -> Extraction:
    """Return the recipe's model with trained weights but for a new last layer, as a ticket with nothing cut.

    Raises:
        ModelError: no linear layer comes last.
        ArtifactError: the weights do not fit.
    """
    model = bench.new_model(fill=False)
    batch = at(bench.watch_batches[0], slice(0, 2))
    name = training.find_head(model, batch).name
    weights = _with_new_head(weights, model, name)
    return _uncut(bench.execution.place(weights.fill(model, name)), model, weights, batch)


def _cut_for_task(
    bench: Workbench, ledger: Ledger, moved: Extraction
) -> Generator[Event, None, tuple[Extraction, training.Head]]:
    """Cut an encoder whose head is trained, on items of its task, and train the head of what is left."""
    target = bench.recipe.prune.target
    cut, _ = yield from draw_ticket(bench, ledger, moved.ticket, target, trains_on=True)
    whole = compose(moved.plan, cut.plan) if moved.plan.groups else cut.plan
    share = cut.macs_share * moved.macs_share
    found = replace(cut, plan=replace(whole, target=str(target)), macs_share=share)
    head = yield from _train_head(bench, ledger, found.ticket)
    return found, head


def _with_new_head(weights: Weights, model: nn.Module, head: str) -> Weights:
    """Return a ticket's weights with a plan for a model whose head has another number of classes."""
    if weights.plan is None:
        return weights
    own = {fact.name: fact for fact in signature_of(model) if fact.name.startswith(f"{head}.")}
    facts = tuple(own.get(fact.name, fact) for fact in weights.plan.model)
    return replace(weights, plan=replace(weights.plan, model=facts))


def _uncut(encoder: nn.Module, dense: nn.Module, weights: Weights, batch: object) -> Extraction:
    """Return the encoder as a ticket of which nothing is cut but what was cut before."""
    plan = weights.plan or Plan(
        target=NEW_TARGET, groups=(), new_biases=(), versions=versions(), model=signature_of(dense)
    )
    share = count_macs(encoder, batch).total / count_macs(dense, batch).total
    return Extraction(encoder, plan, (), (), share, ())


def _train_head(bench: Workbench, ledger: Ledger, model: nn.Module) -> Generator[Event, None, training.Head]:
    """Compute the features of all training items once and train the head of ``model`` on them, in place."""
    train, settings = bench.dataset.train, bench.recipe.train
    head = training.find_head(model, at(bench.watch_batches[0], slice(0, 2)))
    ledger.switch("features")
    features_nf = training.features_of(
        model, train.inputs, len(train), prepare=bench.dataset.prepare, execution=bench.execution
    )
    yield PhaseStarted(phase="train", title="the last linear layer", total_steps=bench.total_steps)
    ledger.switch("train")
    ticks = training.fit_head(
        head,
        features_nf,
        train.labels,
        settings=settings,
        execution=bench.execution,
        seed=bench.recipe.seed,
        objective=bench.objective,
    )
    shown_at = time.monotonic()
    for tick in ticks:
        ledger.split_if_long()
        if time.monotonic() - shown_at > PROGRESS_SECONDS:
            shown_at = time.monotonic()
            yield Progress(phase="train", step=tick.step, total_steps=bench.total_steps, epoch=tick.epoch)
    yield PhaseEnded(phase="train")
    return head


def _costs(ledger: Ledger) -> dict[str, Cost]:
    """Return what each part has cost, of those that there were."""
    return {
        part: total([each for each in ledger.windows if each.phase in phases])
        for part, phases in PARTS.items()
        if any(each.phase in phases for each in ledger.windows)
    }
