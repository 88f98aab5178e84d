"""What surrounds a command: streams that may not be able to show every character, and signals that end it."""

from __future__ import annotations

import codecs
import io
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Final, NoReturn, final

ENDING: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a command, each run so that it can be resumed."""
PLAIN: Final = "tpsprune-plain"
ESCAPED: Final = "tpsprune-escaped"
ASCII: Final = "tpsprune-ascii"
_IN_ASCII: Final = {
    **dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True)),
    **dict(
        zip(
            "−–—·×→≥≤≈±√°•",
            ("-", "-", "-", ".", "x", "->", ">=", "<=", "~", "+-", "sqrt", "deg", "*"),
            strict=True,
        )
    ),
    **dict(zip("‘’“”µ‖∂Σ", ("'", "'", '"', '"', "u", "||", "d", "sum"), strict=True)),
}
"""What stands for a character of ours that a stream cannot show; of one column where tables have it."""


@final
class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): whatever an interrupt undoes is undone."""


@contextmanager
def ending_on_terminate() -> Iterator[None]:
    """Let SIGTERM raise ``Terminated``, unless somebody else has settled what it does."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 -- a handler's signature
    raise Terminated


@contextmanager
def holding_signals() -> Iterator[None]:
    """Hold back the signals that end a command; the first that came acts thereafter."""
    held: list[int] = []
    before = {each: signal.signal(each, lambda number, _: held.append(number)) for each in ENDING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if held:
        signal.raise_signal(held[0])


def adapt_streams(errors: str = PLAIN) -> None:
    """Let standard output and error show characters that their encoding lacks in ASCII.

    With ``ESCAPED`` as JSON escapes, so that what is printed as JSON keeps its values.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Under its own name click takes ASCII for a mistake, and writes UTF-8.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=ASCII if is_ascii else None, errors=errors)


def _lacking(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return error.object[error.start : error.end], error.end


def _plain(error: UnicodeError) -> tuple[str, int]:
    text, end = _lacking(error)
    return "".join(map(_in_ascii, text)), end


def _escaped(error: UnicodeError) -> tuple[str, int]:
    text, end = _lacking(error)
    return "".join(map(_escape, text)), end


@cache
def _in_ascii(character: str) -> str:
    r"""Return what stands for a character, or its code where nothing does.

    >>> "".join(map(_in_ascii, "…²−½λé中"))
    '...2-1/2lamdae\\u4e2d'
    """
    if character in _IN_ASCII:
        return _IN_ASCII[character]
    parts = unicodedata.normalize("NFKD", character).replace("\N{FRACTION SLASH}", "/")
    if plain := parts.encode("ascii", "ignore").decode():
        return plain
    *_, last = unicodedata.name(character, "").split() or [""]
    return last.lower() if "GREEK" in unicodedata.name(character, "") else _escape(character)


def _escape(character: str) -> str:
    r"""Return the escape of JSON, and of Python's text, for a character.

    >>> _escape("λ"), _escape("🌱")
    ('\\u03bb', '\\ud83c\\udf31')
    """
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(
        found.encode,
        found.decode,
        found.streamreader,
        found.streamwriter,
        found.incrementalencoder,
        found.incrementaldecoder,
        name=ASCII,
    )


codecs.register(_find_codec)
codecs.register_error(PLAIN, _plain)
codecs.register_error(ESCAPED, _escaped)
