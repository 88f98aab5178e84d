"""The family: one trained model, several verified smaller ones, each measured beside it; one folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, get_args

import torch
from torch import nn

from tpsprune import measure, pruning
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.loop.family import By
from tpsprune.loop.meter import Ledger
from tpsprune.numerics.trees import at, first_of
from tpsprune.pipeline.family_folder import Drawn, FamilyFolder, job_of, widths_by_group
from tpsprune.pipeline.limits import broken_limits
from tpsprune.pipeline.load import read_pretrained_weights
from tpsprune.pipeline.prune import build_pretrained, without_training
from tpsprune.pipeline.ticket import draw_ticket, extraction_inputs
from tpsprune.pipeline.workbench import Workbench, set_up_metered
from tpsprune.pruning import Plan
from tpsprune.pruning.output_error import output_error
from tpsprune.recipe import Recipe
from tpsprune.recipe.prune import Macs, Share
from tpsprune.recipe.task import CustomModel
from tpsprune.recipe.within import Within
from tpsprune.records import (
    Event,
    FamilyFinished,
    FamilyGroup,
    FamilyMember,
    FamilyResult,
    ModelFigures,
    Note,
    PhaseStarted,
    Sized,
)
from tpsprune.runs import machine_facts, versions

LATENCY_BATCHES: Final = (1, 64)
LATENCY_SECONDS: Final = 0.5
INFERENCE_BATCH: Final = 64
INFERENCE_SECONDS: Final = 1.0
TURNS: Final = 2
"""How often each size is metered; every second turn goes backwards, so that a drift cancels."""
DENSE: Final = 1.0


def family(
    recipe: Recipe,
    weights: Path | None,
    sizes: Sequence[Share],
    out: Path,
    *,
    within: Sequence[Within] = (),
    device: str = "auto",
) -> Iterator[Event]:
    """Draw all sizes of a trained model from one look at it; yield what happens, last the family.

    Each size is cut, verified, repaired as the recipe says, and written as soon as it is drawn. Then all are
    read once on the test split and timed, beside the dense model and torch-pruning's magnitude at the same
    multiply-accumulates; one that breaks a limit is measured and not kept. The folder has a bundle for each
    size, and last ``family.json``, a page and a picture.

    A folder that holds a family of the same model and recipe gains the sizes that it does not have, nested
    with those that it has, without a second look; a command that was killed goes on like that.

    Args:
        recipe: model, data and settings; its target does not count.
        weights: as ``prune`` takes them.
        sizes: targets of one kind, each another share.
        out: a folder that is not there, or empty, or that holds a family of this job.
        within: what a size drawn now may cost, and how good it must be, on the validation split.
        device: as ``prune`` takes it.

    Raises:
        TpspruneError: something requested is not available, a size is out of reach, the weights do not fit,
            the folder holds something else or has these sizes already; nothing is written then.

    Cost: one look, and the second half of an extraction for each size; evaluation of each; some five seconds
    of timing and metering a size.
    """
    least = min(sizes, key=lambda each: each.share)
    recipe = replace(recipe, prune=replace(recipe.prune, target=least))
    recipe, pretrained = without_training(recipe, weights), read_pretrained_weights(recipe, weights)
    folder, job = FamilyFolder(out), job_of(recipe, pretrained, _kind_of(least))
    _check_names(sizes)
    is_begun = folder.is_begun(job)
    earlier = folder.read_result() if is_begun else None
    there = {f"{size:g}" for size in (folder.sizes() if is_begun else ())}
    new = [each for each in sizes if f"{each.share:g}" not in there]
    if not new and earlier is not None:
        raise ArtifactError(f"{out} has these sizes already: give a further one, or another folder")
    windows = folder.energy if is_begun else None
    with set_up_metered(recipe, device, windows) as (idle, ledger), folder.writing(job):
        ledger.keep_in(folder.energy)
        dense = build_pretrained(idle, pretrained)
        ledger.switch("prune")
        bench = idle.calibrated(dense)
        drawn = yield from _draw_missing(bench, ledger, folder, dense, least, new)
        judged = {each.size for each in (earlier.members if earlier else ()) if not each.refused}
        fresh = [each for each in drawn if each.share not in judged]
        members = yield from _measure(bench, ledger, dense, drawn, fresh, within)
        gone = earlier.members if earlier else ()
        members = [*members, *(each for each in gone if type(least)(each.size) not in drawn)]
        result = FamilyResult(
            name=recipe.name,
            seed=recipe.seed,
            device=bench.execution.describe(),
            machine={**machine_facts(), "threads": torch.get_num_threads()},
            task=bench.dataset.facts,
            by=_kind_of(least),
            weights=pretrained.describe(),
            dense=members[0],
            members=tuple(sorted(members[1:], key=lambda each: -each.figures.macs)),
            groups=_groups([own.plan for own in drawn.values()]),
            energy=ledger.phases,
            inference_batch=INFERENCE_BATCH,
            method=ledger.method,
            total=ledger.total,
            versions=versions(),
        )
        folder.write_result(result, calls_code=isinstance(recipe.task.model, CustomModel))
    if all(each.refused for each in result.members):
        yield Note("no size is within the limits: the folder holds the page and the figures alone")
    yield FamilyFinished(family=result, folder=str(out))


def _draw_missing(
    bench: Workbench,
    ledger: Ledger,
    folder: FamilyFolder,
    dense: nn.Module,
    least: Share,
    new: Sequence[Share],
) -> Generator[Event, None, dict[Share, Drawn]]:
    """Draw and write the sizes that the folder does not have; return all of them, the largest model first."""
    recipe, kind = bench.recipe, type(least)
    look = folder.read_look(dense, bench.prune_batches[0], recipe)
    drawn: dict[Share, Drawn] = {kind(size): folder.read_size(dense, size) for size in folder.sizes()}
    if drawn:
        yield Note(f"{folder.path} has {', '.join(f'{each.share:g}' for each in drawn)}: going on from there")
    plans = pruning.plan_sizes(
        dense,
        bench.prune_batches,
        recipe.prune,
        new,
        **extraction_inputs(bench, ledger, recipe.prune.units, least),
        look=look,
        known={target: widths_by_group(own.plan) for target, own in drawn.items()},
    )
    if look is None and plans:
        folder.write_look(plans[0])
    targets = {str(each): each for each in new}
    for plan in plans:
        yield PhaseStarted(phase="prune", title=f"size {plan.target}", total_steps=1)
        found, _ = yield from draw_ticket(bench, ledger, dense, plan.target, trains_on=False, planned=plan)
        target = targets[str(plan.target)]
        own = replace(recipe, prune=replace(recipe.prune, target=target))
        folder.write_size(target.share, found, own, bench.dataset.facts)
        drawn[target] = Drawn(found.ticket, found.plan, found.notes)
    return {each: drawn[each] for each in sorted(drawn, key=pruning.order_of_size, reverse=True)}


def _measure(
    bench: Workbench,
    ledger: Ledger,
    dense: nn.Module,
    drawn: Mapping[Share, Drawn],
    new: Sequence[Share],
    within: Sequence[Within],
) -> Generator[Event, None, list[FamilyMember]]:
    """Measure the dense model and all sizes; return them in this order. What is ``new`` may be refused.

    A size is new until ``family.json`` has it.
    """
    models = {DENSE: dense, **{each.share: bench.execution.place(own.ticket) for each, own in drawn.items()}}
    ledger.switch("benchmark")
    figures = {share: _figures(bench, dense, model) for share, model in models.items()}
    joules = _meter_inference(bench, ledger, models)
    validation = {
        share: bench.score(model, bench.dataset.validation).accuracy for share, model in models.items()
    }
    members = [
        FamilyMember(
            size=share,
            figures=figures[share],
            validation_accuracy=validation[share],
            joules_per_answer=joules[share],
        )
        for share in models
    ]
    for rank, (target, own) in enumerate(drawn.items(), start=1):
        member = replace(
            members[rank],
            output_error=output_error(models[target.share], dense, bench.prune_batches),
            rival_accuracy=_rival(bench, dense, figures[target.share].macs / figures[DENSE].macs),
            notes=own.notes,
        )
        refused = broken_limits(within, member, members[0]) if target in new else ""
        members[rank] = replace(member, refused=refused)
        yield Sized(member=members[rank], number=rank, total=len(drawn), quality=bench.objective.quality)
    ledger.close()
    return members


def _check_names(sizes: Sequence[Share]) -> None:
    """Refuse sizes whose folders would have one name."""
    by_name: dict[str, float] = {}
    for each in sizes:
        other = by_name.setdefault(f"{each.share:g}", each.share)
        if other != each.share:
            raise ArtifactError(f"sizes {other!r} and {each.share!r} are one to six digits: give one of them")


def _kind_of(target: Share) -> By:
    name = type(target).__name__.lower()
    return next(each for each in get_args(By) if each == name)


def _rival(bench: Workbench, dense: nn.Module, share: float) -> float | None:
    """Return the test score of torch-pruning's magnitude at a share, its batch-norm statistics anew."""
    prune = bench.recipe.prune
    settings = replace(
        prune, target=Macs(share), units="magnitude", widths="uniform", compensate=False, low_rank=False
    )
    try:
        found = pruning.extract(dense, bench.prune_batches, settings)
    except PruneError:  # Uniform widths may not go as far.
        return None
    return bench.score(found.ticket, bench.dataset.test).accuracy


def _figures(bench: Workbench, dense: nn.Module, model: nn.Module) -> ModelFigures:
    """Return the figures of one size, read on the test split, its latency timed beside the dense model's."""
    batch = bench.watch_batches[0]
    pairs = {
        f"batch-{items}": measure.paired_latency(
            dense, model, first_of(batch), items, seconds=LATENCY_SECONDS
        )
        for items in LATENCY_BATCHES
    }
    return ModelFigures(
        accuracy=bench.score(model, bench.dataset.test).accuracy,
        **asdict(measure.size(model, batch)),
        latency_seconds={name: pair[1] for name, pair in pairs.items()},
    )


def _meter_inference(
    bench: Workbench, ledger: Ledger, models: Mapping[float, nn.Module]
) -> dict[float, float | None]:
    """Return the joules of an answer of each model, by turns."""
    test = bench.dataset.test
    index = torch.arange(INFERENCE_BATCH, device=test.labels.device) % len(test)
    items_n = bench.execution.arrange(bench.dataset.prepare(at(test.inputs, index)))
    spent: dict[float, list[tuple[float | None, int]]] = {share: [] for share in models}
    order = list(models)
    for _ in range(TURNS):
        for share in order:
            with bench.execution.autocasting():
                measure.infer_for(INFERENCE_SECONDS / 4, models[share], items_n)
                with ledger.window("inference") as span:
                    items = measure.infer_for(INFERENCE_SECONDS, models[share], items_n)
            spent[share].append((span.window.total_joules, items))
        order.reverse()
    found: dict[float, float | None] = {}
    for share, turns in spent.items():
        joules = [each for each, _ in turns if each is not None]
        found[share] = sum(joules) / sum(items for _, items in turns) if len(joules) == len(turns) else None
    return found


def _groups(plans: Sequence[Plan]) -> tuple[FamilyGroup, ...]:
    """Return for each group how many of the sizes keep each of its units."""
    found = []
    for groups in zip(*(each.groups for each in plans), strict=True):
        counts = Counter(unit for group in groups for unit in group.kept)
        kept_by = tuple(counts[unit] for unit in range(groups[0].width))
        found.append(FamilyGroup(name=groups[0].name, kept_by=kept_by))
    return tuple(found)
