"""How faithful the ticket of a finished run is to its dense model, read on items of the test split."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Final

import torch

from tpsprune import export as bundles
from tpsprune import recipe
from tpsprune.errors import ArtifactError, RunFolderError, TpspruneError
from tpsprune.loop.fidelity import fidelity as read_panel
from tpsprune.numerics.paths import POINTS
from tpsprune.numerics.trees import at, split_evenly
from tpsprune.pipeline.load import read_model, rebuild_ticket
from tpsprune.pipeline.plans import pruned_by_plan
from tpsprune.pipeline.workbench import BATCH_ITEMS, set_up
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import CustomData
from tpsprune.records import QUALITIES, SQUARED, Fidelity, RunResult, dump
from tpsprune.runs import RunFolder, read_json, read_text, write_json_atomically
from tpsprune.runs.tensors import load_tensors, shapes_of

MOST_ITEMS: Final = 2048
REPORT_ITEMS: Final = 512
REPORT_SECONDS: Final = 10.0
"""How long a report may take to read the panel, by the dense model's latency; beyond it says how to."""
REPORT_BATCH: Final = 64
REPORT_PASSES: Final = POINTS + 4
"""Along the line, of both models, and of both for foreign inputs."""
LABELLED: Final = ("cross-entropy", "next-token", *SQUARED)
"""Losses whose labels say what a model is: one of classes, or an autoencoder."""
WAS_TICKET: Final = "what was pruned was a ticket itself, and the plan is of the model before it"
CONSENT: Final = "read it with --trust-code (in Python trust_code=True)"


def fidelity(
    folder: Path, *, items: int = MOST_ITEMS, device: str = "auto", trust_code: bool = False
) -> Fidelity:
    """Read the panel of ``tpsprune.fidelity`` of a finished run, and keep it in its folder.

    Args:
        folder: of ``tpsprune train`` or ``prune``.
        items: of the test split at most so many, drawn by the recipe's seed.
        device: as ``train`` takes it.
        trust_code: whether code that the folder's recipe names (model, data or loss) may run.

    Raises:
        RunFolderError: it is no finished run, or cannot be written to.
        ArtifactError: it is a bundle, or its recipe names code and ``trust_code`` is not set.
        TpspruneError: the data is not there any more, or does not fit.
    """
    if bundles.is_bundle(folder):
        raise ArtifactError(
            f"{folder} is an exported ticket, and its dense model is not in it: give the run that it is of, "
            "or in Python tpsprune.fidelity(dense, tpsprune.load(folder), batches)"
        )
    run = RunFolder.open_existing(folder)
    if not run.is_finished:
        raise RunFolderError(f"{folder} is not finished: go on with 'tpsprune train … --resume' first")
    text = read_text(run.recipe)
    model = read_model(folder, text, trust_code=trust_code, consent=CONSENT)
    found = recipe.parse(text, f"{folder}: its recipe.toml")
    if not trust_code:
        _refuse_code(folder, found)
    was_ticket = (run.state / "plan-0.json").is_file()
    with set_up(found, device, prunes=False) as bench:
        dense = pruned_by_plan(run, bench.new_model(fill=False), 0)
        dense.load_state_dict(load_tensors(run.dense, shapes_of(dense.state_dict()))[0])
        ticket = bench.execution.place(rebuild_ticket(run, model, bench.dataset.facts))
        test = bench.dataset.test
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(found.seed))[:items]
        places = order.to(test.labels.device)
        inputs = bench.execution.arrange(bench.dataset.prepare(at(test.inputs, places)))
        parts = ceil(len(places) / BATCH_ITEMS)
        panel = read_panel(
            bench.execution.place(dense),
            ticket,
            split_evenly(inputs, parts),
            labels=test.labels[places].tensor_split(parts) if found.task.loss in LABELLED else None,
            plan=None if was_ticket else Plan.from_json(read_json(run.plan)),
            temperature=found.train.temperature,
            split="test",
            seed=found.seed,
        )
    if was_ticket and "barrier_loss" in panel.absent:
        panel = replace(panel, absent={**panel.absent, "barrier_loss": WAS_TICKET})
    write_json_atomically(run.fidelity, dump(panel))
    return panel


def fidelity_for_report(outcome: RunResult) -> Fidelity | str:
    """Return the panel for the report of a run: read now, and kept, where that is quick; or why not.

    What it takes is foreseen from the dense model's latency, and was no part of the run. Code of the user's
    own is not run for it.

    Cost: at most about ten seconds, and setting up the data.
    """
    name = f"batch-{REPORT_BATCH}"
    if name not in outcome.dense.latency_seconds:
        return "how long that takes is not known, without the latency of the dense model"
    per_item = outcome.dense.latency_seconds[name].median_seconds / REPORT_BATCH
    foreseen = per_item * REPORT_PASSES * REPORT_ITEMS
    if foreseen > REPORT_SECONDS:
        return f"it would take about {foreseen:.0f} seconds"
    device = next((kind for kind in ("cuda", "mps") if outcome.device.startswith(kind)), "cpu")
    try:
        return fidelity(Path(outcome.folder), items=REPORT_ITEMS, device=device)
    except TpspruneError as error:
        return str(error)


def _refuse_code(folder: Path, found: Recipe) -> None:
    """Refuse data and a loss of the recipe's own, which are code.

    Raises:
        ArtifactError: says which.
    """
    data, loss = found.task.data, found.task.loss
    code = data.factory if isinstance(data, CustomData) else loss if loss not in QUALITIES else ""
    if code:
        raise ArtifactError(
            f"{folder}: its recipe imports and calls {code!r}: read its recipe.toml and, if that is code you "
            f"would run, {CONSENT}"
        )
