"""A bundle comes back as it was written, or is refused with one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.export import bundle as bundle_room
from tpsprune.export import bundle_schema, read_bundle, write_bundle
from tpsprune.records import TaskFacts
from tpsprune.runs import files

FACTS = TaskFacts(input_kind="image", input_shape=(1, 28, 28), classes=10)
PLAN = {"schema": "tpsprune.plan/2", "groups": [{"name": "conv1", "kept": [0, 2, 5]}]}
RECIPE = '[task]\nname = "mnist"  # ψ\n'
VERSIONS = {"torch": "2.13"}


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).state_dict()


def write(folder: Path, **changes: Any) -> Path:
    content = {
        "tensors": tensors(),
        "plan": PLAN,
        "recipe_text": RECIPE,
        "facts": FACTS,
        "versions": VERSIONS,
    }
    write_bundle(folder, **{**content, **changes})
    return folder


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(bundle_schema())


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path) -> None:
    bundle = read_bundle(write(tmp_path / "out" / "ticket"))
    assert bundle.plan == PLAN
    assert bundle.recipe_text == RECIPE
    assert bundle.facts == FACTS
    assert bundle.versions == VERSIONS
    assert bundle.tensors.keys() == tensors().keys()
    assert all(torch.equal(bundle.tensors[name], tensor) for name, tensor in tensors().items())


def test_the_same_content_gives_the_same_files(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    names = ["manifest.json", "plan.json", "recipe.toml", "ticket.safetensors"]
    assert sorted(path.name for path in one.iterdir()) == names
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = write(tmp_path / "empty")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArtifactError, match="is there already and not empty"):
        write(folder, plan={})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is there already and not empty"):
        write(tmp_path / "file")


def test_nothing_half_written_is_left_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole = files.write_bytes_atomically

    def fail_at_the_last(path: Path, content: bytes) -> None:
        if path.name == "manifest.json":
            raise RunFolderError("no space left")
        write_whole(path, content)

    monkeypatch.setattr(bundle_room, "write_bytes_atomically", fail_at_the_last)
    with pytest.raises(RunFolderError, match="no space left"):
        write(tmp_path / "ticket")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="a part of it is a file"):
        write(tmp_path / "file" / "ticket")


@pytest.mark.parametrize("name", ["ticket.safetensors", "plan.json", "recipe.toml"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "ticket")
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing; export it again"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["ticket.safetensors", "plan.json", "recipe.toml"])
def test_one_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "ticket")
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is not as it was written"):
        read_bundle(folder)


def test_a_file_cut_short_is_told_with_its_sizes(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    content = (folder / "ticket.safetensors").read_bytes()
    (folder / "ticket.safetensors").write_bytes(content[:-7])
    with pytest.raises(ArtifactError, match=f"{len(content) - 7} bytes long where {len(content)} were"):
        read_bundle(folder)


def test_a_newer_bundle_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    change_manifest(folder, schema="tpsprune.bundle/2")
    with pytest.raises(ArtifactError, match=r"newer tpsprune: it is tpsprune\.bundle/2"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": "other/1"}, r"schema: 'tpsprune\.bundle/1' was expected"),
        ({"files": {}}, "files: 'ticket.safetensors' is a required property"),
        ({"facts": {"input_kind": "sound"}}, "facts"),
        ({"tensors": {"a": {"shape": [1], "dtype": "Tensor"}}}, r"tensors\.a\.dtype: 'Tensor' is not one of"),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = write(tmp_path / "ticket")
    change_manifest(folder, **changes)
    with pytest.raises(ArtifactError, match=words):
        read_bundle(folder)


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged: line 1"):
        read_bundle(folder)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a bundle: there is no manifest\.json"):
        read_bundle(tmp_path)
    with pytest.raises(ArtifactError, match="is not a bundle"):
        read_bundle(tmp_path / "nothing")


def test_shapes_are_held_against_the_manifest_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    listed = json.loads((folder / "manifest.json").read_text())["tensors"]
    change_manifest(folder, tensors={**listed, "0.weight": {"shape": [9, 9], "dtype": "float32"}})
    with pytest.raises(ArtifactError, match=r"0\.weight is \[3, 1, 3, 3\] float32 where \[9, 9\]"):
        read_bundle(folder)
