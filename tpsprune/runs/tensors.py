"""Tensors on disk: safetensors, whole or not there, and trained weights from outside, read as data only."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, Final, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tpsprune.errors import ArtifactError, did_you_mean
from tpsprune.recipe.task import Match
from tpsprune.records.strict import open_regular
from tpsprune.runs.files import cannot_write, replacing

UNREADABLE: Final = (SafetensorError, ValueError, RuntimeError, OverflowError, MemoryError)
"""What reading a damaged file of tensors raises, or one that is none."""
Expected: TypeAlias = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

DTYPES: Final[dict[str, torch.dtype]] = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of number types."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors with text metadata to one safetensors file, whole or not at all.

    The same tensors give the same bytes with at most one entry of metadata: of several, the library leaves
    the order to chance. Tensors that share storage (tied weights) are each written in full: names and values
    come back, the tie does not; who loads them into a model that ties its weights gets it from the model.
    Cost: none of memory, but a copy of what is tied, strided, or on a GPU.

    Raises:
        ArtifactError: a number type that the format has no name for.
        RunFolderError: it cannot be written.
    """
    stored = _own_storage(tensors)
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            safetensors.torch.save_file(stored, temporary, dict(metadata) or None)
            temporary.chmod(mode)  # The library leaves it to its owner alone.
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else 0
            raise cannot_write(path, OSError(code, os.strerror(code) if code else str(error))) from error


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the very bytes that ``save_tensors`` writes."""
    return safetensors.torch.save(_own_storage(tensors), dict(metadata) or None)


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return how many bytes ``save_tensors`` writes of these, without metadata. Cost: one copy of them."""
    return len(serialise(tensors, {}))


def shapes_of(tensors: Mapping[str, Tensor | Stored]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return name, shape and dtype of each tensor, as ``load_tensors`` wants to have them."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def load_tensors(path: Path, expected: Expected | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file onto the CPU: tensors by name, and its metadata.

    The header is checked by itself and, with ``expected``, names, shapes and dtypes against it,
    before any tensor is allocated, so a foreign file costs nothing. The tensors own their memory: what
    becomes of the file later does not touch them. Cost: the file's size in memory.

    Raises:
        ArtifactError: the file is missing, damaged, not safetensors, or does not hold what is expected;
            names every missing and unknown tensor, and both shapes.
    """
    tensors, metadata, _ = load_hashed(path, expected)
    return tensors, metadata


def load_hashed(
    path: Path, expected: Expected | None = None
) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Read as ``load_tensors``, and return the SHA-256 of the very bytes that the tensors were made from."""
    try:
        with open_regular(path) as file:
            found, metadata = _header(path)
            if expected is not None:
                _compare(path, found, expected)
            tensors, sha256 = _read_all(file, found)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is not there") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except UNREADABLE as error:
        words = str(error).partition("\n")[0]
        raise ArtifactError(f"{path} is damaged or not a safetensors file ({words})") from error
    return {name: tensors[name] for name in sorted(tensors)}, metadata, sha256


def _read_all(file: BufferedReader, facts: Expected) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a file one after the other, into memory of their own; and the SHA-256 of it all.

    Raises:
        ValueError: the file is no longer the one whose header the library has found good.
    """
    changed = ValueError("it was changed while it was read")
    head = file.read(8)
    if len(head) < 8 or (size := struct.unpack("<Q", head)[0]) > MOST_PICKLED:
        raise changed
    raw = file.read(size)
    digest = hashlib.sha256(head + raw)
    tensors: dict[str, Tensor] = {}
    position = 0
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        parts = sorted(
            (*own["data_offsets"], name, own["shape"], own["dtype"]) for name, own in header.items()
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise changed from error
    for begin, end, name, shape_, kind in parts:
        shape, dtype = tuple(shape_), DTYPES.get(kind, torch.uint8)
        if (
            facts.get(name) != (shape, dtype)
            or begin != position
            or end - begin != prod(shape) * dtype.itemsize
        ):
            raise changed
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        if file.readinto(content) != len(content):
            raise changed
        digest.update(content)
        tensors[name] = tensor.detach()  # Offloading sees operations, and drops what they touch from memory.
        position = end
    if tensors.keys() != facts.keys() or file.read(1):
        raise changed
    return tensors, digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the elements of a tensor lie: from which byte of which file on."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def find_tensors(place: Path) -> dict[str, Stored]:
    """Return where each tensor of a safetensors file lies, or of all such files in a folder; none is read.

    Raises:
        ArtifactError: there is no such file, it is damaged, or two have a tensor of one name.
    """
    paths = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if not paths:
        raise ArtifactError(f"{place} holds no *.safetensors file")
    found: dict[str, Stored] = {}
    for path in paths:
        try:
            facts, _ = _header(path)
            with open_regular(path) as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} is not there") from error
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
        except (SafetensorError, ValueError) as error:
            words = str(error).partition("\n")[0]
            raise ArtifactError(f"{path} is damaged or not a safetensors file ({words})") from error
        for name, (shape, dtype) in facts.items():
            if name in found:
                raise ArtifactError(f"{name} is in {found[name].path} and in {path}: one of them is needed")
            found[name] = Stored(path, 8 + size + header[name]["data_offsets"][0], shape, dtype)
    return found


def compare_tensors(path: Path, tensors: Mapping[str, Tensor | Stored], expected: Expected) -> None:
    """Hold tensors that were read, or found, in a file against what is expected.

    Raises:
        ArtifactError: as ``load_tensors``.
    """
    _compare(path, shapes_of(tensors), expected)


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as the library takes them: on the CPU, each in a row and in memory of its own."""
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ArtifactError(f"tensors cannot be written: safetensors has no name for {kind}")
        each = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = each.untyped_storage().data_ptr()
        stored[name] = each.clone() if storage in storages else each
        storages.add(storage)
    return stored


def _header(path: Path) -> tuple[Expected, dict[str, str]]:
    """Return shapes, number types and metadata of a file, which the library checks against its size."""
    with open_regular(path) as raw:
        head = raw.read(8)
    if len(head) == 8 and struct.unpack("<Q", head)[0] > MOST_PICKLED:
        raise ValueError(f"its header is longer than {MOST_PICKLED:,} bytes")
    # For torch the library would map the whole file, for numpy it reads the header alone.
    with safe_open(path, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
        kinds = {name: each.get_dtype() for name, each in slices.items()}
        if unknown := [name for name in kinds if kinds[name] not in DTYPES]:
            raise ValueError(f"{unknown[0]!r} is of the unknown number type {kinds[unknown[0]]!r}")
        found = {name: (tuple(each.get_shape()), DTYPES[kinds[name]]) for name, each in slices.items()}
        return found, file.metadata() or {}


def _compare(path: Path, found: Expected, expected: Expected) -> None:
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not known" for name in found if name not in expected]
    for name, wanted in expected.items():
        if name in found and found[name] != wanted:
            faults.append(f"{name} is {_describe(found[name])} where {_describe(wanted)} is needed")
    if faults:
        raise ArtifactError(f"{path} does not fit: " + "; ".join(faults))


def _describe(header: tuple[tuple[int, ...], torch.dtype]) -> str:
    shape, dtype = header
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


TORCH_FILES: Final = (".pt", ".pth", ".bin", ".ckpt", ".tar")
NESTED: Final = ("state_dict", "model_state_dict", "model")
PREFIXES: Final = ("module.", "_orig_mod.", "model.")
NOT_NEEDED: Final = "num_batches_tracked"


def read_state(path: Path, place: str, match: Match = "name") -> dict[str, Tensor]:
    """Read a file's tensors onto the CPU, in the file's order where that is one.

    A safetensors file, or a state dict that ``torch.save`` wrote (``.pt``, ``.pth``, ``.bin``), read so that
    nothing in it can run, by itself or as ``state_dict`` or ``model`` of a checkpoint.

    Args:
        path: the file.
        place: where the user named it, with which messages begin: ``--weights``, ``task.model.weights:``.
        match: what the tensors will be matched by; safetensors keeps names and no order.

    Raises:
        ArtifactError: it is not there, damaged, or no state dict, or has no order where one is needed.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file" if path.exists() else "not there"
        raise ArtifactError(f"{place} {path} is {what}")
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
        _refuse_growth(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{place} {path} holds more than tensors, or is damaged: it is not unpickled, for that could "
            "run code; save model.state_dict() alone, best as safetensors"
        ) from error
    except _NO_STATE_DICT as error:
        words = str(error).partition("\n")[0] or "it ends too early"
        raise ArtifactError(f"{place} {path} cannot be read: {words}") from error
    tensors = _state_dict_in(raw)
    if tensors is None:
        raise ArtifactError(
            f"{place} {path} holds {type(raw).__name__}, where a state dict is needed: "
            "torch.save(model.state_dict(), F) writes one"
        )
    return tensors


_NO_STATE_DICT: Final = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, zipfile.BadZipFile, struct.error),
)
"""What torch's reader raises on files that no torch wrote."""
MOST_PICKLED: Final = 2**24
GROWING: Final = re.compile(rb"bytearray|_sparse_|_rebuild_wrapper_subclass")
"""What a state dict has no use for, and what can take memory without end at a few bytes' word."""


def _refuse_growth(path: Path) -> None:
    """Refuse a file of ``torch.save`` that takes more memory than it has bytes: torch packs nothing.

    Raises:
        ValueError: something in it is packed, or makes more of itself.
    """
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            pickled = file.read(MOST_PICKLED)
        else:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                if packed := [each.filename for each in records if each.compress_type != zipfile.ZIP_STORED]:
                    raise ValueError(f"{packed[0]!r} in it is packed, which torch.save never does")
                whole = os.fstat(file.fileno()).st_size
                if sum(each.file_size for each in records) > whole:
                    raise ValueError("it claims to hold more bytes than it has")
                pickles = [each for each in records if each.filename.endswith(".pkl")]
                if any(each.file_size > MOST_PICKLED for each in pickles):
                    raise ValueError(f"what it pickles is longer than {MOST_PICKLED:,} bytes")
                pickled = b"".join(map(archive.read, pickles))
        if found := GROWING.search(pickled):
            raise ValueError(f"it calls {found[0].decode()}, which no state dict needs")


def _state_dict_in(raw: Any) -> dict[str, Tensor] | None:
    if not isinstance(raw, Mapping) or not raw:
        return None
    if all(isinstance(value, Tensor) and _is_plain(value) for value in raw.values()):
        return {str(name): value.detach() for name, value in raw.items()}
    return next((found for key in NESTED if (found := _state_dict_in(raw.get(key)))), None)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def match_state(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, match: Match = "name"
) -> dict[str, Tensor]:
    """Return a state dict for the model that wants ``wanted``, of the tensors that a file holds.

    By name, a prefix that wrappers add to every name is removed, and a tensor that the model ties to one of
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
    """Remove the prefix of wrappers (data parallel, compiled) from every name, where the model has none."""
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
