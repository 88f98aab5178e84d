"""What files may hold: regular files only, bounded before they are read; JSON stricter than its grammar."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, NoReturn

MAX_BYTES: Final = 2**26
"""The longest text that is read: JSON, journals, recipes, 64 MiB."""
MAX_VALUES: Final = 2**20
"""The most values of one JSON text; a value of three bytes can take 500 of memory while it is read."""
MAX_DEPTH: Final = 64
LARGEST: Final = 1e150
"""The largest number: its square is a number still."""
_WHOLE: Final = range(-(2**63), 2**64)
_MOST_DIGITS: Final = 20


def open_regular(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a file to read; a pipe or a device, which could block or never end, is refused.

    Without ``follow`` a link is refused, too: what lies in a folder of somebody else stays inside it.

    Raises:
        OSError: it is not there, not permitted, a folder, no regular file, or a link.
    """
    flags = os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        file = open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags))  # noqa: SIM115 -- Path.open takes no opener
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            words = "it is a link, which is not followed: copy the file itself"
            raise OSError(errno.ELOOP, words, str(path)) from error
        raise
    except ValueError as error:  # a null character in a path
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def read_bytes(path: Path, most_bytes: int = MAX_BYTES, *, follow: bool = True) -> bytes:
    """Read a regular file of at most so many bytes; see ``open_regular``.

    Raises:
        OSError: as ``open_regular``, or it is longer.
    """
    with open_regular(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        # Once more than stated, as files of the kernel state none.
        content = file.read(min(max(size, 2**20), most_bytes) + 1) if size <= most_bytes else b""
    if max(size, len(content)) > most_bytes:
        raise OSError(
            errno.EFBIG, f"it is longer than {most_bytes:,} bytes, the most that is read", str(path)
        )
    return content


def strict_json(content: bytes) -> Any:
    """Return the value of a JSON text, read more strictly than ``json.loads`` does.

    Refused besides what is no JSON: a name twice in one object, ``NaN`` and ``Infinity``, half a
    character (a lone surrogate), whole numbers beyond 64 bits, other numbers beyond ``LARGEST``, nesting
    beyond ``MAX_DEPTH``, more than ``MAX_VALUES`` values or ``MAX_BYTES`` bytes.

    Raises:
        ValueError: names what is wrong; no other error is raised.

    >>> strict_json(b'{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    >>> strict_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    ValueError: the name 'a' is there twice
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES:,} bytes, the most that is read")
    refuse_many(content, MAX_VALUES)
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
        )
        # Only an escape can hold half a character: the text itself has been decoded.
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError("a text in it holds half a character") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} is not JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(_NESTED) from error
    if _is_deep(value):
        raise ValueError(_NESTED)
    return value


_NESTED: Final = f"it is nested too deeply ({MAX_DEPTH} levels are read)"


def refuse_many(content: bytes, most_values: int) -> None:
    """Refuse JSON of more values than that, before any of them is made.

    Marks inside texts are counted too, which refuses no file of this package.
    """
    if sum(content.count(mark) for mark in b",[{") > most_values:
        raise ValueError(f"it holds more than {most_values:,} values, the most that are read")


def escape_json(text: str) -> str:
    r"""Return a JSON text with whatever would steer a terminal, or cannot be seen, written as an escape.

    >>> print(escape_json('{"a": "\x9b\u202e"}'))
    {"a": "\u009b\u202e"}
    """
    lines = text.split("\n")
    if all(map(str.isprintable, lines)):
        return text
    kept = "\n\N{NO-BREAK SPACE}"
    return "".join(each if each.isprintable() or each in kept else json.dumps(each)[1:-1] for each in text)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {twice!r} is there twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not abs(number) <= LARGEST:
        raise ValueError(f"{_short(text)} is beyond all numbers ({LARGEST:g} at most)")
    return number


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS or int(text) not in _WHOLE:
        raise ValueError(f"{_short(text)} is beyond all whole numbers (64 bits)")
    return int(text)


def _short(text: str) -> str:
    return text if len(text) <= 2 * _MOST_DIGITS else f"{text[:_MOST_DIGITS]}…"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")
