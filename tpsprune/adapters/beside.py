"""The state of TPS and Watch beside a trainer's checkpoint: one file of tensors and JSON, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tpsprune.errors import ArtifactError
from tpsprune.runs.tensors import load_tensors, save_tensors

__all__ = ["load_state", "save_state"]

FILE: Final = "tpsprune.safetensors"


def save_state(folder: Path, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what ``Aboard.state_dict`` returned into a folder, whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
    """
    tensors = {
        f"{part}:{name}": tensor for part, own in state.items() for name, tensor in own["tensors"].items()
    }
    plain = {
        part: {name: value for name, value in own.items() if name != "tensors"} for part, own in state.items()
    }
    save_tensors(folder / FILE, tensors, {"state": json.dumps(plain)})


def load_state(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what ``save_state`` wrote into a folder, tensors on the CPU.

    Raises:
        ArtifactError: it is not there, damaged, or another file of that name.
    """
    path = folder / FILE
    if not path.exists():
        raise ArtifactError(
            f"{path}, which would say how far TPS and Watch had come, is not there; a checkpoint written with"
            " the callback would do, or callback.aboard.load_state_dict({}) beforehand to start both afresh"
        )
    tensors, metadata = load_tensors(path)
    try:
        plain = json.loads(metadata.get("state", ""))
    except ValueError as error:
        raise ArtifactError(
            f"{path} is no state of TPS and Watch: what the trainer's callback wrote would do"
        ) from error
    return {
        part: {
            **own,
            "tensors": {
                name.removeprefix(f"{part}:"): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{part}:")
            },
        }
        for part, own in plain.items()
    }
