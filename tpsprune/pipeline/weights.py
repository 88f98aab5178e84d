"""Somebody's trained weights, from a file to the recipe's model: nothing in it runs, every misfit is told."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune import export as bundles
from tpsprune import pruning
from tpsprune.errors import ArtifactError, PruneError, did_you_mean
from tpsprune.pruning import Plan
from tpsprune.runs.tensors import load_tensors

__all__ = ["Weights", "read_weights"]

TORCH_FILES: Final = (".pt", ".pth", ".bin", ".ckpt", ".tar")
NESTED: Final = ("state_dict", "model_state_dict", "model")
PREFIXES: Final = ("module.", "_orig_mod.", "model.")
NOT_NEEDED: Final = "num_batches_tracked"


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Tensors by name, the file they come from, its SHA-256, and the plan that made their model, if any."""

    tensors: Mapping[str, Tensor]
    path: Path
    digest: str
    plan: Plan | None = None

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
        wanted = model.state_dict()
        found = _without_prefix(self.tensors, wanted)
        _check_fits(self.path, found, wanted)
        model.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})
        return model


def read_weights(path: Path) -> Weights:
    """Read trained weights onto the CPU.

    A safetensors file; a state dict that ``torch.save`` wrote (``.pt``, ``.pth``, ``.bin``), read so that
    nothing in it can run, bare or as ``state_dict`` or ``model`` of a checkpoint; a run folder, which
    stands for its dense model; or an exported bundle, whose ticket is then cut further.

    Raises:
        ArtifactError: it is not there, damaged, or no state dict.
    """
    if not path.exists():
        raise ArtifactError(f"--weights {path} is not there")
    if path.is_dir():
        return _of_folder(path)
    if path.suffix in TORCH_FILES:
        return Weights(_of_torch(path), path, _sha256(path))
    return Weights(load_tensors(path)[0], path, _sha256(path))


def _of_folder(path: Path) -> Weights:
    if (path / "manifest.json").is_file():
        bundle = bundles.read_bundle(path)
        file = path / "ticket.safetensors"
        return Weights(bundle.tensors, path, _sha256(file), Plan.from_json(bundle.plan))
    file = path / "dense.safetensors"
    if not file.is_file():
        raise ArtifactError(
            f"--weights {path}: this folder holds no weights: a run folder with dense.safetensors, a bundle "
            "made by 'tpsprune export', or a file would do"
        )
    return Weights(load_tensors(file)[0], file, _sha256(file))


def _of_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"--weights {path} holds more than tensors, or is damaged: it is not unpickled, for that could "
            "run code; save model.state_dict() alone, best as safetensors"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        words = str(error).partition("\n")[0] or "it ends too early"
        raise ArtifactError(f"--weights {path} cannot be read: {words}") from error
    tensors = _state_dict_in(raw)
    if tensors is None:
        raise ArtifactError(
            f"--weights {path} holds {type(raw).__name__}, where a state dict is needed: "
            "torch.save(model.state_dict(), F) writes one"
        )
    return tensors


def _state_dict_in(raw: Any) -> dict[str, Tensor] | None:
    if not isinstance(raw, Mapping) or not raw:
        return None
    if all(isinstance(value, Tensor) for value in raw.values()):
        return {str(name): value.detach() for name, value in raw.items()}
    return next((found for key in NESTED if (found := _state_dict_in(raw.get(key)))), None)


def _without_prefix(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away what wrappers (data parallel, compiled) put before every name, where the model has none."""
    for prefix in PREFIXES:
        if (
            found
            and all(name.startswith(prefix) for name in found)
            and not any(name.startswith(prefix) for name in wanted)
        ):
            return _without_prefix({name.removeprefix(prefix): t for name, t in found.items()}, wanted)
    return dict(found)


def _check_fits(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    faults = [
        f"{name} is {list(found[name].shape)} in the file and {list(tensor.shape)} in the recipe's model"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    unknown = [name for name in found if name not in wanted]
    missing = [name for name in wanted if name not in found and not name.endswith(NOT_NEEDED)]
    faults += [f"{name} is missing{did_you_mean(name, unknown)}" for name in missing]
    faults += [f"{name} is not in the recipe's model{did_you_mean(name, wanted)}" for name in unknown]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ArtifactError(f"--weights {path} does not fit: {faults[0]}{more}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
