"""Small bundles to read, and to break."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.export import new_folder, seal, stamps_in, write_card, write_description, write_ticket
from tpsprune.records import TaskFacts
from tpsprune.runs import to_json_text

FACTS: Final = TaskFacts(input_kind="image", input_shape=(1, 28, 28), classes=10)
PLAN: Final = {"schema": "tpsprune.plan/2", "groups": [{"name": "conv1", "kept": [0, 2, 5]}]}
RECIPE: Final = '[task]\nname = "mnist"  # ψ\n'
VERSIONS: Final = {"torch": "2.13"}
NAMES: Final = ["README.md", "manifest.json", "plan.json", "recipe.toml", "ticket.safetensors"]


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).state_dict()


def write(
    folder: Path,
    *,
    held: Mapping[str, Tensor] | None = None,
    plan: Mapping[str, Any] = PLAN,
    more: Mapping[str, Mapping[str, bytes]] | None = None,
) -> Path:
    """Write a bundle of safetensors and, by format, of ``more`` files."""
    held = tensors() if held is None else held
    with new_folder(folder) as beside:
        write_description(beside, plan, RECIPE)
        formats = {"safetensors": write_ticket(beside, held)}
        for name, files in (more or {}).items():
            for file, content in files.items():
                (beside / file).write_bytes(content)
            formats[name] = tuple(files)
        write_card(beside, "# A ticket\n")
        seal(beside, formats=formats, stamps=stamps_in(beside), tensors=held, facts=FACTS, versions=VERSIONS)
    return folder


def write_first_version(
    folder: Path, *, held: Mapping[str, Tensor], plan: Any, recipe: str, facts: Any
) -> Path:
    """Write a bundle as the first version of the schema had it: no card, no seal."""
    folder.mkdir()
    write_ticket(folder, held)
    (folder / "plan.json").write_text(to_json_text(plan))
    (folder / "recipe.toml").write_text(recipe)
    manifest = {
        "schema": "tpsprune.bundle/1",
        "facts": facts,
        "versions": VERSIONS,
        "files": {
            path.name: {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
            }
            for path in folder.iterdir()
        },
        "tensors": {
            name: {"shape": list(each.shape), "dtype": str(each.dtype).removeprefix("torch.")}
            for name, each in held.items()
        },
    }
    (folder / "manifest.json").write_text(to_json_text(manifest))
    return folder


def change_manifest(folder: Path, **changes: Any) -> None:
    """Change fields of a manifest and seal it anew, as somebody would who means harm."""
    path = folder / "manifest.json"
    raw = {
        name: value for name, value in {**json.loads(path.read_text()), **changes}.items() if value is not ...
    }
    raw.pop("seal", None)
    body = to_json_text(raw).removesuffix("\n}\n") + ',\n  "seal": "'
    path.write_text(f'{body}{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n')


def restamp(folder: Path, name: str, content: bytes) -> None:
    """Put another content in a file's place, with the hash and size that go with it."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    change_manifest(folder, files=files)
