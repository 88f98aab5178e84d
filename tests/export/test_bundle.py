"""A bundle comes back as it was written, or is refused with one message."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.bundles import (
    FACTS,
    NAMES,
    PLAN,
    RECIPE,
    VERSIONS,
    change_manifest,
    tensors,
    write,
    write_first_version,
)
from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.export import new_folder, read_bundle
from tpsprune.records import dump
from tpsprune.runs import files


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path) -> None:
    bundle = read_bundle(write(tmp_path / "out" / "ticket"))
    assert bundle.plan == PLAN
    assert bundle.recipe_text == RECIPE
    assert bundle.facts == FACTS
    assert bundle.versions == VERSIONS
    assert bundle.tensors.keys() == tensors().keys()
    assert all(torch.equal(bundle.tensors[name], tensor) for name, tensor in tensors().items())


def test_a_bundle_of_the_first_version_is_read(tmp_path: Path) -> None:
    folder = write_first_version(
        tmp_path / "old", held=tensors(), plan=PLAN, recipe=RECIPE, facts=dump(FACTS)
    )
    bundle = read_bundle(folder)
    assert bundle.plan == PLAN
    assert all(torch.equal(bundle.tensors[name], tensor) for name, tensor in tensors().items())
    (folder / "plan.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"plan\.json is 2 bytes long"):
        read_bundle(folder)


def test_the_same_content_gives_the_same_files(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert sorted(path.name for path in one.iterdir()) == NAMES
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in NAMES)


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
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(RunFolderError, match="no space left"):
        write(tmp_path / "ticket")
    assert list(tmp_path.iterdir()) == []


def test_whatever_ends_the_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken_off() -> None:
        with new_folder(tmp_path / "ticket") as beside:
            (beside / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="a part of it is a file"):
        write(tmp_path / "file" / "ticket")


def test_a_name_too_long_for_any_file_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"^cannot write .*aaa: File name too long"):
        write(tmp_path / ("a" * 300))


def test_the_folder_that_the_command_runs_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for here in (Path(), tmp_path, Path("x") / ".."):
        with pytest.raises(ArtifactError, match="is the current folder, which cannot be replaced"):
            write(here)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_there", [True, False])
def test_through_a_link_the_folder_that_it_leads_to_is_written(tmp_path: Path, *, is_there: bool) -> None:
    if is_there:
        (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    write(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link"]
    read_bundle(tmp_path / "folder")


def test_what_a_killed_process_of_the_same_number_left_is_no_obstacle(tmp_path: Path) -> None:
    left = tmp_path / f".ticket.tmp-{os.getpid()}"
    left.mkdir()
    (left / "ticket.onnx").write_text("half")
    folder = write(tmp_path / "ticket")
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "ticket")
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing; export it again"):
        read_bundle(folder)


@pytest.mark.parametrize("name", NAMES)
def test_one_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "ticket")
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is (not as it was written|damaged)"):
        read_bundle(folder)


def test_the_files_of_other_formats_are_held_against_their_hashes_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket", more={"onnx": {"ticket.onnx": b"a graph"}})
    read_bundle(folder)
    (folder / "ticket.onnx").write_bytes(b"a grape")
    with pytest.raises(ArtifactError, match=r"ticket\.onnx is not as it was written"):
        read_bundle(folder)


def test_a_file_that_is_not_of_the_bundle_is_let_be(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    (folder / "LICENSE").write_text("somebody's")
    read_bundle(folder)


def test_a_file_cut_short_is_told_with_its_sizes(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    content = (folder / "ticket.safetensors").read_bytes()
    (folder / "ticket.safetensors").write_bytes(content[:-7])
    with pytest.raises(ArtifactError, match=f"{len(content) - 7} bytes long where {len(content)} were"):
        read_bundle(folder)


def test_a_newer_bundle_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    change_manifest(folder, schema="tpsprune.bundle/3")
    with pytest.raises(ArtifactError, match=r"newer tpsprune: it is tpsprune\.bundle/3"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"schema": "other/1"},
            r"schema must be 'tpsprune\.bundle/1' or 'tpsprune\.bundle/2' \(found 'other/1'\)",
        ),
        ({"files": {}}, "files.plan.json is missing"),
        ({"facts": {"input_kind": "sound"}}, "facts"),
        (
            {"tensors": {"a": {"shape": [1], "dtype": "Tensor"}}},
            "a.dtype must be .*found 'Tensor'",
        ),
        (
            {"tensors": {"a": {"shape": [-1], "dtype": "int8"}}},
            "a.shape.0 must be greater than or",
        ),
        ({"formats": {}}, "formats"),
        (
            {"formats": {"safetensors": ["ticket.pt2"]}},
            "ticket.pt2 of format safetensors is not among its files",
        ),
        ({"formats": {"pickle": ["plan.json"]}}, "formats.*pickle"),
        ({"formats": ...}, "formats is missing"),
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
