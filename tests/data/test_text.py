"""Windows of a text: labels are the bytes that follow, and nothing lies across a border."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tpsprune.data import Dataset, load
from tpsprune.data.text import windows
from tpsprune.errors import DataError
from tpsprune.recipe.task import TextData

TEXT = bytes(range(256)) * 4


def loaded(path: Path, length: int = 8, **more: float) -> Dataset:
    return load(TextData(path=str(path), length=length, **more), "next-token")  # type: ignore[arg-type]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT)
    return path


def test_every_label_is_the_byte_that_follows(book: Path) -> None:
    data = loaded(book)
    for split in (data.train, data.validation, data.test):
        assert split.inputs.shape == split.labels.shape
        assert torch.equal(split.inputs[:, 1:], split.labels[:, :-1])
        assert torch.equal((split.inputs + 1) % 256, split.labels)


def test_parts_lie_one_after_another_and_no_byte_is_in_two(tmp_path: Path) -> None:
    path = tmp_path / "counted.txt"
    path.write_bytes(bytes(range(250)))
    data = loaded(path, length=6, validation_share=0.2, test_share=0.2)
    splits = (data.train, data.validation, data.test)
    seen = [torch.cat((split.inputs.flatten(), split.labels.flatten())) for split in splits]
    bounds = [(int(each.min()), int(each.max())) for each in seen]
    assert bounds == [(0, 144), (150, 198), (200, 248)]


def test_windows_leave_out_less_than_one_of_them() -> None:
    for length in (1, 3, 7):
        split = windows(torch.arange(100), length)
        assert split.inputs.flatten().tolist() == list(range(len(split) * length))
        assert 100 - 1 - length < len(split) * length <= 99


def test_facts_are_those_of_bytes(book: Path) -> None:
    facts = loaded(book).facts
    assert (facts.input_kind, facts.input_shape, facts.vocabulary, facts.classes) == (
        "tokens",
        (8,),
        256,
        256,
    )
    assert (facts.loss, facts.quality) == ("next-token", "next-token accuracy")


def test_files_of_a_folder_are_joined_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_bytes(b"y" * 200)
    (tmp_path / "a.txt").write_bytes(b"x" * 200)
    (tmp_path / "notes.md").write_bytes(b"z" * 200)
    data = loaded(tmp_path, length=2)
    text = bytes(data.train.inputs.flatten().tolist())
    assert text.startswith(b"x" * 200 + b"\n\n" + b"y" * 50)
    assert b"z" not in text


def test_the_text_that_comes_with_python_is_always_at_hand() -> None:
    data = load(TextData(source="python-topics"), "next-token")
    assert len(data.train) * 64 > 200_000
    assert b"statement" in bytes(data.train.inputs.flatten().tolist())


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (None, {}, r"task\.data\.path: .*book\.txt is not there; expected a text file or a folder of them"),
        (
            b"",
            {},
            r"book\.txt has 0 bytes, of which the training part gets 0; a window of 8 and the byte after",
        ),
        (
            b"x" * 60,
            {},
            r"has 60 bytes, of which the validation part gets 6; a window of 8 and the byte after it take 9",
        ),
        (
            TEXT,
            {"length": 200},
            r"the validation part gets 102; a window of 200 and the byte after it take 201",
        ),
        (
            TEXT,
            {"validation_share": 0.6, "test_share": 0.4},
            r"0\.6 and test_share 0\.4 leave nothing to train",
        ),
    ],
)
def test_a_text_that_will_not_do_is_refused_with_what_would(
    tmp_path: Path, content: bytes | None, more: dict[str, float], words: str
) -> None:
    path = tmp_path / "book.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        loaded(path, **more)  # type: ignore[arg-type]


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.txt file; expected a text file or a folder of them"):
        loaded(tmp_path)


def test_a_text_is_no_longer_than_allowed(book: Path) -> None:
    (book.parent / "more.txt").write_bytes(TEXT)
    with pytest.raises(DataError, match=r"longer than 1,023 bytes.*task.data.max_bytes = BYTES reads more"):
        loaded(book, max_bytes=1023)
    assert loaded(book, max_bytes=1024)
    with pytest.raises(DataError, match="longer than 976 bytes"):
        loaded(book.parent, max_bytes=2000)
