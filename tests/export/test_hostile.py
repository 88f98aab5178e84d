"""A bundle of somebody who means harm, or of a bad disk: one message, never a crash, never wrong tensors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.export.bundles import NAMES, change_manifest, restamp, tensors, write
from tpsprune.errors import ArtifactError
from tpsprune.export import read_bundle
from tpsprune.runs.tensors import serialise

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


def test_a_bundle_without_safetensors_says_what_it_holds(tmp_path: Path) -> None:
    folder = write(tmp_path / "ticket", more=MORE)
    change_manifest(folder, formats={"onnx": ["ticket.onnx"]})
    with pytest.raises(ArtifactError, match=r"holds the ticket as onnx only.*--format safetensors"):
        read_bundle(folder)
