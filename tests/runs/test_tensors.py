"""Tensors come back bit for bit, and a file that does not fit is refused before it is read."""

from __future__ import annotations

import hashlib
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.runs.tensor_header import DTYPES as DTYPE_WORDS
from tpsprune.runs.tensors import (
    file_bytes,
    load_hashed,
    load_tensors,
    save_tensors,
    serialise,
    shapes_of,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
ALL_DTYPES = list(DTYPE_WORDS.values())
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@SAME_FOLDER
@given(
    headers=st.dictionaries(st.text(min_size=1), st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=4),
    metadata=st.dictionaries(st.text(), st.text(), max_size=3),
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


def test_the_same_tensors_give_the_same_bytes_whatever_the_order_of_metadata() -> None:
    tensors = {"weight": torch.ones(2, 3)}
    entries = {f"key-{index}": "value" for index in range(8)}
    backwards = dict(reversed(entries.items()))
    assert len({serialise(tensors, metadata) for metadata in [entries, backwards] * 5}) == 1


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


def test_a_number_type_without_a_word_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="safetensors has no word for complex128"):
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


def test_a_foreign_file_is_refused_without_allocating_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ticket.safetensors"
    save_tensors(path, {"a": torch.zeros(2, 3)}, {})
    allocated: list[Any] = []
    empty = torch.empty

    def watched(*shape: Any, **kinds: Any) -> torch.Tensor:
        allocated.append(shape)
        return empty(*shape, **kinds)

    monkeypatch.setattr(torch, "empty", watched)
    with pytest.raises(ArtifactError, match="b is missing"):
        load_tensors(path, {"b": ((2, 3), torch.float32)})
    assert not allocated
    load_tensors(path)
    assert allocated


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
