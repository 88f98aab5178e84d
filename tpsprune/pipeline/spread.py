"""What a run does in the first process's host memory, where its model is spread: it surveys and cuts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tpsprune import pruning, training
from tpsprune.loop.watch import survey
from tpsprune.numerics.forward import fixed_seed
from tpsprune.numerics.moments import Elements
from tpsprune.pipeline.plans import pruned_by_plan
from tpsprune.pipeline.state import State
from tpsprune.pipeline.workbench import Run, Workbench
from tpsprune.pruning import Extraction, GroupTensors, Plan
from tpsprune.recipe.prune import Prune
from tpsprune.records import GroupChange, Unpruned, dump, load


def whole_model(run: Run, model: nn.Module, rounds: int) -> nn.Module:
    """Return a spread model whole in the first process's host memory, without numbers in the others."""
    bench = run.bench
    with fixed_seed():  # Building a model seeds torch.
        found = pruned_by_plan(run.folder, bench.new_model(fill=False), rounds)
    state = bench.state_of(model)
    if bench.has_numbers:
        found.load_state_dict(state)
    return found


def survey_whole(run: Run, rounds: int) -> GroupTensors:
    """Return where the groups of a spread model are read, as the first process finds them on it whole."""
    bench = run.bench
    with fixed_seed():
        model = pruned_by_plan(run.folder, bench.new_model(fill=False), rounds)

    def find() -> dict[str, Any]:
        batch = bench.on_host().watch_batches[0]
        found = survey(model, batch, bench.panel.names, bench.recipe.prune.ignored_layers)
        return {
            "consumers": found.consumers,
            "written": {name: list(map(_told, parts)) for name, parts in found.written.items()},
            "scaled": {name: list(map(_told, parts)) for name, parts in found.scaled.items()},
            "blocks": found.blocks,
        }

    told = bench.peers.first(find)
    return GroupTensors(
        consumers=told["consumers"],
        written={name: tuple(map(_heard, parts)) for name, parts in told["written"].items()},
        scaled={name: tuple(map(_heard, parts)) for name, parts in told["scaled"].items()},
        blocks=told["blocks"],
    )


def _told(part: Elements) -> tuple[str, int, list[list[int]]]:
    return part.tensor, part.axis, part.index_uf.tolist()


def _heard(told: tuple[str, int, list[list[int]]]) -> Elements:
    tensor, axis, index = told
    return Elements(tensor, axis, torch.tensor(index))


def extract_on_host(
    bench: Workbench, whole: nn.Module, settings: Prune, inputs: dict[str, Any]
) -> Extraction:
    """Return what the first process extracts, as one process would; the ticket without numbers in the others.

    ``bench`` has its data in host memory.

    Raises:
        PruneError: as ``pruning.extract``; everywhere.
    """
    made: list[Extraction] = []

    def extract() -> dict[str, Any]:
        found = pruning.extract(whole, bench.prune_batches, settings, **inputs)
        made.append(found)
        return {
            "plan": found.plan.to_json(),
            "changes": [dump(each) for each in found.changes],
            "unpruned": [dump(each) for each in found.unpruned],
            "macs_share": found.macs_share,
            "notes": list(found.notes),
        }

    told = bench.peers.first(extract)
    if made:
        return made[0]
    plan = Plan.from_json(told["plan"])
    return Extraction(
        ticket=pruning.replay(whole, plan),
        plan=plan,
        changes=tuple(load(GroupChange, each) for each in told["changes"]),
        unpruned=tuple(load(Unpruned, each) for each in told["unpruned"]),
        macs_share=told["macs_share"],
        notes=tuple(told["notes"]),
    )


def moments_of(bench: Workbench, state: State) -> training.Moments:
    """Return the optimiser's state by parameter, whole; of a spread model in the first process alone."""
    found = training.state_by_name(state.optimizer, state.model)
    if not bench.is_spread:
        return found
    return {name: own for name, each in found.items() if (own := training.gather(each, bench.peers))}
