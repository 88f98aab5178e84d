"""Tensors on disk: safetensors, whole or not there, read only when they are what was expected."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

import torch
from torch import Tensor

from tpsprune.errors import ArtifactError
from tpsprune.runs.files import open_regular, writing
from tpsprune.runs.tensor_header import LENGTH_BYTES, MAX_HEADER_BYTES, Place, header_of, parse_header

__all__ = [
    "Expected",
    "file_bytes",
    "load_hashed",
    "load_tensors",
    "save_tensors",
    "serialise",
    "shapes_of",
]

Expected: TypeAlias = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors with text metadata to one safetensors file, whole or not at all.

    The same tensors give the same bytes. Tensors that share storage (tied weights) are each written in
    full: names and values come back, the tie does not; who loads them into a model that ties its weights
    gets it from the model. Cost: none of memory, but one tensor's where it lies on a GPU or is strided.

    Raises:
        ArtifactError: a number type that the format has no word for.
        RunFolderError: it cannot be written.
    """
    with writing(path) as file:
        _write(file, tensors, metadata)


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the very bytes that ``save_tensors`` writes."""
    file = BytesIO()
    _write(file, tensors, metadata)
    return file.getvalue()


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return how many bytes ``save_tensors`` writes of these, without metadata; nothing is copied."""
    header, _ = header_of(tensors, {})
    return len(header) + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return name, shape and dtype of each tensor, as ``load_tensors`` wants to have them."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def load_tensors(path: Path, expected: Expected | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file onto the CPU: tensors by name, and its metadata.

    The header is checked by itself and, with ``expected`` given, names, shapes and dtypes against it,
    before any tensor is allocated, so a foreign file costs nothing. The tensors own their memory: what
    becomes of the file later does not touch them. Cost: the file's size in memory, once.

    Raises:
        ArtifactError: the file is missing, damaged, not safetensors, or does not hold what is expected;
            names every missing and unknown tensor, and both shapes.
    """
    tensors, metadata, _ = load_hashed(path, expected, hashed=False)
    return tensors, metadata


def load_hashed(
    path: Path, expected: Expected | None = None, *, hashed: bool = True
) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Read as ``load_tensors``, and return the SHA-256 of the very bytes that the tensors were made from.

    The file is opened once and read once: nobody can change it between the check and the use.
    """
    digest = hashlib.sha256() if hashed else None
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            places, metadata = _header(file, size, digest)
            if expected is not None:
                _compare(path, {name: (place.shape, place.dtype) for name, place in places.items()}, expected)
            tensors = {name: _read(file, name, place, digest) for name, place in places.items()}
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is not there") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged or not a safetensors file ({error})") from error
    by_name = {name: tensors[name] for name in sorted(tensors)}
    return by_name, metadata, digest.hexdigest() if digest else ""


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    try:
        header, names = header_of(tensors, metadata)
    except ValueError as error:
        raise ArtifactError(f"tensors cannot be written: {error}") from error
    file.write(header)
    file.writelines(_bytes_of(tensors[name]) for name in names)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's numbers as they lie in memory; copied first only where they do not lie in a row."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def _header(
    file: BufferedReader, size: int, digest: hashlib._Hash | None
) -> tuple[dict[str, Place], dict[str, str]]:
    length_bytes = file.read(LENGTH_BYTES)
    length = int.from_bytes(length_bytes, "little")
    if len(length_bytes) < LENGTH_BYTES or length > min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
        raise ValueError(f"its header would be {length} bytes long, in a file of {size}")
    text = file.read(length)
    if digest:
        digest.update(length_bytes)
        digest.update(text)
    return parse_header(text, size - LENGTH_BYTES - length)


def _read(file: BufferedReader, name: str, place: Place, digest: hashlib._Hash | None) -> Tensor:
    try:
        tensor = torch.empty(place.shape, dtype=place.dtype)
    except (RuntimeError, MemoryError, TypeError) as error:
        raise ValueError(f"there is no room for {name!r} of shape {list(place.shape)}") from error
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    done = 0
    while done < len(content):
        count = file.readinto(content[done:])
        if not count:
            raise ValueError(f"it ends within {name!r}")
        done += count
    if digest:
        digest.update(content)
    return tensor


def _compare(
    path: Path, found: Mapping[str, tuple[tuple[int, ...], torch.dtype]], expected: Expected
) -> None:
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not known" for name in found if name not in expected]
    for name, wanted in expected.items():
        if name in found and found[name] != wanted:
            faults.append(f"{name} is {_words(found[name])} where {_words(wanted)} is needed")
    if faults:
        raise ArtifactError(f"{path} does not fit: " + "; ".join(faults))


def _words(header: tuple[tuple[int, ...], torch.dtype]) -> str:
    shape, dtype = header
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"
