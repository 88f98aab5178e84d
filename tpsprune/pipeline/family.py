"""The family: one trained model, several verified smaller ones, each measured beside it; one folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, get_args

import torch
from torch import nn

from tpsprune import energy, measure, pruning
from tpsprune import export as bundles
from tpsprune.errors import PruneError
from tpsprune.loop.family import By
from tpsprune.loop.meter import Meter
from tpsprune.numerics.trees import at, first_of
from tpsprune.pipeline.load import read_pretrained_weights
from tpsprune.pipeline.prune import build_pretrained, without_training
from tpsprune.pipeline.save import write_bundle
from tpsprune.pipeline.ticket import draw_ticket, extraction_inputs
from tpsprune.pipeline.workbench import Workbench, set_up_metered
from tpsprune.pruning import Extraction
from tpsprune.pruning.output_error import output_error
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.prune import Macs, Share
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
    dump,
)
from tpsprune.report.family import family_page, write_family_picture
from tpsprune.runs import machine_facts, versions, write_json_atomically, write_text_atomically

FILE: Final = "family.json"
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

    Each size is cut, verified, repaired as the recipe says, then read once on the test split and timed,
    beside the dense model and torch-pruning's magnitude at the same multiply-accumulates; one that breaks a
    limit is measured and not written. The folder appears whole or not at all: a bundle for each size,
    ``family.json``, a page and a picture.

    Args:
        recipe: model, data and settings; its target does not count.
        weights: as ``prune`` takes them.
        sizes: targets of one kind, each another share.
        out: a folder that is not there, or empty.
        within: what a size may cost, and how good it must be.
        device: as ``prune`` takes it.

    Raises:
        TpspruneError: something requested is not available, a size is out of reach, the weights do not fit;
            nothing is written then.

    Cost: one look, and the second half of an extraction for each size; evaluation of each; some five seconds
    of timing and metering a size.
    """
    least = min(sizes, key=lambda each: each.share)
    recipe = replace(recipe, prune=replace(recipe.prune, target=least))
    recipe, pretrained = without_training(recipe, weights), read_pretrained_weights(recipe, weights)
    bundles.check_free(out)
    with set_up_metered(recipe, device) as (bench, ledger):
        dense = build_pretrained(bench, pretrained)
        ledger.switch("prune")
        plans = pruning.plan_sizes(
            dense,
            bench.prune_batches,
            recipe.prune,
            sizes,
            **extraction_inputs(bench, ledger, recipe.prune.units, least),
        )
        drawn: dict[float, Extraction] = {}
        for plan in plans:
            yield PhaseStarted(phase="prune", title=f"size {plan.target}", total_steps=1)
            share = next(each.share for each in sizes if each == plan.target)
            drawn[share], _ = yield from draw_ticket(
                bench, ledger, dense, plan.target, trains_on=False, planned=plan
            )
        ledger.switch("benchmark")
        rivals = {share: _rival(bench, dense, found.macs_share) for share, found in drawn.items()}
        figures = _measure(bench, dense, {share: each.ticket for share, each in drawn.items()})
        ledger.close()
        joules, batch = _meter_inference(bench, dense, {share: each.ticket for share, each in drawn.items()})
        reference = FamilyMember(size=DENSE, figures=figures[DENSE], joules_per_answer=joules[DENSE])
        members = []
        for share, found in drawn.items():
            member = FamilyMember(
                size=share,
                figures=figures[share],
                output_error=output_error(found.ticket, dense, bench.prune_batches),
                joules_per_answer=joules[share],
                rival_accuracy=rivals[share],
                notes=found.notes,
            )
            members.append(replace(member, refused=_broken(within, member, reference)))
            yield Sized(
                member=members[-1], number=len(members), total=len(drawn), quality=bench.objective.quality
            )
        result = FamilyResult(
            name=recipe.name,
            seed=recipe.seed,
            device=bench.execution.describe(),
            machine={**machine_facts(), "threads": torch.get_num_threads()},
            task=bench.dataset.facts,
            by=_kind_of(least),
            weights=pretrained.describe(),
            dense=reference,
            members=tuple(members),
            groups=_groups(tuple(drawn.values())),
            energy=ledger.phases,
            inference_batch=batch,
            method=ledger.method,
            total=ledger.total,
            versions=versions(),
        )
        _write(out, result, drawn, dumps(recipe))
    if all(each.refused for each in members):
        yield Note("no size is within the limits: the folder holds the page and the figures alone")
    yield FamilyFinished(family=result, folder=str(out))


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


def _measure(
    bench: Workbench, dense: nn.Module, tickets: Mapping[float, nn.Module]
) -> dict[float, ModelFigures]:
    """Return the figures of the dense model and of each size, its latency timed beside the dense model's."""
    batch = bench.watch_batches[0]
    found = {}
    for share, model in {DENSE: dense, **tickets}.items():
        pairs = {
            f"batch-{items}": measure.paired_latency(
                dense, model, first_of(batch), items, seconds=LATENCY_SECONDS
            )
            for items in LATENCY_BATCHES
        }
        found[share] = ModelFigures(
            accuracy=bench.score(model, bench.dataset.test).accuracy,
            **asdict(measure.size(model, batch)),
            latency_seconds={name: pair[1] for name, pair in pairs.items()},
        )
    return found


def _meter_inference(
    bench: Workbench, dense: nn.Module, tickets: Mapping[float, nn.Module]
) -> tuple[dict[float, float | None], int]:
    """Return the joules of an answer of the dense model and of each size, by turns, and the batch."""
    test = bench.dataset.test
    index = torch.arange(INFERENCE_BATCH, device=test.labels.device) % len(test)
    items_n = bench.execution.arrange(bench.dataset.prepare(at(test.inputs, index)))
    models = {DENSE: dense, **tickets}
    spent: dict[float, list[tuple[float | None, int]]] = {share: [] for share in models}
    with Meter(energy.build(bench.recipe.energy, 0)) as meter:
        order = list(models)
        for _ in range(TURNS):
            for share in order:
                with bench.execution.autocasting():
                    measure.infer_for(INFERENCE_SECONDS / 4, models[share], items_n)
                    with meter.window("inference") as span:
                        items = measure.infer_for(INFERENCE_SECONDS, models[share], items_n)
                spent[share].append((span.window.total_joules, items))
            order.reverse()
    found: dict[float, float | None] = {}
    for share, turns in spent.items():
        joules = [each for each, _ in turns if each is not None]
        found[share] = sum(joules) / sum(items for _, items in turns) if len(joules) == len(turns) else None
    return found, INFERENCE_BATCH


def _broken(within: Sequence[Within], member: FamilyMember, dense: FamilyMember) -> str:
    """Return the limits that a size breaks, with what it has, or an empty text."""
    mine, theirs = _limited(member), _limited(dense)
    broken = [
        f"{each.text} (it has {'no figure' if (found := mine[each.figure]) is None else f'{found:.4g}'})"
        for each in within
        if not each.holds(mine[each.figure], theirs[each.figure] or 0.0)
    ]
    return "; ".join(broken)


def _limited(member: FamilyMember) -> dict[str, float | None]:
    figures = member.figures
    return {
        "accuracy": figures.accuracy,
        "latency": figures.latency_seconds[f"batch-{LATENCY_BATCHES[0]}"].median_seconds,
        "size": float(figures.bytes),
        "parameters": float(figures.parameters),
        "macs": float(figures.macs),
        "joules": member.joules_per_answer,
    }


def _groups(drawn: Sequence[Extraction]) -> tuple[FamilyGroup, ...]:
    """Return for each group how many of the sizes keep each of its units."""
    found = []
    for groups in zip(*(each.plan.groups for each in drawn), strict=True):
        counts = Counter(unit for group in groups for unit in group.kept)
        kept_by = tuple(counts[unit] for unit in range(groups[0].width))
        found.append(FamilyGroup(name=groups[0].name, kept_by=kept_by))
    return tuple(found)


def _write(out: Path, result: FamilyResult, drawn: Mapping[float, Extraction], recipe_text: str) -> None:
    with bundles.new_folder(out) as folder:
        for member in result.members:
            if not member.refused:
                (folder / member.folder).mkdir()
                write_bundle(folder / member.folder, drawn[member.size], recipe_text, result.task)
        write_json_atomically(folder / FILE, dump(result))
        write_family_picture(result, folder)
        write_text_atomically(folder / "README.md", family_page(result))
