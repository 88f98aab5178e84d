"""The header of a safetensors file is held against everything that it can lie about."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpsprune.errors import ArtifactError
from tpsprune.runs.tensor_header import parse_header
from tpsprune.runs.tensors import load_tensors, serialise

HERE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def parsed(header: Any, data_bytes: int = 24) -> Any:
    return parse_header(json.dumps(header).encode(), data_bytes)


def test_a_good_header_is_read() -> None:
    places, metadata = parsed({"__metadata__": {"a": "b"}, "w": entry()})
    assert places["w"].shape == (2, 3)
    assert places["w"].dtype == torch.float32
    assert metadata == {"a": "b"}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"w": entry("F33")}, "'w' is of the unknown number type 'F33'"),
        ({"w": entry(["F32"])}, "unknown number type"),
        ({"w": entry(shape=[-2, -3])}, r"has the shape \[-2, -3\]"),
        ({"w": entry(shape=[2.0, 3])}, "has the shape"),
        ({"w": entry(shape=[True, 6])}, "has the shape"),
        ({"w": entry(shape="23")}, "has the shape"),
        ({"w": entry(shape=[2**63, 3])}, "has the shape"),
        ({"w": entry(shape=[1] * 65)}, "has the shape"),
        ({"w": entry(shape=[2**62, 2**62, 4])}, "'w' takes 24 bytes, where"),
        ({"w": entry(shape=[2, 4])}, r"takes 24 bytes, where \[2, 4\] F32 takes 32"),
        ({"w": entry(offsets=[0, -24])}, "has the offsets"),
        ({"w": entry(offsets=[24, 0])}, "has the offsets"),
        ({"w": entry(offsets=[0, 24, 48])}, "has the offsets"),
        ({"w": entry(offsets=[4, 28])}, "begins at byte 4, where byte 0 comes next"),
        ({"w": entry(), "v": entry()}, "begins at byte 0, where byte 24 comes next"),
        ({"w": entry(), "v": entry(offsets=[24, 48])}, "its tensors take 48 bytes, and 24 are there"),
        ({"w": entry(shape=[1, 3], offsets=[0, 12])}, "its tensors take 12 bytes, and 24 are there"),
        ({"w": entry(more=1)}, "needs dtype, shape and data_offsets, and nothing else"),
        ({"w": {"dtype": "F32"}}, "needs dtype, shape and data_offsets"),
        ({"w": 3}, "needs dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}, "w": entry()}, "its metadata are not texts by name"),
        ({"__metadata__": [], "w": entry()}, "its metadata are not texts by name"),
        ([entry()], "does not begin with"),
    ],
)
def test_a_header_that_lies_is_refused_with_the_tensors_name(header: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(header)


def test_a_name_twice_is_refused() -> None:
    text = f'{{"w": {json.dumps(entry())}, "w": {json.dumps(entry())}}}'
    with pytest.raises(ValueError, match="the name 'w' is there twice"):
        parse_header(text.encode(), 24)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 17, 9])
def test_a_header_longer_than_its_file_costs_nothing(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}      ")
    with pytest.raises(ArtifactError, match=f"its header would be {length} bytes long, in a file of 16"):
        load_tensors(path)


def test_a_tensor_for_which_there_is_no_room_is_told_in_words(tmp_path: Path) -> None:
    # No bytes are needed for nothing, whatever the other axes are: torch cannot count them.
    header = json.dumps({"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ArtifactError, match="there is no room for 'w'"):
        load_tensors(path)


@HERE
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
