"""The header of a safetensors file: which tensor lies where, checked before a byte of one is read.

The format: eight bytes, the header's length as a little-endian integer; the header, JSON padded with
spaces; the tensors' bytes, one after the other without a gap.

Source: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from tpsprune.runs.strict_json import strict_json

__all__ = ["DTYPES", "LENGTH_BYTES", "MAX_HEADER_BYTES", "Place", "header_of", "parse_header", "word_of"]

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
"""More is refused, as the library does: no model has that many names."""

MAX_AXES: Final = 64
"""More than torch computes with."""

DTYPES: Final[dict[str, torch.dtype]] = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's words for number types, in the order in which tensors follow one another in a file."""

_WORDS: Final = {dtype: word for word, dtype in DTYPES.items()}
_PLACE_OF: Final = {dtype: place for place, dtype in enumerate(DTYPES.values())}
_METADATA: Final = "__metadata__"


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of a file: its number type, shape, and bytes from ``begin`` to ``end`` behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def word_of(dtype: torch.dtype) -> str:
    """Return the format's word for a number type.

    Raises:
        ValueError: the format has none.
    """
    if dtype not in _WORDS:
        raise ValueError(f"safetensors has no word for {str(dtype).removeprefix('torch.')}")
    return _WORDS[dtype]


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Return the bytes before the tensors, length and all, and the tensors' names in the file's order.

    Sorted by number type and name, metadata by key: the same tensors give the same bytes. They are those
    of the safetensors library, which leaves metadata of more than one entry in an order of chance.

    Raises:
        ValueError: a number type that the format has no word for.
    """
    words = {name: word_of(tensor.dtype) for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (_PLACE_OF[tensors[name].dtype], name))
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for name in names:
        end = begin + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": words[name],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The data begin at a multiple of eight bytes.
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, names


def parse_header(text: bytes, data_bytes: int) -> tuple[dict[str, Place], dict[str, str]]:
    """Read the header's JSON, of a file with ``data_bytes`` behind it: places in their order, metadata.

    Held against everything a file can lie about: names twice, number types nobody knows, sizes that are
    negative, no whole number or beyond all bounds, bytes that do not make the shape, gaps, overlaps, a file
    that ends too early or goes on too long.

    Raises:
        ValueError: says what is wrong, and of which tensor.
    """
    if not text.startswith(b"{"):
        raise ValueError("its header does not begin with '{'")
    header = strict_json(text)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts by name")
    places = sorted(
        ((name, _place(name, entry)) for name, entry in header.items()),
        key=lambda named: (named[1].begin, named[1].end),
    )
    reached = 0
    for name, place in places:
        if place.begin != reached:
            raise ValueError(f"{name!r} begins at byte {place.begin}, where byte {reached} comes next")
        reached = place.end
    if reached != data_bytes:
        raise ValueError(f"its tensors take {reached} bytes, and {data_bytes} are there")
    return dict(places), metadata


def _place(name: str, entry: Any) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} needs dtype, shape and data_offsets, and nothing else")
    word, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(word, str) or word not in DTYPES:
        raise ValueError(f"{name!r} is of the unknown number type {word!r}")
    if not _are_counts(shape) or len(shape) > MAX_AXES:
        raise ValueError(
            f"{name!r} has the shape {shape!r}, where at most {MAX_AXES} whole numbers from 0 are needed"
        )
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name!r} has the offsets {offsets!r}, where a begin and an end are needed")
    begin, end = offsets
    needed = prod(shape) * DTYPES[word].itemsize
    if needed != end - begin:
        raise ValueError(f"{name!r} takes {end - begin} bytes, where {shape} {word} takes {needed}")
    return Place(DTYPES[word], tuple(shape), begin, end)


def _are_counts(values: Any) -> bool:
    # A bool is an int to Python, and no count. Beyond 2**63 no torch tensor has an axis.
    return isinstance(values, list) and all(type(each) is int and 0 <= each < 2**63 for each in values)
