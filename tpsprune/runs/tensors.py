"""Tensors on disk: safetensors, whole or not there, read only when they are what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tpsprune.errors import ArtifactError
from tpsprune.runs.files import write_bytes_atomically

__all__ = ["Expected", "load_tensors", "save_tensors", "serialise", "shapes_of"]

Expected: TypeAlias = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

_DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors with text metadata to one safetensors file, whole or not at all.

    Tensors that share storage (tied weights) are each written in full: names and values come back,
    the tie does not; who loads them into a model that ties its weights gets it from the model.
    Cost: the file's size in memory.

    Raises:
        RunFolderError: it cannot be written.
    """
    write_bytes_atomically(path, serialise(tensors, metadata))


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the very bytes that ``save_tensors`` writes: the same tensors give the same bytes.

    The safetensors library writes metadata in an order that changes from call to call; here it is
    sorted, so that a file's hash says something about what is in it.
    """
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous()
        place = flat.untyped_storage().data_ptr()
        own[name] = flat.clone() if place in seen else flat
        seen.add(place)
    return _with_metadata(safetensors.torch.save(own), metadata)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return name, shape and dtype of each tensor, as ``load_tensors`` wants to have them."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def load_tensors(path: Path, expected: Expected | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file onto the CPU: tensors by name, and its metadata.

    With ``expected`` given, names, shapes and dtypes are compared with the file's header before any
    tensor is allocated, so a foreign file costs nothing.

    Raises:
        ArtifactError: the file is missing, damaged, not safetensors, or does not hold what is expected;
            names every missing and unknown tensor, and both shapes.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            if expected is not None:
                found = {name: _header_of(file.get_slice(name)) for name in names}
                _compare(path, found, expected)
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is not there") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged or not a safetensors file ({error})") from error


def _header_of(part: Any) -> tuple[tuple[int, ...], torch.dtype | str]:
    dtype = part.get_dtype()
    return tuple(part.get_shape()), _DTYPES.get(dtype, dtype)


def _compare(
    path: Path, found: Mapping[str, tuple[tuple[int, ...], torch.dtype | str]], expected: Expected
) -> None:
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not known" for name in found if name not in expected]
    for name, wanted in expected.items():
        if name in found and found[name] != wanted:
            faults.append(f"{name} is {_words(found[name])} where {_words(wanted)} is needed")
    if faults:
        raise ArtifactError(f"{path} does not fit: " + "; ".join(faults))


def _words(header: tuple[tuple[int, ...], torch.dtype | str]) -> str:
    shape, dtype = header
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


def _with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Safetensors aligns the data to eight bytes with trailing spaces in the header.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
