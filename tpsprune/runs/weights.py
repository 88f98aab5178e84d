"""Somebody's trained weights in a file: nothing in it runs, and every misfit with a model is told."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tpsprune.errors import ArtifactError, did_you_mean
from tpsprune.recipe.task import Match
from tpsprune.runs.tensors import load_tensors

__all__ = ["fitted", "read_state", "sha256_of"]

TORCH_FILES: Final = (".pt", ".pth", ".bin", ".ckpt", ".tar")
NESTED: Final = ("state_dict", "model_state_dict", "model")
PREFIXES: Final = ("module.", "_orig_mod.", "model.")
NOT_NEEDED: Final = "num_batches_tracked"


def read_state(path: Path, place: str, match: Match = "name") -> dict[str, Tensor]:
    """Read a file's tensors onto the CPU, in the file's order where that is one.

    A safetensors file, or a state dict that ``torch.save`` wrote (``.pt``, ``.pth``, ``.bin``), read so that
    nothing in it can run, bare or as ``state_dict`` or ``model`` of a checkpoint.

    Args:
        path: the file.
        place: where the user named it, with which messages begin: ``--weights``, ``task.model.weights:``.
        match: what the tensors will be matched by; safetensors keeps names and no order.

    Raises:
        ArtifactError: it is not there, damaged, or no state dict, or has no order where one is needed.
    """
    if not path.is_file():
        raise ArtifactError(f"{place} {path} is {'a folder' if path.is_dir() else 'not there'}")
    if path.suffix in TORCH_FILES:
        return _of_torch(path, place)
    if match == "order":
        raise ArtifactError(
            f"{place} {path} is read as safetensors, which keeps no order: weights_match = 'order' "
            f"needs a file that torch.save wrote ({', '.join(TORCH_FILES)})"
        )
    return load_tensors(path)[0]


def _of_torch(path: Path, place: str) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{place} {path} holds more than tensors, or is damaged: it is not unpickled, for that could "
            "run code; save model.state_dict() alone, best as safetensors"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        words = str(error).partition("\n")[0] or "it ends too early"
        raise ArtifactError(f"{place} {path} cannot be read: {words}") from error
    tensors = _state_dict_in(raw)
    if tensors is None:
        raise ArtifactError(
            f"{place} {path} holds {type(raw).__name__}, where a state dict is needed: "
            "torch.save(model.state_dict(), F) writes one"
        )
    return tensors


def _state_dict_in(raw: Any) -> dict[str, Tensor] | None:
    if not isinstance(raw, Mapping) or not raw:
        return None
    if all(isinstance(value, Tensor) for value in raw.values()):
        return {str(name): value.detach() for name, value in raw.items()}
    return next((found for key in NESTED if (found := _state_dict_in(raw.get(key)))), None)


def fitted(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, match: Match = "name"
) -> dict[str, Tensor]:
    """Return a state dict for the model that wants ``wanted``, of the tensors that a file holds.

    By name, what wrappers put before every name is taken away, and a tensor that the model ties to one of
    the file's need not be in it. By order, the n-th tensor of the file is the n-th of the model, each of the
    same shape. Counts of batches that batch norms keep are no part of either.

    Raises:
        ArtifactError: they do not fit; names the first misfit with both shapes, and how many there are.
    """
    if match == "order":
        return _in_order(found, wanted, source)
    renamed = _without_prefix(found, wanted)
    _check_names(renamed, wanted, source)
    return {name: renamed.get(name, tensor) for name, tensor in wanted.items()} | _tied(renamed, wanted)


def _in_order(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    theirs = {name: tensor for name, tensor in found.items() if not name.endswith(NOT_NEEDED)}
    ours = {name: tensor for name, tensor in wanted.items() if not name.endswith(NOT_NEEDED)}
    faults = [
        f"tensor {rank} is {name}, {list(tensor.shape)}, in the file and {own}, {list(ours[own].shape)}, in "
        "the recipe's model"
        for rank, ((name, tensor), own) in enumerate(zip(theirs.items(), ours, strict=False), start=1)
        if tensor.shape != ours[own].shape
    ]
    if len(theirs) != len(ours):
        faults.append(f"the file holds {len(theirs)} tensors, the recipe's model {len(ours)}")
    if faults:
        raise ArtifactError(f"{source} does not fit in order: {faults[0]}{_more(faults)}")
    return {**wanted, **dict(zip(ours, theirs.values(), strict=True))}


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


def _check_names(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    faults = [
        f"{name} is {list(found[name].shape)} in the file and {list(tensor.shape)} in the recipe's model"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    unknown = [name for name in found if name not in wanted]
    tied = _tied(found, wanted)
    missing = [
        name for name in wanted if name not in found and name not in tied and not name.endswith(NOT_NEEDED)
    ]
    faults += [f"{name} is missing{did_you_mean(name, unknown)}" for name in missing]
    faults += [f"{name} is not in the recipe's model{did_you_mean(name, wanted)}" for name in unknown]
    if faults:
        raise ArtifactError(f"{source} does not fit: {faults[0]}{_more(faults)}")


def _tied(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, for names that the file lacks, the file's tensor under another name of the same parameter."""
    by_place = {_place(wanted[name]): tensor for name, tensor in found.items() if name in wanted}
    return {
        name: by_place[_place(tensor)]
        for name, tensor in wanted.items()
        if name not in found and tensor.numel() and _place(tensor) in by_place
    }


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _more(faults: list[str]) -> str:
    return f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
