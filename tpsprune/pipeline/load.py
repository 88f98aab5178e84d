"""From files to a model: trained weights, the ticket of a run, an exported bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tpsprune import export as bundles
from tpsprune import models, pruning, recipe
from tpsprune.errors import ArtifactError, Fault, ModelError, PruneError, RecipeError, first_line
from tpsprune.loop.unwrap import unwrap_model
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import (
    FOREIGN_MODELS,
    CnnModel,
    CustomModel,
    Match,
    MlpModel,
    Model,
    ResNetModel,
    TorchvisionModel,
    TransformerModel,
)
from tpsprune.records import TaskFacts
from tpsprune.runs import RunFolder, read_json
from tpsprune.runs.tensors import PREFIXES, load_tensors, match_state, read_state, sha256_of

MOST_CHARACTERS: Final = 300
OPTION: Final = "--weights"
DIGITS_SHOWN: Final = 12
MOST_GROWTH: Final = 64
"""How many times the bytes and the tensors of a ticket its dense model may have."""
LEAST_BYTES: Final = 2**29
LEAST_STEPS: Final = 20_000
FROM_TENSORS_ALONE: Final = (CnnModel, ResNetModel, MlpModel, TransformerModel)
"""Models all of whose numbers are in their state dict, and none of them tied: they need no weights drawn."""


def load(
    folder: str | Path,
    *,
    size: float | None = None,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    trust_code: bool = False,
) -> nn.Module:
    """Rebuild an exported or saved ticket, in evaluation mode, on the CPU.

    The hash of every file of the bundle is checked first, those of formats that are not read here too; then
    the model is built from the bundle's recipe, or taken from ``model``, pruned by its plan and filled from
    its tensors. Nothing is unpickled, and the weights that the recipe begins with are not needed. Hashes show
    damage; they do not show from whom a bundle is.

    Args:
        folder: of ``tpsprune.save``, of ``tpsprune export``, safetensors among its formats, or of a family.
        size: of a family, which of its sizes: the share that was asked for.
        model: the architecture that the plan belongs to, of the dense shapes, or a callable without arguments
            that builds it. Its weights do not matter, and it is not changed. A folder of ``tpsprune.save``
            needs it; where there is a recipe too it takes the recipe's place.
        trust_code: a recipe whose model is ``custom`` names a callable, with arguments, which building the
            model **imports and calls**: read its recipe.toml, and allow it only if you would run that.

    Raises:
        ArtifactError: the family has no such size; a file is missing, damaged, foreign or does not fit; the
            model is ``custom`` and ``trust_code`` is not set; or there is no recipe, and no ``model``.
        RecipeError: the callable of a custom model does not import here.

    Cost: the tensors' size in memory, once, for models of this package; for others that of the dense
    model besides, while it is pruned. Reading and hashing: a second for a few hundred megabytes.
    """
    if size is not None:
        folder = _folder_of_size(Path(folder), size)
    bundle = bundles.read_bundle(Path(folder))
    if model is not None:
        dense = _architecture(folder, model)
        with _one_model(f"{folder}: model"):
            return bundles.saves_itself(fill_ticket(dense, bundle.plan, bundle.tensors))
    if bundle.facts is None:
        raise ArtifactError(
            f"{folder} was saved without a recipe, so it does not say what its model is built by: give the"
            " architecture it was pruned from, as in tpsprune.load(folder, model=net), net a torch.nn.Module"
            " of the dense shapes or a callable that builds one"
        )
    described = read_model(
        folder, bundle.recipe_text, trust_code=trust_code, consent="load it with trust_code=True"
    )
    return bundles.saves_itself(rebuild_bundle(folder, bundle, described))


def _folder_of_size(family: Path, size: float) -> Path:
    """Return the folder of one size of a family.

    Raises:
        ArtifactError: there is none; names those that there are.
    """
    folder = family / f"{size:g}"
    if not folder.is_dir():
        found = sorted((each.parent.name for each in family.glob("*/manifest.json")), reverse=True)
        there = f"there are {', '.join(found)}" if found else "it holds no sizes"
        raise ArtifactError(f"{family}: no size {size:g}; {there}")
    return folder


def _architecture(folder: str | Path, model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Return the module that ``model`` is, wraps or builds.

    Raises:
        ArtifactError: it is none, or its tensors hold no values.
    """
    built: object = model
    if not isinstance(model, nn.Module) and callable(model):
        try:
            with torch.random.fork_rng():
                built = model()
        except Exception as error:  # the caller's own code runs here, and may raise anything
            raise ArtifactError(
                f"{folder}: the callable given as model fails: {first_line(error)}"
            ) from error
    if not isinstance(built, nn.Module):
        raise ArtifactError(
            f"{folder}: model is {type(built).__name__}; expected a torch.nn.Module, or a callable without"
            " arguments that returns one"
        )
    dense = unwrap_model(built)
    if any(tensor.is_meta for tensor in (*dense.parameters(), *dense.buffers())):
        raise ArtifactError(
            f"{folder}: model is on the meta device, where tensors hold no values; build it on the CPU"
        )
    return dense


def fill_ticket(dense: nn.Module, plan: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a ticket on the CPU: a copy of the dense model, pruned by its plan, with its tensors.

    Raises:
        ValueError: shapes or number types do not fit, or other errors of a plan that does not (``load``).
    """
    ticket = _prune_by_plan(dense, plan).cpu()
    _check_shapes(ticket, tensors)
    _check_dtypes(ticket, tensors)
    # Copied, not assigned: so what the model ties stays tied.
    ticket.load_state_dict(tensors)
    return ticket.eval()


@contextmanager
def _one_model(source: str) -> Iterator[None]:
    """Turn whatever a foreign plan, recipe or manifest can make of a model into one kind of error."""
    try:
        yield
    except (
        *(ArtifactError, ModelError, PruneError),
        *(RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, MemoryError),
    ) as error:
        message = " ".join(str(error).split())[:MOST_CHARACTERS]
        raise ArtifactError(f"{source}, plan and tensors do not make one model: {message}") from error


def read_model(folder: str | Path, recipe_text: str, *, trust_code: bool, consent: str) -> Model:
    """Return the model that the recipe in a folder names; one that building calls code for needs consent.

    ``consent`` is how it is given, as a message says it.

    Raises:
        ArtifactError: the text is no recipe, or its model is ``custom`` and ``trust_code`` is not set.
    """
    try:
        model = recipe.parse(recipe_text, f"{folder}: its recipe.toml").task.model
    except RecipeError as error:
        raise ArtifactError(str(error)) from error
    if isinstance(model, CustomModel) and not trust_code:
        module, _, _ = model.factory.partition(":")
        raise ArtifactError(
            f"{folder}: its model is built by importing {module!r} and calling {model.factory!r}, which the "
            f"folder names: read its recipe.toml and, if that is code you would run, {consent}"
        )
    return model


def rebuild_ticket(folder: RunFolder, model: Model, facts: TaskFacts) -> nn.Module:
    """Build the ticket of a run from its plan and tensors; ``model`` is what the caller's own recipe names.

    The folder's recipe is not asked: who resumes a run consented to the code of the recipe they named alone.

    Raises:
        RunFolderError: a file is missing or damaged.
        ArtifactError: they do not make one model.
    """
    tensors, _ = load_tensors(folder.ticket)
    return _rebuild(model, str(folder.path), facts, read_json(folder.plan), tensors)


def rebuild_bundle(folder: str | Path, bundle: bundles.Bundle, model: Model) -> nn.Module:
    """Build the ticket of a bundle that has a recipe; as ``rebuild_ticket``."""
    assert bundle.facts is not None, "a bundle with a recipe has facts"
    return _rebuild(model, f"{folder}: its recipe.toml", bundle.facts, bundle.plan, bundle.tensors)


def rebuild_trained(folder: RunFolder, model: Model, facts: TaskFacts) -> nn.Module:
    """Build what a run left: the ticket where it has a plan, else the dense model; as ``rebuild_ticket``."""
    if folder.plan.is_file():
        return rebuild_ticket(folder, model, facts)
    tensors, _ = load_tensors(folder.dense)
    return _rebuild(model, str(folder.path), facts, None, tensors)


def _rebuild(
    model: Model,
    source: str,
    facts: TaskFacts,
    plan: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    with _one_model(f"{source}: recipe"):
        if isinstance(model, FROM_TENSORS_ALONE):
            ticket = _build_shell(model, facts, plan, tensors)
            _check_dtypes(ticket, tensors)
            # The tensors become the model's: neither weights drawn at random nor a second copy.
            ticket.load_state_dict(tensors, assign=True)
        else:
            if not isinstance(model, CustomModel):
                _check_shapes(_build_shell(model, facts, plan, tensors), tensors)
            with torch.random.fork_rng():
                ticket = _prune_by_plan(models.build(model, facts, fill=False), plan)
            ticket.load_state_dict(tensors)
    return ticket.eval()


def _build_shell(
    model: Model, facts: TaskFacts, plan: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Build and prune a model that has shapes and no memory.

    Raises:
        ModelError: with memory it would take more than a model that is pruned to ``tensors``.
    """
    numbers = nullcontext() if not isinstance(model, TorchvisionModel) else _NumbersOnCpu()
    allocates = not isinstance(model, FROM_TENSORS_ALONE)
    with _Uninitialised(), torch.device("meta"), numbers, _Bounded(tensors, allocates=allocates):
        dense = models.build(model, facts, fill=False)
    return _prune_by_plan(dense, plan)


@final
class _Uninitialised(TorchFunctionMode):
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


@final
class _NumbersOnCpu(TorchFunctionMode):
    """Counts stay numbers: some architectures work out their widths with them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(
            *args,
            **{"device": "cpu"} | (kwargs or {}) if func in (torch.arange, torch.tensor) else (kwargs or {}),
        )


@final
class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ends the building of a model that would take more memory, or makes more tensors, than its ticket needs.

    What is made is counted on the meta device, where nothing takes memory; numbers that are asked for on the
    CPU are counted there first.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, allocates: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held_bytes = sum(each.numel() * each.itemsize for each in tensors.values())
        self._most_bytes = max(LEAST_BYTES, MOST_GROWTH * held_bytes) if allocates else inf
        self._most_steps = LEAST_STEPS + MOST_GROWTH * len(tensors)
        self._bytes = self._steps = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._steps += 1
        if self._steps > self._most_steps:
            raise ModelError(f"its layers take more than {self._most_steps:,} steps to make")
        on_cpu = "device" in kwargs and str(kwargs["device"]) == "cpu"
        made = func(*args, **kwargs | ({"device": "meta"} if on_cpu else {}))
        if isinstance(made, Tensor) and not (func.is_view or func._schema.is_mutable):
            self._bytes += made.numel() * made.itemsize
        if self._bytes > self._most_bytes:
            raise ModelError(
                f"before pruning it takes more than {self._most_bytes:,} bytes, far more than its ticket"
            )
        return func(*args, **kwargs) if on_cpu else made


def _check_shapes(shell: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(each.shape) for name, each in shell.state_dict().items()}
    found = {name: tuple(each.shape) for name, each in tensors.items()}
    if wrong := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
        there, here = found.get(wrong[0], "not there"), wanted.get(wrong[0], "not known")
        raise ValueError(f"{wrong[0]} is {there} in the file and {here} in the model")


def _prune_by_plan(dense: nn.Module, plan: Mapping[str, Any] | None) -> nn.Module:
    return dense if plan is None else pruning.replay(dense, pruning.Plan.from_json(plan))


def _check_dtypes(shell: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in shell.state_dict().items():
        if name in tensors and tensors[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is {tensors[name].dtype} where {tensor.dtype} is needed")


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Tensors by name, the file they come from, its SHA-256, and the plan that made their model, if any.

    ``place`` is where the user named the file, ``match`` how its tensors meet those of the model.
    """

    tensors: Mapping[str, Tensor]
    path: Path
    digest: str
    plan: pruning.Plan | None = None
    place: str = OPTION
    match: Match = "name"

    def describe(self) -> str:
        """Return which weights these are, as text."""
        return _describe(self.path, self.digest)

    def fill(self, model: nn.Module, new_layer: str = "") -> nn.Module:
        """Return ``model``, new from the recipe, with these weights; pruned first where they are a ticket's.

        The tensors of ``new_layer`` stay the model's, whatever shape these have.

        Raises:
            ArtifactError: they do not fit; names the first tensor with both shapes.
        """
        if self.plan is not None:
            try:
                model = pruning.replay(model, self.plan)
            except PruneError as error:
                message = f"{self.path}: {error}; {self.place} and the recipe do not fit"
                raise ArtifactError(message) from error
        wanted, tensors = model.state_dict(), dict(self.tensors)
        if new_layer:
            own = [f"{new_layer}.{name}" for name in model.get_submodule(new_layer).state_dict()]
            for given in (f"{prefix}{name}" for prefix in ("", *PREFIXES) for name in own):
                if given in tensors:
                    tensors[given] = next(wanted[name] for name in own if given.endswith(name))
        model.load_state_dict(match_state(tensors, wanted, f"{self.place} {self.path}", self.match))
        return model


def read_pretrained_weights(recipe: Recipe, path: Path | None) -> Weights:
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


def read_weights(path: Path, option: str = OPTION) -> Weights:
    """Read trained weights, which the user named at an option, onto the CPU.

    What ``runs.weights.read_state`` reads; a run folder, which stands for its dense model; or an exported
    bundle, whose ticket is then pruned further.

    Raises:
        ArtifactError: it is not there, damaged, or no state dict.
    """
    if path.is_dir():
        return _read_folder(path, option)
    return Weights(read_state(path, option), path, sha256_of(path), place=option)


def _read_folder(path: Path, option: str) -> Weights:
    if bundles.is_bundle(path):
        bundle = bundles.read_bundle(path)
        file = next(iter(sorted(path.glob("ticket.safetensors"))), path / "manifest.json")
        plan = pruning.Plan.from_json(bundle.plan)
        if plan.factored:
            raise ArtifactError(
                f"{option} {path}: this ticket has layers of low rank ({plan.factored[0].layer}, …) and is "
                "pruned no further; give the model that it was made of, with a lower target"
            )
        return Weights(bundle.tensors, path, sha256_of(file), plan, option)
    file = path / "dense.safetensors"
    if not file.is_file():
        raise ArtifactError(
            f"{option} {path}: this folder holds no weights; expected a run folder with dense.safetensors, "
            "a bundle made by 'tpsprune export', or a file"
        )
    return Weights(load_tensors(file)[0], file, sha256_of(file), place=option)


def describe_initial_weights(recipe: Recipe) -> str:
    """Return the weights that a model begins with, if a recipe names any: the file, and its SHA-256.

    Raises:
        ArtifactError: the file is not there.
    """
    stored = models.stored_weights(recipe.task.model)
    return "" if stored is None else _describe(stored.path, stored.digest())


def without_weights(recipe: Recipe) -> Recipe:
    """Return the recipe with a model whose weights are all initialised."""
    model = recipe.task.model
    if not isinstance(model, FOREIGN_MODELS):
        return recipe
    return replace(
        recipe, task=replace(recipe.task, model=replace(model, weights=None, weights_match="name"))
    )


def _describe(path: Path, digest: str) -> str:
    return f"weights given: {path.name} (SHA-256 {digest[:DIGITS_SHOWN]})"
