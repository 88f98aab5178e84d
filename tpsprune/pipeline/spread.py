"""What a spread run does with its model whole, in the first process's files or memory: survey, cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpsprune import pruning, training
from tpsprune.errors import PruneError
from tpsprune.loop.watch import survey
from tpsprune.numerics.forward import fixed_seed
from tpsprune.numerics.moments import Elements
from tpsprune.numerics.offload import OffloadStore, make_store
from tpsprune.numerics.peers import AbstractPeers
from tpsprune.pipeline.plans import pruned_by_plan
from tpsprune.pipeline.state import State
from tpsprune.pipeline.workbench import Run, Workbench
from tpsprune.pruning import Extraction, GroupTensors, Plan
from tpsprune.recipe import Recipe
from tpsprune.recipe.prune import Prune
from tpsprune.records import GroupChange, Unpruned, dump, load
from tpsprune.runs import RunFolder
from tpsprune.runs.files import beside, cannot_write


@contextmanager
def whole_models_in(out: Path, recipe: Recipe, peers: AbstractPeers) -> Iterator[OffloadStore | None]:
    """Yield where the first process is to have whole models of a spread run: in files, beside run folders.

    None in the other processes, and where the recipe has no such files.

    Raises:
        PruneError: files cannot lie there; everywhere.
    """
    if recipe.train.spread != "shard" or recipe.prune.gather == "host":
        yield None
        return
    with ExitStack() as stack:

        def make() -> OffloadStore | None:
            if not peers.is_first:
                return None
            try:
                for each in [each for each in (*reversed(out.parents), out) if not each.is_dir()]:
                    each.mkdir()
                    stack.callback(_remove_empty, each)
                folder = stack.enter_context(beside(out / "whole")).parent
                return stack.enter_context(make_store(folder, out))
            except OSError as error:
                raise cannot_write(out, error) from error
            except PruneError as error:
                raise PruneError(
                    f"prune.gather = 'disk': {error} (--out); 'host' takes the memory of one machine"
                ) from error

        yield peers.together(make)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def shape_after(bench: Workbench, folder: RunFolder, rounds: int) -> nn.Module:
    """Return a new model in its shape after so many rounds, to be filled; one to be spread is whole."""
    model = bench.new_model(fill=False)
    with bench.holding_whole():
        return pruned_by_plan(folder, model, rounds)


def whole_model(run: Run, model: nn.Module, rounds: int) -> nn.Module:
    """Return a spread model whole in the first process, without numbers in the others."""
    bench = run.bench
    with fixed_seed():  # Building a model seeds torch.
        found = shape_after(bench, run.folder, rounds)
    state = bench.state_of(model)
    if bench.has_numbers:
        with bench.holding_whole():
            found.load_state_dict(state)
    return found


def survey_whole(run: Run, rounds: int) -> GroupTensors:
    """Return where the groups of a spread model are read, as the first process finds them on it whole."""
    bench = run.bench
    with fixed_seed():
        model = shape_after(bench, run.folder, rounds)

    def find() -> dict[str, Any]:
        batch = bench.on_host().watch_batches[0]
        found = survey(model, batch, bench.panel.names, bench.recipe.prune.ignored_layers)
        return {
            "consumers": found.consumers,
            "written": {name: list(map(_told, parts)) for name, parts in found.written.items()},
            "scaled": {name: list(map(_told, parts)) for name, parts in found.scaled.items()},
            "blocks": found.blocks,
        }

    told = bench.first(find)
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


def extract_whole(bench: Workbench, whole: nn.Module, settings: Prune, inputs: dict[str, Any]) -> Extraction:
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

    told = bench.first(extract)
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
    gathered = {name: training.gather(each, bench.peers, bench.holding_whole) for name, each in found.items()}
    return {name: own for name, own in gathered.items() if own}
