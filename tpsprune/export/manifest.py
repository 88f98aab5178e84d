"""The manifest of a bundle: which files, how long, with which hash; and a seal over the manifest itself.

Hash and seal show damage, not malice: who can write a file can write its hash. What keeps a bundle
from harm is how it is read: nothing is unpickled, names are from a short list, sizes are checked first.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from tpsprune.errors import ArtifactError
from tpsprune.records import Manifest, Stamp, dump, is_newer, load
from tpsprune.runs import open_regular, strict_json, to_json_text

MANIFEST: Final = "manifest.json"
REMEDY: Final = "export it again from its run, or save it again"
MAX_MANIFEST_BYTES: Final = 2**26
_SEALED: Final = re.compile(rb'(.*,\n  "seal": ")([0-9a-f]{64})"\n}\n', re.DOTALL)


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest's text; its last line but one is the SHA-256 of all that stands before it."""
    raw = dump(replace(manifest, seal=""))
    if not manifest.shared:
        del raw["shared"]  # A bundle by itself is as readable by earlier versions as it was.
    sealed = to_json_text(raw).removesuffix('"\n}\n')
    return f'{sealed}{hashlib.sha256(sealed.encode()).hexdigest()}"\n}}\n'


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest: its seal, its version, and that its parts fit one another.

    A bundle of the first version has no seal; everything else of it is checked alike.

    Raises:
        ArtifactError: it is missing, damaged, of a newer version, or inconsistent.
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
    if is_newer(found, Manifest.SCHEMA):
        raise ArtifactError(
            f"{folder} was written by a newer tpsprune: "
            f"it is {found}, this one reads {Manifest.SCHEMA}; upgrade"
        )
    try:
        manifest = load(Manifest, raw)
    except ValueError as error:
        raise ArtifactError(f"{path} is not a manifest this tpsprune can read: {error}; {REMEDY}") from error
    if manifest.schema == Manifest.SCHEMA:
        _check_seal(path, content)
    return manifest


def stamp_of(path: Path) -> Stamp:
    """Return size and hash of a file, read piece by piece."""
    with open_regular(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Stamp(sha256, file.tell())


def verify(folder: Path, name: str, stamp: Stamp) -> None:
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
    if found.sha256 != stamp.sha256:
        raise changed(path)


def read_verified(folder: Path, name: str, stamp: Stamp) -> bytes:
    """Read one small file of a bundle, and return its bytes once they are found to be those written.

    Raises:
        ArtifactError: as ``verify``.
    """
    path = inside(folder, name)
    _check_size(path, stamp)
    content = _read(path, stamp.bytes)
    if hashlib.sha256(content).hexdigest() != stamp.sha256:
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
    """Return the message for a file whose bytes are not those written."""
    return ArtifactError(f"{path} is not as it was written (its SHA-256 differs); {REMEDY}")


def _check_size(path: Path, stamp: Stamp) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; {REMEDY}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    if found != stamp.bytes:
        raise ArtifactError(f"{path} is {found} bytes long where {stamp.bytes} were written; {REMEDY}")


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
