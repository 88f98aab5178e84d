"""From files back to a ticket: no pickle, no trace, equal outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tpsprune import export as bundles
from tpsprune import models, pruning, recipe
from tpsprune.errors import ArtifactError, ModelError, PruneError, RecipeError
from tpsprune.numerics.forward import call_model, logits_of
from tpsprune.numerics.trees import Tree
from tpsprune.recipe.task import CnnModel, CustomModel, MlpModel, Model, ResNetModel, TransformerModel
from tpsprune.records import TaskFacts
from tpsprune.runs import RunFolder, read_json, read_text
from tpsprune.runs.tensors import load_tensors

__all__ = ["largest_difference", "load", "rebuilt_from", "trained_from"]

MOST_WORDS: Final = 300
FROM_TENSORS_ALONE: Final = (CnnModel, ResNetModel, MlpModel, TransformerModel)
"""Models all of whose numbers are in their state dict, and none of them tied: they need no weights drawn."""


def load(folder: str | Path, *, trust_code: bool = False) -> nn.Module:
    """Rebuild an exported ticket, in evaluation mode, on the CPU.

    The hash of every file of the bundle is checked first, those of formats that are not read here too; then
    the model is built from the bundle's recipe, cut by its plan and filled from its tensors. Nothing is
    unpickled, and the weights that the recipe begins with are not needed. Hashes tell of damage; they do not
    say from whom a bundle is.

    Args:
        folder: of ``tpsprune export``, safetensors among its formats.
        trust_code: a recipe whose model is ``custom`` names a callable, with arguments, which building the
            model **imports and calls**: look at its recipe.toml, and allow it only if you would run that.

    Raises:
        ArtifactError: a file is missing, damaged, foreign or does not fit, or the model is ``custom`` and
            ``trust_code`` is not given.
        RecipeError: the callable of a custom model does not import here.

    Cost: the tensors' size in memory, once, for models of this package; for custom ones that of the dense
    model besides, while it is cut. Reading and hashing: a second for a few hundred megabytes.
    """
    bundle = bundles.read_bundle(Path(folder))
    place = f"{folder}: its recipe.toml"
    try:
        model = recipe.parse(bundle.recipe_text, place).task.model
    except RecipeError as error:
        raise ArtifactError(str(error)) from error
    if isinstance(model, CustomModel) and not trust_code:
        raise ArtifactError(
            f"{folder}: its model is built by calling {model.factory!r}, which the bundle names: look at its "
            "recipe.toml and, if that is code you would run, load it with trust_code=True"
        )
    return _rebuilt(model, place, bundle.facts, bundle.plan, bundle.tensors)


def rebuilt_from(folder: RunFolder, facts: TaskFacts) -> nn.Module:
    """Build the ticket of a run from its files: recipe, plan and tensors.

    Raises:
        RunFolderError: a file is missing or damaged.
        ArtifactError: they do not make one model.
    """
    return _from_run(folder, facts, folder.ticket, read_json(folder.plan))


def trained_from(folder: RunFolder, facts: TaskFacts) -> nn.Module:
    """Build what a run left from its files: the ticket where there is a plan, else the dense model.

    Raises:
        RunFolderError: a file is missing or damaged.
        ArtifactError: they do not make one model.
    """
    if folder.plan.is_file():
        return rebuilt_from(folder, facts)
    return _from_run(folder, facts, folder.dense, None)


def _from_run(folder: RunFolder, facts: TaskFacts, file: Path, plan: Mapping[str, Any] | None) -> nn.Module:
    read = recipe.parse(read_text(folder.recipe), str(folder.recipe))
    tensors, _ = load_tensors(file)
    return _rebuilt(read.task.model, str(folder.recipe), facts, plan, tensors)


def _rebuilt(
    model: Model,
    source: str,
    facts: TaskFacts,
    plan: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    try:
        if isinstance(model, FROM_TENSORS_ALONE):
            ticket = _shell(model, facts, plan)
            _check_dtypes(ticket, tensors)
            # The tensors become the model's: neither weights drawn at random nor a second copy.
            ticket.load_state_dict(tensors, assign=True)
        else:
            with torch.random.fork_rng():
                ticket = _cut(models.build(model, facts, fill=False), plan)
            ticket.load_state_dict(tensors)
    except (
        *(ArtifactError, ModelError, PruneError),
        # What a foreign plan, recipe or manifest can make of a model is more than one kind of nonsense.
        *(RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, MemoryError),
    ) as error:
        words = " ".join(str(error).split())[:MOST_WORDS]
        raise ArtifactError(f"{source}: recipe, plan and tensors do not make one model: {words}") from error
    return ticket.eval()


def _shell(model: Model, facts: TaskFacts, plan: Mapping[str, Any] | None) -> nn.Module:
    """Build and cut a model that has shapes and no memory."""
    with _Undrawn(), torch.device("meta"):
        dense = models.build(model, facts, fill=False)
    return _cut(dense, plan)


@final
class _Undrawn(TorchFunctionMode):
    """Weights are not drawn: without memory that would be nothing, after two seconds of imports by torch."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _cut(dense: nn.Module, plan: Mapping[str, Any] | None) -> nn.Module:
    return dense if plan is None else pruning.replay(dense, pruning.Plan.from_json(plan))


def _check_dtypes(shell: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in shell.state_dict().items():
        if name in tensors and tensors[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is {tensors[name].dtype} where {tensor.dtype} is needed")


def largest_difference(first: nn.Module, second: nn.Module, inputs: Tree) -> float:
    """Return the largest absolute difference of two models' answers, NaN where one of them is."""
    with torch.inference_mode():
        gap = logits_of(call_model(first, inputs)) - logits_of(call_model(second, inputs))
    return gap.abs().max().item()
