"""A bundle: the ticket in one folder that proves itself whole, written as a whole and read without trust."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tpsprune.errors import ArtifactError
from tpsprune.export.manifest import (
    MANIFEST,
    REMEDY,
    changed,
    inside,
    manifest_text,
    read_manifest,
    read_verified,
    stamp_of,
    verify,
)
from tpsprune.records import FileName, Manifest, Stamp, TaskFacts, dump, load
from tpsprune.runs import (
    beside,
    cannot_write,
    strict_json,
    sweep,
    sync_folder,
    to_json_text,
    write_text_atomically,
)
from tpsprune.runs.tensors import Expected, compare_tensors, load_hashed, save_tensors

CARD: Final = "README.md"
TENSORS: Final = "ticket.safetensors"
OWN: Final = "own.safetensors"
SHARED: Final = "shared.safetensors"
"""What a ticket of a family has alone, and beside its folder what several have (``sharing``)."""
PLAN: Final = "plan.json"
RECIPE: Final = "recipe.toml"
SAFETENSORS: Final = "safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle holds; tensors are on the CPU and own their memory.

    Without a recipe the text is empty, and there are no ``facts``.
    """

    tensors: dict[str, Tensor]
    plan: dict[str, Any]
    recipe_text: str
    facts: TaskFacts | None
    versions: dict[str, str] = field(default_factory=dict)


def is_bundle(folder: Path) -> bool:
    """Return whether a folder has a manifest."""
    return (folder / MANIFEST).is_file()


def check_free(folder: Path) -> None:
    """Refuse a place that is taken; an empty folder is free, but for the one that the command runs in.

    What killed exports left beside it is swept.

    Raises:
        ArtifactError: ``folder`` is there already and not empty, or the current folder.
        RunFolderError: it cannot be read.
    """
    try:
        sweep(folder.resolve().parent, below=False)
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        is_here = folder.resolve() == Path.cwd()
    except OSError as error:
        raise cannot_write(folder, error) from error
    if taken:
        raise ArtifactError(f"{folder} is there already and not empty: give another place, or move it away")
    if is_here:
        raise ArtifactError(f"{folder} is the current folder, which cannot be replaced: give a new one")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to; at the end it is flushed and renamed to ``folder``.

    Raises:
        ArtifactError: ``folder`` is there already and not empty.
        RunFolderError: it cannot be written. Whatever goes wrong within, nothing is left behind.
    """
    check_free(folder)
    place = folder.resolve()  # Of a link, the folder that it leads to.
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with beside(place) as temporary:
            temporary.mkdir()
            yield temporary
            _flush(temporary)
            temporary.replace(place)
            sync_folder(place.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error


def write_description(folder: Path, plan: Mapping[str, Any], recipe_text: str = "") -> None:
    """Write what the ticket was made by: its plan and, if it has one, its recipe."""
    write_text_atomically(folder / PLAN, to_json_text(plan))
    if recipe_text:
        write_text_atomically(folder / RECIPE, recipe_text)


def write_ticket(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Write the ticket's tensors, which go to the file without a second copy in memory."""
    save_tensors(folder / TENSORS, tensors, {"schema": Manifest.SCHEMA})
    return (TENSORS,)


def write_card(folder: Path, text: str) -> None:
    """Write the model card."""
    write_text_atomically(folder / CARD, text)


def stamps_in(folder: Path) -> dict[str, Stamp]:
    """Return size and hash of every file in a folder, by name, sorted."""
    return {path.name: stamp_of(path) for path in sorted(folder.iterdir())}


def seal(
    folder: Path,
    *,
    formats: Mapping[str, tuple[str, ...]],
    stamps: Mapping[str, Stamp],
    tensors: Mapping[str, Tensor] | Expected,
    facts: TaskFacts | None,
    versions: Mapping[str, str],
) -> None:
    """Write the manifest over the files of ``stamps``: from then on a changed byte is noticed.

    Args:
        folder: the bundle.
        formats: the files of each format.
        stamps: of every file but the manifest.
        tensors: those of the safetensors format, or their shapes; empty without it.
        facts: of the task; none where the bundle has no recipe.
        versions: that the ticket was made with.
    """
    expected: Expected = {
        name: (tuple(each.shape), each.dtype) if isinstance(each, Tensor) else each
        for name, each in tensors.items()
    }
    raw = {
        "facts": None if facts is None else dump(facts),
        "versions": dict(versions),
        "formats": {name: list(held) for name, held in formats.items()},
        "files": {name: dump(stamp) for name, stamp in stamps.items()},
        "tensors": {
            name: {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
            for name, (shape, dtype) in expected.items()
        },
    }
    write_manifest(folder, load(Manifest, raw))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest, sealed."""
    write_text_atomically(folder / MANIFEST, manifest_text(manifest))


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle: the manifest, then size and hash of every file in it, other formats' files too.

    Other files in the folder are ignored. The bytes that plan, recipe and tensors are made
    from are those that were hashed; of the other files nothing is read but their hash.

    Raises:
        ArtifactError: it is not a bundle, of a newer version, not as it was written, or holds no
            safetensors; names the file.
    """
    manifest = read_manifest(folder)
    stamps = manifest.files
    if SAFETENSORS not in manifest.formats or not {TENSORS, OWN} & stamps.keys():
        raise ArtifactError(
            f"{folder} holds the ticket as {', '.join(manifest.formats)} only, and safetensors is what is "
            f"read here: load it as its {CARD} describes, or export the run again with --format safetensors"
        )
    for name in stamps:
        if name not in {PLAN, RECIPE, TENSORS, OWN, SHARED}:
            verify(folder, name, stamps[name])
    plan = _json(folder, read_verified(folder, PLAN, stamps[PLAN]))
    recipe = "" if manifest.facts is None else _text(folder, read_verified(folder, RECIPE, stamps[RECIPE]))
    return Bundle(
        tensors=_tensors(folder, manifest),
        plan=plan,
        recipe_text=recipe,
        facts=manifest.facts,
        versions=manifest.versions,
    )


def _tensors(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    expected: Expected = {
        name: (facts.shape, getattr(torch, facts.dtype)) for name, facts in manifest.tensors.items()
    }
    if not manifest.shared:
        return _load(folder, TENSORS, manifest, expected)
    if not (folder.parent / SHARED).is_file():
        raise ArtifactError(
            f"{folder} is one size of a family, and {SHARED} is not beside it: copy the whole family, or "
            "export the size from there"
        )
    own = {name: facts for name, facts in expected.items() if name not in manifest.shared}
    theirs = _load(folder.parent, SHARED, manifest, None)
    found = _load(folder, OWN, manifest, own) | {
        name: theirs[name] for name in manifest.shared if name in theirs
    }
    compare_tensors(folder.parent / SHARED, found, expected)
    return dict(sorted(found.items()))


def _load(folder: Path, name: FileName, manifest: Manifest, expected: Expected | None) -> dict[str, Tensor]:
    path, stamp = inside(folder, name), manifest.files[name]
    if path.is_file() and path.stat().st_size != stamp.bytes:
        verify(folder, name, stamp)
    try:
        tensors, _, sha256 = load_hashed(path, expected)
    except ArtifactError as error:
        # A changed file is reported as changed, whatever it now holds.
        verify(folder, name, stamp)
        raise ArtifactError(f"{error}; {REMEDY}") from error
    if sha256 != stamp.sha256:
        raise changed(path)
    return tensors


def _json(folder: Path, content: bytes) -> dict[str, Any]:
    try:
        value = strict_json(content)
    except ValueError as error:
        raise ArtifactError(f"{folder / PLAN} is damaged: {error}; {REMEDY}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{folder / PLAN} is no plan; {REMEDY}")
    return value


def _text(folder: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{folder / RECIPE} is not UTF-8 text; {REMEDY}") from error


def _flush(folder: Path) -> None:
    """Flush every file to the disk, for not every library that writes one does; then the folder."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    sync_folder(folder)
