"""JSON of a stranger is read, or refused with a ValueError: nothing else comes of it."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.runs import strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(VALUES, st.booleans())
def test_what_is_json_comes_back(value: object, ascii_only: bool) -> None:
    assert strict_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60))
def test_whatever_is_there_a_value_or_a_value_error_comes_of_it(content: bytes) -> None:
    value = None
    with suppress(ValueError):
        value = strict_json(content)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": {"b": 1, "b": 1}}', "the name 'b' is there twice"),
        (b"[NaN]", "NaN is not a number of JSON"),
        (b"[1e999]", "1e999 is beyond all numbers"),
        (b"[-Infinity]", "-Infinity is not a number of JSON"),
        (b'["\\ud800"]', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b"[" * 100_000, "nested too deeply|is not JSON"),
        (b"9" * 5_000, "limit|digits"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'{"a": 1}{', "line 1 is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_what_the_library_lets_pass_is_refused_in_words(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strict_json(content)


def test_a_name_that_is_there_twice_is_found_at_once_among_many() -> None:
    names = ",".join(f'"{number}":0' for number in range(30_000))
    begun = time.process_time()
    with pytest.raises(ValueError, match="the name 'z' is there twice"):
        strict_json(f'{{{names},"z":0,"z":0}}'.encode())
    assert time.process_time() - begun < 2.0, "a look at each pair of names would take a minute"


def test_a_pair_of_halves_is_a_character() -> None:
    assert strict_json(b'["\\ud83c\\udf31"]') == ["\N{SEEDLING}"]
