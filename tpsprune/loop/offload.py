"""A model larger than the memory, cut in it: its weights on disk, a few layers at a time in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.offload import OffloadStore, open_store
from tpsprune.recipe.prune import BY_GRADIENTS, Joules, Latency, Prune
from tpsprune.runs.tensors import compare_tensors, find_tensors

NOT_REPAIRED: Final = (
    "the ticket was not repaired: that takes its gradients and the optimiser's moments in memory, which "
    "offload is to spare; where they have room, tpsprune.repair does it"
)


@contextmanager
def offloading(
    model: nn.Module, folder: str | Path | None, weights: str | Path | None
) -> Iterator[nn.Module]:
    """Offload what is made of a model in this block; yield the model, with its weights where it had none.

    Args:
        model: on the CPU or, with ``weights``, on ``meta``; not changed.
        folder: where the files lie; none leaves everything in memory.
        weights: a safetensors file, or a folder with the parts of one.

    Raises:
        PruneError: the folder, or the model's device, will not do; or values are missing.
        ArtifactError: the weights cannot be read or do not fit the model.
    """
    if folder is None:
        if weights is not None:
            raise PruneError(
                "weights= is read with offload= alone: without it, load them into the model "
                "(load_state_dict, from_pretrained)"
            )
        yield model
        return
    with open_store(Path(folder)) as store:
        if weights is not None:
            model = _filled_copy(model, Path(weights), store)
        for name, tensor in _tensors_of(model).items():
            if tensor.is_meta:
                raise PruneError(
                    f"offload: '{name}' has no values (it lies on meta); weights= names the safetensors file "
                    "that holds them. Buffers that no file holds are to be made with the model: "
                    "accelerate.init_empty_weights() leaves them in memory"
                )
            if tensor.device.type != "cpu":
                raise PruneError(
                    f"offload: '{name}' lies on {tensor.device}; files are mapped into the memory of the CPU "
                    "alone: move the model there (model.cpu())"
                )
        yield model


def refuse_what_needs_memory(settings: Prune) -> None:
    """Refuse settings under which a whole model, or its gradients, would lie in memory after all.

    Raises:
        PruneError: names the setting, and what to use instead.
    """
    if isinstance(settings.target, Latency | Joules):
        raise PruneError(
            f"offload: the target {settings.target} is measured, and what a model takes whose weights are "
            "read from disk says nothing about the ticket; use Macs, Params, Bytes, Tolerance or Widths"
        )
    if settings.units in BY_GRADIENTS:
        raise PruneError(
            f"offload: units = {settings.units!r} reads the gradients of all weights at once; use "
            "'interpolation' or another that does not"
        )
    if settings.low_rank:
        raise PruneError("offload: low_rank holds every layer's directions in memory; leave it out")
    if settings.repair is True or settings.repair_steps not in ("auto", 0):
        raise PruneError(
            "offload: a repair holds the ticket's gradients and the optimiser's moments in memory; cut "
            "without it, and call tpsprune.repair where they have room"
        )


def _filled_copy(model: nn.Module, weights: Path, store: OffloadStore) -> nn.Module:
    """Return a copy of a model with the weights of a file, tied parameters tied still."""
    stored, held = find_tensors(weights), model.state_dict(keep_vars=True)
    names_of: dict[int, list[str]] = {}
    for name, tensor in held.items():
        names_of.setdefault(id(tensor), []).append(name)
    # Of a tied parameter one name is enough.
    wanted = {
        name: (tuple(held[name].shape), held[name].dtype)
        for names in names_of.values()
        for name in ([each for each in names if each in stored] or names[:1])
    }
    compare_tensors(weights, stored, wanted)
    read: dict[int, Any] = {}
    for own, names in names_of.items():
        old, source = held[names[0]], stored[next(each for each in names if each in stored)]
        with source.path.open("rb") as file:
            file.seek(source.offset)
            tensor = store.read(file, source.shape, source.dtype)
        is_parameter = isinstance(old, nn.Parameter)
        read[own] = nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor
    # Whatever holds one of these tensors holds what was read in the copy.
    return copy.deepcopy(model, read)


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
