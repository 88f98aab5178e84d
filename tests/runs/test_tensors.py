"""Tensors come back bit for bit, and a file that does not fit is refused before it is read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.runs import tensors as tensors_room
from tpsprune.runs.tensors import load_tensors, save_tensors, serialise, shapes_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
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


def test_the_bytes_are_those_the_library_writes() -> None:
    tensors = {"weight": torch.randn(2, 3), "steps": torch.tensor(7)}
    assert serialise(tensors, {}) == safetensors.torch.save(tensors)
    with_metadata = safetensors.torch.save(tensors, {"schema": "some/1"})
    assert serialise(tensors, {"schema": "some/1"}) == with_metadata


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
    read: list[str] = []

    class Watched:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.file = safe_open(*args, **kwargs)

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *args: object) -> None:
            del self.file

        def __getattr__(self, name: str) -> Any:
            read.append(name)
            return getattr(self.file, name)

    monkeypatch.setattr(tensors_room, "safe_open", Watched)
    with pytest.raises(ArtifactError, match="b is missing"):
        load_tensors(path, {"b": ((2, 3), torch.float32)})
    assert "get_tensor" not in read
    load_tensors(path)
    assert "get_tensor" in read


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
