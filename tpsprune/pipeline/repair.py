"""Another tool's pruned model, fitted to the dense model that it was pruned from, and written as a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tpsprune import export as bundles
from tpsprune import pruning
from tpsprune.pipeline.load import read_pretrained_weights
from tpsprune.pipeline.prune import build_pretrained, without_training
from tpsprune.pipeline.save import write_bundle
from tpsprune.pipeline.ticket import count_parameters, repair_ticket
from tpsprune.pipeline.workbench import set_up_metered
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.prune import Macs
from tpsprune.records import Event, Note, Repaired
from tpsprune.runs.tensors import read_state

ANY: Macs = Macs(0.999)
"""A target that any model reaches: how small the ticket is was decided elsewhere."""


def repair(
    recipe: Recipe, pruned: Path, like: Path | None, out: Path, *, device: str = "auto"
) -> Iterator[Event]:
    """Fit a model that another tool has pruned to its dense original; yield what happens, last the figures.

    Args:
        recipe: the dense model, its data and settings; its target does not count.
        pruned: a state dict with the tensors of the recipe's model under the same names, smaller.
        like: the dense weights, as ``prune`` takes them.
        out: a folder that is not there, or empty.
        device: as ``prune`` takes it.

    Raises:
        TpspruneError: something requested is not available, the weights do not fit, or the units of the
            pruned model are not found; nothing is written then.
    """
    recipe = replace(recipe, prune=replace(recipe.prune, target=ANY, low_rank=False, round_to=1))
    recipe, pretrained = without_training(recipe, like), read_pretrained_weights(recipe, like)
    bundles.check_free(out)
    state = read_state(pruned, "PRUNED")
    with set_up_metered(recipe, device) as (idle, ledger):
        dense = build_pretrained(idle, pretrained)
        ledger.switch("prune")
        bench = idle.calibrated(dense)
        placed = {name: each.to(bench.execution.device) for name, each in state.items()}
        found, theirs = pruning.refit_pruned(placed, dense, bench.prune_batches, recipe.prune)
        found = yield from repair_ticket(bench, ledger, found, dense)
        for note in found.notes:
            yield Note(note)
        ledger.switch("evaluate")
        scores = [bench.score(model, bench.dataset.test).accuracy for model in (dense, theirs, found.ticket)]
        with bundles.new_folder(out) as folder:
            write_bundle(folder, found, dumps(recipe), bench.dataset.facts)
        ledger.close()
        yield Repaired(
            quality=bench.objective.quality,
            dense=scores[0],
            pruned=scores[1],
            ticket=scores[2],
            macs_share=found.macs_share,
            parameters_share=count_parameters(found.ticket) / count_parameters(dense),
            total=ledger.total,
            folder=str(out),
        )
