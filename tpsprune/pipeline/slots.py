"""Checkpoints of a model that is spread over processes: each writes its parts, as safetensors.

``state/a`` and ``state/b`` hold the parts, by turns; ``state/a.safetensors`` beside it what all processes
have in common. ``state/current.json`` names the one that counts, and is replaced when all have written.
torch's distributed checkpoint writes and reads the parts, in the format of Hugging Face: its default keeps a
file that is read by pickle, and a run folder must not be able to run code. Any number of processes reads what
another has written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tpsprune.errors import RunFolderError, first_line
from tpsprune.numerics.peers import AbstractPeers
from tpsprune.records import dump, load
from tpsprune.records.serial import Positive
from tpsprune.runs import RunFolder, read_json, write_json_atomically
from tpsprune.runs.files import cannot_write
from tpsprune.runs.tensors import UNREADABLE
from tpsprune.training.spread import tied_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Which of the two checkpoints counts, and how many processes wrote it."""

    SCHEMA: ClassVar[str] = "tpsprune.slot/1"

    schema: Literal["tpsprune.slot/1"] = "tpsprune.slot/1"
    name: Literal["a", "b"]
    processes: Positive


def read_slot(folder: RunFolder) -> Slot | None:
    """Return which checkpoint counts; none before the first, and of a model that is not spread.

    Raises:
        RunFolderError: what says so is damaged.
    """
    path = _current(folder)
    if not path.is_file():
        return None
    try:
        return load(Slot, read_json(path))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}; start again with --again") from error


def write_parts(folder: RunFolder, tensors: Mapping[str, Tensor], peers: AbstractPeers) -> Slot:
    """Write tensors that lie in parts on the processes; return the checkpoint, which is to be completed.

    Raises:
        CannotWriteError: some process cannot write; everywhere.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    def free() -> str:
        before = read_slot(folder)
        name = "b" if before is not None and before.name == "a" else "a"
        try:
            shutil.rmtree(folder.state / name, ignore_errors=True)
            (folder.state / name).mkdir()
        except OSError as error:
            raise cannot_write(folder.state / name, error) from error
        return name

    slot = Slot(name=peers.first(free), processes=peers.size)
    path = parts_of(folder, slot)
    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise cannot_write(path, OSError(getattr(cause, "errno", 0) or 0, str(cause))) from error
    return slot


def set_current(folder: RunFolder, slot: Slot) -> None:
    """Have a checkpoint count, all of which has been written."""
    write_json_atomically(_current(folder), dump(slot))


def read_parts(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read the parts of a spread model and of its optimiser's state that are this process's.

    Raises:
        RunFolderError: they are missing, damaged, or do not fit the model.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    held = model.state_dict()

    def place_for(name: str, facts: Any) -> Tensor:
        room, _, tensor = name.partition(":")
        like = held[tensor if room == "model" else tensor.rpartition("/")[0]]
        if facts.size != like.shape:
            raise ValueError(f"{name} is {list(facts.size)}, and the model has {list(like.shape)}")
        return torch.empty_like(like, dtype=facts.properties.dtype, requires_grad=False)

    try:
        stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        found = {name: place_for(name, facts) for name, facts in stored.items()}
        load_parts(found, storage_reader=HuggingFaceStorageReader(str(path)))
        found |= {f"model:{name}": found[f"model:{first}"] for name, first in tied_names(model).items()}
    except (CheckpointException, OSError, LookupError, *UNREADABLE) as error:
        raise RunFolderError(
            f"{path} is damaged or does not fit its recipe ({first_line(error)}); start again with --again"
        ) from error
    return found


def parts_of(folder: RunFolder, slot: Slot) -> Path:
    """Return where the parts of a checkpoint lie, on a disk that all processes share."""
    return (folder.home or folder.path) / "state" / slot.name


def common_of(folder: RunFolder, slot: Slot) -> Path:
    """Return the file of a checkpoint that holds what all processes have in common."""
    return folder.state / f"{slot.name}.safetensors"


def _current(folder: RunFolder) -> Path:
    return folder.state / "current.json"
