"""Files from elsewhere are regular and bounded before they are read; JSON is as strict as it can be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tpsprune.records import strict
from tpsprune.records.strict import open_regular, read_bytes, strict_json


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, r"nested too deeply \(64 levels are read\)"),
        (b"9" * 5_000, "9{20}… is beyond all whole numbers"),
        (b"18446744073709551616", "beyond all whole numbers"),
        (b"[1e200]", r"1e200 is beyond all numbers \(1e\+150 at most\)"),
        (b"[1e999]", "beyond all numbers"),
        (b"[NaN]", "NaN is not a number of JSON"),
        (b'{"a": 1, "a": 2}', "the name 'a' is there twice"),
        (b'"\\ud800"', "half a character"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b"[1,", "line 1 is not JSON"),
    ],
)
def test_what_json_may_not_hold_is_named(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strict_json(content)


def test_what_is_just_allowed_is_read() -> None:
    assert strict_json(b"[" * 64 + b"]" * 64)
    assert strict_json(b"[18446744073709551615, -9223372036854775808, 1e150]") == [2**64 - 1, -(2**63), 1e150]


def test_the_number_of_values_is_bounded_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "MAX_VALUES", 10)
    assert strict_json(b"[" + b"1," * 8 + b"1]")
    with pytest.raises(ValueError, match="more than 10 values"):
        strict_json(b"[" + b"1," * 10 + b"1]")


def test_a_device_a_pipe_and_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(OSError, match="it is no regular file"):
            read_bytes(path)
    with pytest.raises(OSError, match="director"):
        read_bytes(tmp_path)
    with pytest.raises(OSError, match="null"):
        read_bytes(tmp_path / "a\0b")


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="longer than 67,108,864 bytes"):
        read_bytes(path)
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match="longer than 4 bytes"):
        read_bytes(path, 4)


def test_a_link_is_followed_only_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link") == b"x"
    with pytest.raises(OSError, match="it is a link, which is not followed"):
        open_regular(tmp_path / "link", follow=False)
