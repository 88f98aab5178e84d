"""Tensors that several bundles of a family hold alike, stored once beside them.

``shared.safetensors`` in the family's folder is written once and never changed; a bundle whose tensors are
there has the others alone, in ``own.safetensors``, and the hash of both files in its manifest.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tpsprune.export.bundle import OWN, SAFETENSORS, SHARED, TENSORS, read_bundle, write_manifest
from tpsprune.export.manifest import read_manifest, stamp_of
from tpsprune.runs.tensors import load_tensors, save_tensors

LEAST_BYTES: Final = 4096
"""Smaller tensors (counters, biases) are not worth an entry."""


def share_tensors(family: Path, folders: Sequence[Path]) -> None:
    """Store once what bundles of a family hold alike, to the bit; each stays a bundle throughout.

    Raises:
        ArtifactError: a bundle is not as it was written.
        RunFolderError: something cannot be written; what is there stays readable.

    Cost: a pass over all tensors, two bundles of them in memory; where nothing is alike nothing is written.
    """
    fresh = []
    for each in folders:
        if read_manifest(each).shared:
            (each / TENSORS).unlink(missing_ok=True)  # A kill may have left it.
        else:
            fresh.append(each)
    digests = {folder: _digests(read_bundle(folder).tensors) for folder in fresh}
    file = family / SHARED
    if not file.exists():
        common = Counter((name, digest) for own in digests.values() for name, digest in own.items())
        wanted = {name: digest for (name, digest), count in common.most_common() if count > 1}
        if not wanted:
            return
        tensors: dict[str, Tensor] = {}
        for folder, own in digests.items():
            names = [name for name in wanted if name not in tensors and own.get(name) == wanted[name]]
            if names:
                held = read_bundle(folder).tensors
                tensors |= {name: held[name] for name in names}
        save_tensors(file, tensors, {})
    shared = _digests(load_tensors(file)[0])
    for folder, own in digests.items():
        if names := [name for name, digest in own.items() if shared.get(name) == digest]:
            _take_out(folder, names)


def _take_out(folder: Path, names: Sequence[str]) -> None:
    """Write the tensors of a bundle that are not among the shared ones; from the manifest on those count."""
    manifest, held = read_manifest(folder), read_bundle(folder).tensors
    save_tensors(folder / OWN, {name: held[name] for name in held if name not in names}, {})
    stamps = {**manifest.files, OWN: stamp_of(folder / OWN), SHARED: stamp_of(folder.parent / SHARED)}
    del stamps[TENSORS]
    formats = {**manifest.formats, SAFETENSORS: (OWN, SHARED)}
    write_manifest(folder, replace(manifest, formats=formats, files=stamps, shared=tuple(sorted(names))))
    (folder / TENSORS).unlink(missing_ok=True)


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a hash of shape, number type and bytes of each tensor that is worth it."""
    return {
        name: hashlib.sha256(
            f"{tuple(each.shape)} {each.dtype}".encode()
            + each.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, each in tensors.items()
        if each.numel() * each.element_size() >= LEAST_BYTES
    }
