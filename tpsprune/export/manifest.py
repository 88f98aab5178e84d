"""The manifest of a bundle: which files, how long, with which hash; and a seal over the manifest itself.

Hash and seal tell of damage, not of malice: who can write a file can write its hash. What keeps a bundle
from harm is how it is read: nothing is unpickled, names are from a short list, sizes are checked first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from tpsprune.errors import ArtifactError
from tpsprune.records import TaskFacts
from tpsprune.records.exported import Stamp
from tpsprune.runs import first_fault, is_newer, open_regular, strict_json, to_json_text
from tpsprune.runs.tensors import Expected

__all__ = [
    "BUNDLE_SCHEMA",
    "MANIFEST",
    "REMEDY",
    "bundle_schema",
    "inside",
    "manifest_text",
    "read_manifest",
    "read_verified",
    "stamp_of",
    "verify",
]

BUNDLE_SCHEMA: Final = "tpsprune.bundle/2"
FIRST_SCHEMA: Final = "tpsprune.bundle/1"
MANIFEST: Final = "manifest.json"
REMEDY: Final = "export it again from its run"
MAX_MANIFEST_BYTES: Final = 2**26
_SEALED: Final = re.compile(rb'(.*,\n  "seal": ")([0-9a-f]{64})"\n}\n', re.DOTALL)


@cache
def bundle_schema() -> dict[str, Any]:
    """Return the JSON schema of ``manifest.json``, as shipped."""
    text = files("tpsprune.export").joinpath("bundle.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def manifest_text(
    *,
    formats: Mapping[str, tuple[str, ...]],
    stamps: Mapping[str, Stamp],
    tensors: Expected,
    facts: TaskFacts,
    versions: Mapping[str, str],
) -> str:
    """Return the manifest's text; its last line but one is the SHA-256 of all that stands before it."""
    body = to_json_text(
        {
            "schema": BUNDLE_SCHEMA,
            "facts": facts.to_json(),
            "versions": dict(versions),
            "formats": {name: list(held) for name, held in formats.items()},
            "files": {name: {"sha256": each.sha256, "bytes": each.bytes} for name, each in stamps.items()},
            "tensors": {
                name: {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
                for name, (shape, dtype) in tensors.items()
            },
        }
    )
    sealed = body.removesuffix("\n}\n") + ',\n  "seal": "'
    return f'{sealed}{hashlib.sha256(sealed.encode()).hexdigest()}"\n}}\n'


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a manifest: its seal, its version, its schema, and what the schema cannot say.

    A bundle of the first version has no seal; everything else of it is checked alike.

    Raises:
        ArtifactError: it is missing, damaged, of a newer version, or says what cannot be.
    """
    path = folder / MANIFEST
    try:
        is_there = path.is_file()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    if not is_there:
        raise ArtifactError(f"{folder} is not a bundle: there is no {MANIFEST} in it")
    content = _read(inside(folder, MANIFEST), MAX_MANIFEST_BYTES)
    try:
        raw = strict_json(content)
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}; {REMEDY}") from error
    found = raw.get("schema") if isinstance(raw, dict) else None
    if is_newer(found, BUNDLE_SCHEMA):
        raise ArtifactError(
            f"{folder} was written by a newer tpsprune: "
            f"it is {found}, this one reads {BUNDLE_SCHEMA}; upgrade"
        )
    if fault := first_fault(raw, bundle_schema()):
        raise ArtifactError(f"{path} is not a manifest this tpsprune can read: {fault}")
    manifest: dict[str, Any] = raw
    if found == FIRST_SCHEMA:
        return {**manifest, "formats": {"safetensors": ["ticket.safetensors"]}}
    _check_seal(path, content)
    for name, held in manifest["formats"].items():
        if missing := [each for each in held if each not in manifest["files"]]:
            raise ArtifactError(f"{path}: {missing[0]} of format {name} is not among its files; {REMEDY}")
    return manifest


def stamp_of(path: Path) -> Stamp:
    """Return size and hash of a file, read piece by piece."""
    with open_regular(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Stamp(sha256, file.tell())


def verify(folder: Path, name: str, stamp: Mapping[str, Any]) -> None:
    """Hold one file of a bundle against its size and hash, read piece by piece.

    Raises:
        ArtifactError: it is missing, a link out of the folder, or not as it was written.
    """
    path = inside(folder, name)
    _check_size(path, stamp)
    try:
        found = stamp_of(path)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    if found.sha256 != stamp["sha256"]:
        raise changed(path)


def read_verified(folder: Path, name: str, stamp: Mapping[str, Any]) -> bytes:
    """Read one small file of a bundle, and return its bytes once they are found to be those written.

    Raises:
        ArtifactError: as ``verify``.
    """
    path = inside(folder, name)
    _check_size(path, stamp)
    content = _read(path, int(stamp["bytes"]))
    if hashlib.sha256(content).hexdigest() != stamp["sha256"]:
        raise changed(path)
    return content


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a bundle.

    Raises:
        ArtifactError: it is a link that leads out of the folder.
    """
    path = folder / name
    try:
        leads_out = path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"cannot read {path}: it is a link that leads nowhere") from error
    if leads_out:
        raise ArtifactError(f"{path} is a link out of its folder: copy the files themselves (cp -rL)")
    return path


def changed(path: Path) -> ArtifactError:
    """Return the words for a file whose bytes are not those written."""
    return ArtifactError(f"{path} is not as it was written (its SHA-256 differs); {REMEDY}")


def _check_size(path: Path, stamp: Mapping[str, Any]) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; {REMEDY}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    if found != stamp["bytes"]:
        raise ArtifactError(f"{path} is {found} bytes long where {stamp['bytes']} were written; {REMEDY}")


def _check_seal(path: Path, content: bytes) -> None:
    match = _SEALED.fullmatch(content)
    if match is None or hashlib.sha256(match[1]).hexdigest().encode() != match[2]:
        raise ArtifactError(f"{path} is not as it was written (its seal is broken); {REMEDY}")


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) > most_bytes:
        raise ArtifactError(f"{path} is longer than {most_bytes} bytes; {REMEDY}")
    return content
