"""From files back to a ticket: no pickle, no trace, equal outputs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune import export as bundles
from tpsprune import models, pruning, recipe
from tpsprune.errors import ArtifactError, ModelError, PruneError, RunFolderError
from tpsprune.numerics.forward import call_model, logits_of
from tpsprune.records import TaskFacts
from tpsprune.runs import RunFolder, read_json, read_result, read_text
from tpsprune.runs.tensors import load_tensors

__all__ = ["Exported", "export", "largest_difference", "load", "rebuilt_from", "trained_from"]

COMPARED_ITEMS = 16
MOST_WORDS = 300


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote, and how far the reloaded ticket is from the run's own."""

    folder: Path
    files: tuple[str, ...]
    items: int
    largest_difference: float


def load(folder: str | Path) -> nn.Module:
    """Rebuild an exported ticket, in evaluation mode, on the CPU.

    The model is built from the bundle's recipe, cut by its plan and filled from its tensors; every file's
    hash is checked first, and nothing is unpickled. **A recipe whose model is ``custom`` imports the
    callable it names: load such a bundle only from somebody you would run code from.**

    Raises:
        ArtifactError: a file is missing, damaged, foreign or does not fit.
        RecipeError: the callable of a custom model does not import here.
    """
    bundle = bundles.read_bundle(Path(folder))
    return _rebuilt(bundle.recipe_text, str(folder), bundle.facts, bundle.plan, bundle.tensors)


def export(run: Path, target: Path) -> Exported:
    """Write the ticket of a finished run to a new folder, reload it, and compare outputs.

    Raises:
        RunFolderError: the run is not finished, or the target cannot be written.
        ArtifactError: the target is taken, or the reloaded ticket answers differently.
    """
    source = RunFolder.open_existing(run)
    if not source.is_finished:
        raise RunFolderError(f"{run} is not finished: go on with 'tpsprune train … --resume', then export it")
    result = read_result(source.result)
    facts = TaskFacts.from_json(result["task"])
    ours = rebuilt_from(source, facts)
    bundles.write_bundle(
        target,
        tensors=ours.state_dict(),
        plan=read_json(source.plan),
        recipe_text=read_text(source.recipe),
        facts=facts,
        versions=result["versions"],
    )
    difference = largest_difference(ours, load(target), _random_inputs(facts))
    if not difference <= 0.0:
        shutil.rmtree(target)
        raise ArtifactError(f"{target}: the reloaded ticket differs from the run's by {difference:g}")
    files = tuple(sorted(path.name for path in target.iterdir()))
    return Exported(target, files, COMPARED_ITEMS, difference)


def rebuilt_from(folder: RunFolder, facts: TaskFacts) -> nn.Module:
    """Build the ticket of a run from its files: recipe, plan and tensors.

    Raises:
        RunFolderError: a file is missing or damaged.
        ArtifactError: they do not make one model.
    """
    tensors, _ = load_tensors(folder.ticket)
    return _rebuilt(read_text(folder.recipe), str(folder.recipe), facts, read_json(folder.plan), tensors)


def trained_from(folder: RunFolder, facts: TaskFacts) -> nn.Module:
    """Build what a run left from its files: the ticket where there is a plan, else the dense model.

    Raises:
        RunFolderError: a file is missing or damaged.
        ArtifactError: they do not make one model.
    """
    if folder.plan.is_file():
        return rebuilt_from(folder, facts)
    tensors, _ = load_tensors(folder.dense)
    return _rebuilt(read_text(folder.recipe), str(folder.recipe), facts, None, tensors)


def _rebuilt(
    recipe_text: str,
    source: str,
    facts: TaskFacts,
    plan: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    read = recipe.parse(recipe_text, source)
    try:
        with torch.random.fork_rng():
            dense = models.build(read.task.model, facts)
        ticket = dense if plan is None else pruning.replay(dense, pruning.Plan.from_json(plan))
        ticket.load_state_dict(tensors)
    except (ArtifactError, ModelError, PruneError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:MOST_WORDS]
        raise ArtifactError(f"{source}: recipe, plan and tensors do not make one model: {words}") from error
    return ticket.eval()


def _random_inputs(facts: TaskFacts) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (COMPARED_ITEMS, *facts.input_shape)
    if facts.input_kind == "tokens":
        return torch.randint(facts.vocabulary or 1, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def largest_difference(first: nn.Module, second: nn.Module, inputs: Tensor) -> float:
    """Return the largest absolute difference of two models' answers, NaN where one of them is."""
    with torch.inference_mode():
        gap = logits_of(call_model(first, inputs)) - logits_of(call_model(second, inputs))
    return gap.abs().max().item()
