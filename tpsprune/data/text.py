"""Text as bytes: windows of a file, of a folder or of Python's own help, the next byte for a label.

Shapes: n windows, l bytes of a window.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tpsprune.data.dataset import Dataset, Preparation, Split, expand_home, require_rest
from tpsprune.errors import DataError
from tpsprune.recipe.task import TextData
from tpsprune.records import TaskFacts
from tpsprune.runs import read_bytes

BYTES: Final = 256
PLACE: Final = "task.data.path"
BETWEEN: Final = b"\n\n"
MAX_BYTES: Final = 2**28


def text_dataset(data: TextData) -> Dataset:
    """Return the text's beginning for training, its middle for validation and its end for the test.

    Every window of ``length`` bytes has the bytes after each of its own for labels; windows follow one
    another without overlap, and neither they nor their labels lie across a border of two parts. What is left
    over at the end of a part is not used. Files of a folder are joined in the order of their paths, an empty
    line between two.

    Raises:
        DataError: the file or folder is not there, cannot be read, or is too short for a window in each part.
    """
    name, text = _text(data)
    require_rest(data)
    bytes_ = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0)
    test = round(data.test_share * len(bytes_))
    validation = round(data.validation_share * len(bytes_))
    sizes = [len(bytes_) - validation - test, validation, test]
    for role, size in zip(("training", "validation", "test"), sizes, strict=True):
        if size < data.length + 1:
            raise DataError(
                f"task.data: {name} has {len(bytes_):,} bytes, of which the {role} part gets {size:,}; a "
                f"window of {data.length} and the byte after it take {data.length + 1}: use a longer text, "
                "a shorter length or another share"
            )
    train, middle, end = (windows(part, data.length) for part in torch.split(bytes_, sizes))
    facts = TaskFacts(
        input_kind="tokens",
        input_shape=(data.length,),
        classes=BYTES,
        vocabulary=BYTES,
        loss="next-token",
    )
    return Dataset(name, facts, train, middle, end, Preparation())


def windows(bytes_: Tensor, length: int) -> Split:
    """Return the windows (n, l) that lie one after another, and for each the bytes one place further on.

    >>> split = windows(torch.arange(6), 2)
    >>> split.inputs.tolist(), split.labels.tolist()
    ([[0, 1], [2, 3]], [[1, 2], [3, 4]])
    """
    count = (len(bytes_) - 1) // length
    whole = bytes_.to(torch.int64)
    return Split(
        whole[: count * length].view(count, length), whole[1 : count * length + 1].view(count, length)
    )


def _text(data: TextData) -> tuple[str, bytes]:
    if data.path is None:
        from pydoc_data.topics import topics

        return "python-topics", BETWEEN.join(topics[name].encode() for name in sorted(topics))
    path, most_bytes = expand_home(data.path, PLACE), data.max_bytes or MAX_BYTES
    try:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*.txt") if each.is_file())
            if not files:
                raise DataError(
                    f"{PLACE}: {path} holds no .txt file; expected a text file or a folder of them"
                )
            return path.name, _joined(files, most_bytes)
        return path.name, read_bytes(path, most_bytes)
    except FileNotFoundError as error:
        raise DataError(f"{PLACE}: {path} is not there; expected a text file or a folder of them") from error
    except OSError as error:
        hint = "; task.data.max_bytes = BYTES reads more" if error.errno == errno.EFBIG else ""
        raise DataError(f"{PLACE}: {path} cannot be read: {error.strerror or error}{hint}") from error


def _joined(files: Sequence[Path], most_bytes: int) -> bytes:
    texts: list[bytes] = []
    for file in files:
        texts.append(read_bytes(file, most_bytes))
        most_bytes -= len(texts[-1])
    return BETWEEN.join(texts)
