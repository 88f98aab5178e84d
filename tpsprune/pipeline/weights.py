"""Trained weights that are given, from wherever they lie to the recipe's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from tpsprune import export as bundles
from tpsprune import models, pruning
from tpsprune.errors import ArtifactError, Fault, PruneError, RecipeError
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import FOREIGN_MODELS, Match
from tpsprune.runs.tensors import load_tensors
from tpsprune.runs.weights import fitted, read_state, sha256_of

__all__ = ["Weights", "begins_with", "given_weights", "read_weights", "without_weights"]

OPTION: Final = "--weights"
DIGITS_SHOWN: Final = 12


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Tensors by name, the file they come from, its SHA-256, and the plan that made their model, if any.

    ``place`` is where the user named the file, ``match`` how its tensors meet those of the model.
    """

    tensors: Mapping[str, Tensor]
    path: Path
    digest: str
    plan: Plan | None = None
    place: str = OPTION
    match: Match = "name"

    def describe(self) -> str:
        """Return which weights these are, in words."""
        return _words(self.path, self.digest)

    def fill(self, model: nn.Module) -> nn.Module:
        """Return ``model``, new from the recipe, with these weights; cut first where they are a ticket's.

        Raises:
            ArtifactError: they do not fit; names the first tensor with both shapes.
        """
        if self.plan is not None:
            try:
                model = pruning.replay(model, self.plan)
            except PruneError as error:
                raise ArtifactError(f"{self.path}: {error}; --weights and the recipe do not fit") from error
        model.load_state_dict(
            fitted(self.tensors, model.state_dict(), f"{self.place} {self.path}", self.match)
        )
        return model


def given_weights(recipe: Recipe, path: Path | None) -> Weights:
    """Return the weights of ``--weights``, or those that the recipe's model begins with.

    Raises:
        RecipeError: there is neither.
        ArtifactError: as ``read_weights``.
    """
    if path is not None:
        return read_weights(path)
    stored = models.stored_weights(recipe.task.model)
    if stored is None:
        message = "a trained model is needed: --weights FILE gives one, or task.model.weights in the recipe"
        raise RecipeError(recipe.name, [Fault("", message)])
    return Weights(
        stored.read(), stored.path, stored.digest(), place=f"{models.WEIGHTS_PLACE}:", match=stored.match
    )


def read_weights(path: Path) -> Weights:
    """Read trained weights onto the CPU.

    What ``runs.weights.read_state`` reads; a run folder, which stands for its dense model; or an exported
    bundle, whose ticket is then cut further.

    Raises:
        ArtifactError: it is not there, damaged, or no state dict.
    """
    if path.is_dir():
        return _of_folder(path)
    return Weights(read_state(path, OPTION), path, sha256_of(path))


def _of_folder(path: Path) -> Weights:
    if (path / "manifest.json").is_file():
        bundle = bundles.read_bundle(path)
        file = path / "ticket.safetensors"
        return Weights(bundle.tensors, path, sha256_of(file), Plan.from_json(bundle.plan))
    file = path / "dense.safetensors"
    if not file.is_file():
        raise ArtifactError(
            f"--weights {path}: this folder holds no weights: a run folder with dense.safetensors, a bundle "
            "made by 'tpsprune export', or a file would do"
        )
    return Weights(load_tensors(file)[0], file, sha256_of(file))


def begins_with(recipe: Recipe) -> str:
    """Return what a model begins with where it is not drawn anew: the file, and its SHA-256.

    Raises:
        ArtifactError: the file is not there.
    """
    stored = models.stored_weights(recipe.task.model)
    return "" if stored is None else _words(stored.path, stored.digest())


def without_weights(recipe: Recipe) -> Recipe:
    """Return the recipe with a model whose weights are all drawn anew."""
    model = recipe.task.model
    if not isinstance(model, FOREIGN_MODELS):
        return recipe
    return replace(
        recipe, task=replace(recipe.task, model=replace(model, weights=None, weights_match="name"))
    )


def _words(path: Path, digest: str) -> str:
    return f"weights given: {path.name} (SHA-256 {digest[:DIGITS_SHOWN]})"
