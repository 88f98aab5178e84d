"""A bundle: the ticket's tensors, plan and recipe in one folder that proves itself whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.records import TaskFacts
from tpsprune.runs import (
    cannot_write,
    first_fault,
    is_newer,
    read_json,
    read_text,
    sync_folder,
    to_json_text,
    write_bytes_atomically,
)
from tpsprune.runs.tensors import Expected, load_tensors, serialise

__all__ = ["BUNDLE_SCHEMA", "Bundle", "bundle_schema", "read_bundle", "write_bundle"]

BUNDLE_SCHEMA: Final = "tpsprune.bundle/1"
_TENSORS: Final = "ticket.safetensors"
_PLAN: Final = "plan.json"
_RECIPE: Final = "recipe.toml"
_MANIFEST: Final = "manifest.json"
_REMEDY: Final = "export it again from its run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle holds; tensors are on the CPU."""

    tensors: dict[str, Tensor]
    plan: dict[str, Any]
    recipe_text: str
    facts: TaskFacts
    versions: dict[str, str] = field(default_factory=dict)


@cache
def bundle_schema() -> dict[str, Any]:
    """Return the JSON schema of ``manifest.json``, as shipped."""
    text = files("tpsprune.export").joinpath("bundle.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def write_bundle(
    folder: Path,
    *,
    tensors: Mapping[str, Tensor],
    plan: Mapping[str, Any],
    recipe_text: str,
    facts: TaskFacts,
    versions: Mapping[str, str],
) -> None:
    """Write a new bundle at ``folder``: built beside, flushed, and put in its place at the very end.

    The same content gives the same bytes, file by file, manifest included.

    Raises:
        ArtifactError: ``folder`` is there already and not empty.
        RunFolderError: it cannot be written; nothing is left behind.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} is there already and not empty: give another place, or move it away")
    contents = {
        _TENSORS: serialise(tensors, {"schema": BUNDLE_SCHEMA}),
        _PLAN: to_json_text(plan).encode(),
        _RECIPE: recipe_text.encode(),
    }
    contents[_MANIFEST] = to_json_text(_manifest(contents, tensors, facts, versions)).encode()
    beside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        for name, content in contents.items():
            write_bytes_atomically(beside / name, content)
        beside.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle: schema, then size and hash of every file, then shapes, then tensors.

    Raises:
        ArtifactError: it is not a bundle, of a newer version, or not as it was written; names the file.
    """
    manifest = _read_manifest(folder)
    for name, stamp in manifest["files"].items():
        _verify(folder / name, stamp)
    tensors, _ = load_tensors(folder / _TENSORS, _expected(manifest))
    try:
        plan, recipe_text = read_json(folder / _PLAN), read_text(folder / _RECIPE)
    except RunFolderError as error:
        raise ArtifactError(f"{error}; {_REMEDY}") from error
    return Bundle(
        tensors=tensors,
        plan=plan,
        recipe_text=recipe_text,
        facts=TaskFacts.from_json(manifest["facts"]),
        versions=manifest["versions"],
    )


def _manifest(
    contents: Mapping[str, bytes],
    tensors: Mapping[str, Tensor],
    facts: TaskFacts,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "schema": BUNDLE_SCHEMA,
        "facts": facts.to_json(),
        "versions": dict(versions),
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in contents.items()
        },
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in tensors.items()
        },
    }


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is not a bundle: there is no {_MANIFEST} in it")
    try:
        raw = read_json(path)
    except RunFolderError as error:
        raise ArtifactError(f"{error}; {_REMEDY}") from error
    found = raw.get("schema") if isinstance(raw, dict) else None
    if is_newer(found, BUNDLE_SCHEMA):
        raise ArtifactError(
            f"{folder} was written by a newer tpsprune: "
            f"it is {found}, this one reads {BUNDLE_SCHEMA}; upgrade"
        )
    if fault := first_fault(raw, bundle_schema()):
        raise ArtifactError(f"{path} is not a manifest this tpsprune can read: {fault}")
    manifest: dict[str, Any] = raw
    return manifest


def _verify(path: Path, stamp: Mapping[str, Any]) -> None:
    try:
        found_bytes = path.stat().st_size
        if found_bytes != stamp["bytes"]:
            raise ArtifactError(
                f"{path} is {found_bytes} bytes long where {stamp['bytes']} were written; {_REMEDY}"
            )
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; {_REMEDY}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    if sha256 != stamp["sha256"]:
        raise ArtifactError(f"{path} is not as it was written (its SHA-256 differs); {_REMEDY}")


def _expected(manifest: Mapping[str, Any]) -> Expected:
    return {
        name: (tuple(header["shape"]), getattr(torch, header["dtype"]))
        for name, header in manifest["tensors"].items()
    }
