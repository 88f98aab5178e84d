"""Tensors come back bit for bit, and a file that does not fit is refused before it is read."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.runs.tensors import (
    DTYPES as DTYPE_WORDS,
)
from tpsprune.runs.tensors import (
    file_bytes,
    load_hashed,
    load_tensors,
    match_state,
    read_state,
    save_tensors,
    serialise,
    sha256_of,
    shapes_of,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
ALL_DTYPES = list(DTYPE_WORDS.values())
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@SAME_FOLDER
@given(
    headers=st.dictionaries(st.text(min_size=1), st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=4),
    metadata=st.dictionaries(st.text(), st.text(), max_size=1),
)
def test_tensors_come_back_bit_for_bit(
    tmp_path: Path,
    headers: dict[str, tuple[tuple[int, ...], torch.dtype]],
    metadata: dict[str, str],
) -> None:
    headers.pop("__metadata__", None)
    tensors = {name: (5 * torch.randn(shape)).to(dtype) for name, (shape, dtype) in headers.items()}
    path = tmp_path / "some.safetensors"
    save_tensors(path, tensors, metadata)
    loaded, found_metadata = load_tensors(path, shapes_of(tensors))
    assert found_metadata == metadata
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_the_same_tensors_give_the_same_bytes_and_may_be_read_by_all(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(2, 3), "bias": torch.ones(2).double()}
    assert len({serialise(each, {"a": "b"}) for each in (tensors, dict(reversed(tensors.items())))}) == 1
    save_tensors(tmp_path / "some.safetensors", tensors, {})
    (tmp_path / "other").touch()
    assert (tmp_path / "some.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@SAME_FOLDER
@given(
    headers=st.dictionaries(st.text(min_size=1), st.tuples(SHAPES, st.sampled_from(ALL_DTYPES)), max_size=5),
    metadata=st.dictionaries(st.text(), st.text(), max_size=1),
)
def test_the_bytes_are_those_the_library_writes(
    tmp_path: Path,
    headers: dict[str, tuple[tuple[int, ...], torch.dtype]],
    metadata: dict[str, str],
) -> None:
    headers.pop("__metadata__", None)
    tensors = {name: (5 * torch.rand(shape)).to(dtype) for name, (shape, dtype) in headers.items()}
    expected = safetensors.torch.save(tensors, metadata or None)
    assert serialise(tensors, metadata) == expected
    save_tensors(tmp_path / "some.safetensors", tensors, metadata)
    assert (tmp_path / "some.safetensors").read_bytes() == expected
    assert metadata or file_bytes(tensors) == len(expected)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {"weight": torch.randn(2, 3), "steps": torch.tensor(7), "none": torch.zeros(0, 4)}
    safetensors.torch.save_file(tensors, tmp_path / "some.safetensors", {"one": "1", "two": "2"})
    found, metadata = load_tensors(tmp_path / "some.safetensors", shapes_of(tensors))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert metadata == {"one": "1", "two": "2"}


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"weight": torch.randn(20, 3), "bias": torch.randn(20)}, {"a": "b"})
    assert load_hashed(path)[2] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_becomes_of_the_file_does_not_touch_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"weight": torch.ones(100)}, {})
    found, _ = load_tensors(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(found["weight"], torch.ones(100))


def test_a_number_type_that_the_format_lacks_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="safetensors has no name for complex128"):
        save_tensors(tmp_path / "c.safetensors", {"a": torch.zeros(1, dtype=torch.complex128)}, {})
    assert list(tmp_path.iterdir()) == []


def test_writing_takes_no_second_copy(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(4_000_000), "b": torch.zeros(4_000_000)}
    tracemalloc.start()
    save_tensors(tmp_path / "large.safetensors", tensors, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_tied_and_strided_tensors_are_written_in_full(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"one": weight, "two": weight, "row": weight[1], "turned": weight.T}
    save_tensors(tmp_path / "tied.safetensors", tensors, {})
    loaded, _ = load_tensors(tmp_path / "tied.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_file_that_does_not_fit_names_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    save_tensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(4), "extra": torch.zeros(1)}, {})
    expected = {"a": ((2, 4), torch.float32), "b": ((4,), torch.float16), "gone": ((1,), torch.float32)}
    with pytest.raises(ArtifactError) as caught:
        load_tensors(path, expected)
    assert str(caught.value).removeprefix(f"{path} does not fit: ").split("; ") == [
        "gone is missing",
        "extra is not known",
        "a is [2, 3] float32 where [2, 4] float32 is needed",
        "b is [4] float32 where [4] float16 is needed",
    ]


def test_a_foreign_file_is_refused_without_reading_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ticket.safetensors"
    save_tensors(path, {"a": torch.zeros(2, 3)}, {})
    monkeypatch.setattr("tpsprune.runs.tensors._read_all", None)
    with pytest.raises(ArtifactError, match="b is missing"):
        load_tensors(path, {"b": ((2, 3), torch.float32)})
    with pytest.raises(TypeError):
        load_tensors(path)


@pytest.mark.parametrize("other", ["shape", "name", "more", "less", "longer", "cut", "overlap"])
def test_a_file_that_is_changed_after_its_header_was_checked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    path = tmp_path / "ticket.safetensors"
    held = {"a": torch.zeros(2, 3), "b": torch.ones(5)}
    save_tensors(path, held, {})
    checked = ({name: (tuple(each.shape), each.dtype) for name, each in held.items()}, {})
    monkeypatch.setattr("tpsprune.runs.tensors._header", lambda _: checked)
    load_tensors(path)
    changed = {
        "shape": {**held, "a": torch.zeros(3, 2)},
        "name": {"a": held["a"], "c": held["b"]},
        "more": {**held, "c": torch.zeros(1)},
        "less": {"a": held["a"]},
    }
    content = serialise(changed.get(other, held), {})
    path.write_bytes(content + b" " if other == "longer" else content[: -4 if other == "cut" else None])
    if other == "overlap":
        header = {"a": entry(), "b": entry(shape=[5], offsets=[4, 24])}
        written(path, json.dumps(header).encode(), bytes(44))
    with pytest.raises(ArtifactError, match="it was changed while it was read"):
        load_tensors(path)


def test_tensors_are_read_onto_the_processor_whatever_the_default_device(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {})
    with torch.device("meta"):
        found, _ = load_tensors(path)
    assert found["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"a":3}', b'{"a":{"dtype":"F32"}}', None])
def test_a_header_that_is_changed_after_it_was_checked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes | None
) -> None:
    monkeypatch.setattr("tpsprune.runs.tensors._header", lambda _: ({"a": ((2, 3), torch.float32)}, {}))
    path = tmp_path / "a.safetensors"
    if header is None:
        path.write_bytes(b"abc")
    else:
        written(path, header)
    with pytest.raises(ArtifactError, match="damaged or not a safetensors file"):
        load_tensors(path)


def test_reading_a_file_takes_its_size_of_memory_once(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_tensors(path, {str(each): torch.ones(2**20) for each in range(8)}, {})
    tracemalloc.start()
    load_tensors(path)
    _, most = tracemalloc.get_traced_memory()  # Of Python's objects alone: tensors are not among them.
    tracemalloc.stop()
    assert most < 2**20


def test_a_full_device_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(RunFolderError, match=r"no space left on the device while writing .*; free some"):
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {})
    assert not list(tmp_path.iterdir())


def test_a_pipe_in_the_files_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ticket.safetensors")
    with pytest.raises(ArtifactError, match="it is no regular file"):
        load_tensors(tmp_path / "ticket.safetensors")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    content = serialise({"a": torch.zeros(2, 3), "b": torch.ones(5)}, {"schema": "some/1"})
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match="damaged or not a safetensors file"):
            load_tensors(path)


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load_tensors(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load_tensors(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.safetensors is not there"):
        load_tensors(tmp_path / "none.safetensors")
    with pytest.raises(ArtifactError, match="cannot read"):
        load_tensors(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="a part of it is a file"):
        save_tensors(tmp_path / "file" / "ticket.safetensors", {"a": torch.zeros(1)}, {})


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


LYING = [
    {"w": entry("F33")},
    {"w": entry("F8_E8M0", shape=[24])},
    {"w": entry(["F32"])},
    {"w": entry(shape=[-2, -3])},
    {"w": entry(shape=[2.0, 3])},
    {"w": entry(shape=[True, 6])},
    {"w": entry(shape="23")},
    {"w": entry(shape=[2**63, 3])},
    {"w": entry(shape=[2**62, 2**62, 4])},
    {"w": entry(shape=[2, 4])},
    {"w": entry(offsets=[0, -24])},
    {"w": entry(offsets=[24, 0])},
    {"w": entry(offsets=[0, 24, 48])},
    {"w": entry(offsets=[4, 28])},
    {"w": entry(), "v": entry()},
    {"w": entry(), "v": entry(offsets=[24, 48])},
    {"w": entry(shape=[1, 3], offsets=[0, 12])},
    {"w": {"dtype": "F32"}},
    {"w": 3},
    {"__metadata__": {"a": 1}, "w": entry()},
    {"__metadata__": [], "w": entry()},
    [entry()],
]


def written(path: Path, header: bytes, content: bytes = bytes(24)) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    return path


@pytest.mark.parametrize("header", LYING, ids=lambda header: json.dumps(header)[:60])
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    path = written(tmp_path / "a.safetensors", json.dumps(header).encode())
    with pytest.raises(ArtifactError, match="is damaged or not a safetensors file"):
        load_tensors(path)


def test_a_header_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", b'{"w":' + b"[" * 100_000)
    with pytest.raises(ArtifactError, match="is damaged or not a safetensors file"):
        load_tensors(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 17, 9])
def test_a_header_longer_than_its_file_costs_nothing(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}      ")
    with pytest.raises(ArtifactError, match="is damaged or not a safetensors file"):
        load_tensors(path)


def test_a_tensor_for_which_there_is_no_room_is_reported(tmp_path: Path) -> None:
    # No bytes are needed for nothing, whatever the other axes are: torch cannot count them.
    header = {"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}
    path = written(tmp_path / "a.safetensors", json.dumps(header).encode(), b"")
    with pytest.raises(ArtifactError, match="is damaged or not a safetensors file"):
        load_tensors(path)


@SAME_FOLDER
@given(data=st.data())
def test_a_changed_byte_is_another_tensor_or_an_artifact_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(serialise({"w": torch.randn(2, 3), "steps": torch.tensor(7)}, {"schema": "a/1"}))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    tensors: dict[str, torch.Tensor] = {}
    with suppress(ArtifactError):
        tensors, _ = load_tensors(path)
    assert all(isinstance(each, torch.Tensor) for each in tensors.values())


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"theirs.{rank}": tensor for rank, tensor in enumerate(state.values())}


class Tied(nn.Module):
    """A token model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_in_order_names_do_not_matter() -> None:
    theirs = {name: t for name, t in net().state_dict().items() if "tracked" not in name}
    filled = match_state(renamed(theirs), net().state_dict(), "F", "order")
    assert all(torch.equal(filled[name], tensor) for name, tensor in theirs.items())
    assert filled["1.num_batches_tracked"] == 0


def test_in_order_every_shape_is_compared() -> None:
    theirs = renamed({name: t for name, t in net().state_dict().items() if "tracked" not in name})
    theirs["theirs.0"] = torch.ones(5, 4)
    theirs["theirs.7"] = torch.ones(4)
    words = (
        r"^F does not fit in order: tensor 1 is theirs.0, \[5, 4\], in the file and 0.weight, \[6, 4\], in "
        r"the recipe's model \(and 1 more\)$"
    )
    with pytest.raises(ArtifactError, match=words):
        match_state(theirs, net().state_dict(), "F", "order")


def test_in_order_as_many_tensors_are_needed() -> None:
    theirs = renamed({name: t for name, t in net().state_dict().items() if "tracked" not in name})
    del theirs["theirs.7"]
    with pytest.raises(ArtifactError, match=r"in order: the file holds 7 tensors, the recipe's model 8$"):
        match_state(theirs, net().state_dict(), "F", "order")


def test_safetensors_keeps_no_order(tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", net().state_dict(), {})
    with pytest.raises(ArtifactError, match=r"^here .*w.safetensors is read as safetensors, .* torch.save"):
        read_state(tmp_path / "w.safetensors", "here", "order")


def test_a_tensor_that_the_model_ties_to_another_need_not_be_in_the_file() -> None:
    model, table = Tied(), torch.arange(28.0).reshape(7, 4)
    state = match_state({"embedding.weight": table}, model.state_dict(), "F")
    model.load_state_dict(state)
    assert torch.equal(model.head.weight, table)
    assert model.head.weight is model.embedding.weight
    model.head.weight = nn.Parameter(torch.ones(7, 4))
    with pytest.raises(ArtifactError, match=r"F does not fit: head.weight is missing$"):
        match_state({"embedding.weight": table}, model.state_dict(), "F")


def test_messages_begin_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^task.model.weights: .*none.pt is not there$"):
        read_state(tmp_path / "none.pt", "task.model.weights:")
    with pytest.raises(ArtifactError, match=r"^task.model.weights: .* is a folder$"):
        read_state(tmp_path, "task.model.weights:")


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    assert sha256_of(tmp_path / "w") == hashlib.sha256(b"weights").hexdigest()


def repacked(path: Path, compression: int, pickled: bytes | None = None) -> None:
    """Write what torch saved once more, packed or with another pickle."""
    with zipfile.ZipFile(path) as archive:
        records = {each.filename: archive.read(each) for each in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, pickled if pickled and name.endswith("data.pkl") else content)


class Growing:
    def __reduce__(self) -> Any:
        return bytearray, (2 * 10**9,)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("packed", "in it is packed, which torch.save never does"),
        ("growing", "it calls bytearray, which no state dict needs"),
        ("sparse", "it calls _sparse_, which no state dict needs"),
        ("meta", "holds dict, where a state dict is needed"),
        ("overlapping", "it claims to hold more bytes than it has"),
    ],
)
def test_a_small_file_that_takes_much_memory_is_refused(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "w.pt"
    tensor = torch.zeros(10**6)
    torch.save({"w": tensor.to_sparse() if name == "sparse" else tensor}, path)
    if name == "packed":
        repacked(path, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 10**5
    elif name == "growing":
        repacked(path, zipfile.ZIP_STORED, pickle.dumps({"w": Growing()}, protocol=2))
    elif name == "meta":
        torch.save({"w": torch.zeros(3, device="meta")}, path)
    elif name == "overlapping":
        with zipfile.ZipFile(path, "a") as archive:
            (held,) = [each for each in archive.filelist if each.filename.endswith("data/0")]
            for number in range(1, 4):
                twin = copy.copy(held)
                twin.filename = f"{held.filename[:-1]}{number}"
                archive.filelist.append(twin)
            archive.writestr("more", "")
    with pytest.raises(ArtifactError, match=words):
        read_state(path, "--weights")


def test_a_pipe_of_weights_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="is no regular file"):
        read_state(tmp_path / "w.safetensors", "--weights")


def test_a_header_of_tensors_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write((2**24 + 1).to_bytes(8, "little"))
        file.truncate(2**25)
    with pytest.raises(ArtifactError, match="its header is longer than 16,777,216 bytes"):
        read_state(path, "--weights")
