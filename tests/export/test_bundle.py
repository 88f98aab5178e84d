"""A bundle is written as a whole, proves itself whole, and is read without trust."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.export.bundles import (
    FACTS,
    NAMES,
    PLAN,
    RECIPE,
    VERSIONS,
    change_manifest,
    restamp,
    tensors,
    write,
    write_first_version,
)
from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.export import new_folder, read_bundle
from tpsprune.records import dump
from tpsprune.runs import files
from tpsprune.runs.tensors import serialise


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


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="a part of it is a file"):
        write(tmp_path / "file" / "ticket")


def test_a_name_too_long_for_any_file_is_reported(tmp_path: Path) -> None:
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


def test_what_a_killed_export_left_is_swept_by_the_next_one_into_the_place(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-tpsprune-0" / "another"
    left.mkdir(parents=True)
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


def test_a_file_cut_short_is_reported_with_its_sizes(tmp_path: Path) -> None:
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


HERE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
MORE = {"onnx": {"ticket.onnx": bytes(range(256))}, "torch-export": {"ticket.pt2": b"PK" + bytes(100)}}
ALL = [*NAMES, "ticket.onnx", "ticket.pt2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "ticket", more=MORE)


@HERE
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_an_artifact_error(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(ALL))
    content = bytearray((whole / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    folder = Path(shutil.copytree(whole, tmp_path / "broken", dirs_exist_ok=True))
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="." if name == "manifest.json" else name.replace(".", r"\.")):
        read_bundle(folder)


@HERE
@given(data=st.data())
def test_bytes_put_in_or_taken_out_are_an_artifact_error(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(ALL))
    content = (whole / name).read_bytes()
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, len(content)))
    changed = content[:begin] + data.draw(st.binary(max_size=8)) + content[end:]
    folder = Path(shutil.copytree(whole, tmp_path / "broken", dirs_exist_ok=True))
    (folder / name).write_bytes(changed)
    if changed == content:
        read_bundle(folder)
    else:
        with pytest.raises(ArtifactError):
            read_bundle(folder)


@pytest.mark.parametrize(
    "name", ["../plan.json", "/etc/passwd", "a/b", "..", "", "plan.json\n", "a\0b", "LICENSE"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "ticket")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change_manifest(folder, files={**files, name: files["plan.json"]})
    with pytest.raises(ArtifactError, match="is not a manifest this tpsprune can read: files"):
        read_bundle(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "ticket")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=f"{name} is a link out of its folder"):
        read_bundle(folder)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    (folder / "plan.json").rename(folder / "the-plan")
    (folder / "plan.json").symlink_to("the-plan")
    read_bundle(folder)


def test_links_that_turn_in_a_circle_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    for name in ("plan.json", "other"):
        (folder / name).unlink(missing_ok=True)
    (folder / "plan.json").symlink_to("other")
    (folder / "other").symlink_to("plan.json")
    with pytest.raises(ArtifactError, match="plan"):
        read_bundle(folder)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "manifest.json"])
def test_a_pipe_or_a_folder_in_a_files_place_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "ticket")
    size = (folder / name).stat().st_size
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match=name):
        read_bundle(folder)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change_manifest(folder, files={**files, name: {**files[name], "bytes": 0}})
    with pytest.raises(ArtifactError, match=f"cannot read .*{name}: it is no regular file"):
        read_bundle(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ArtifactError, match=name):
        read_bundle(folder)
    assert size > 0


def test_a_pickle_under_a_good_hash_is_not_opened(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    folder = write(tmp_path / "ticket")
    for name in ("ticket.safetensors", "plan.json"):
        before = (folder / name).read_bytes()
        restamp(folder, name, pickle.dumps(Harm()))
        with pytest.raises(ArtifactError, match=f"{name} is damaged"):
            read_bundle(folder)
        restamp(folder, name, before)
    read_bundle(folder)
    assert not (tmp_path / "harm").exists()


def test_tensors_that_are_others_than_the_manifest_has_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    held = tensors()
    first = next(iter(held))
    restamp(folder, "ticket.safetensors", serialise({**held, first: held[first].double()}, {}))
    with pytest.raises(ArtifactError, match=f"{first} is .* float64 where .* float32 is needed"):
        read_bundle(folder)
    restamp(folder, "ticket.safetensors", serialise({**held, "more": torch.zeros(1)}, {}))
    with pytest.raises(ArtifactError, match="more is not known"):
        read_bundle(folder)


def test_a_seal_of_another_manifest_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"torch": "2.13"', '"torch": "2.14"'))
    with pytest.raises(
        ArtifactError, match=r"manifest\.json is not as it was written \(its seal is broken\)"
    ):
        read_bundle(folder)


def test_a_manifest_beyond_all_bounds_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "ticket")
    monkeypatch.setattr("tpsprune.export.manifest.MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ArtifactError, match=r"manifest\.json is longer than 100 bytes"):
        read_bundle(folder)


def test_a_seal_cannot_be_left_out_by_calling_the_bundle_old(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket")
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    del raw["seal"]
    path.write_text(json.dumps({**raw, "schema": "tpsprune.bundle/1"}))
    with pytest.raises(ArtifactError, match="is not a manifest this tpsprune can read"):
        read_bundle(folder)


def test_a_bundle_without_safetensors_reports_what_it_holds(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket", more=MORE)
    change_manifest(folder, formats={"onnx": ["ticket.onnx"]})
    with pytest.raises(ArtifactError, match=r"holds the ticket as onnx only.*--format safetensors"):
        read_bundle(folder)
