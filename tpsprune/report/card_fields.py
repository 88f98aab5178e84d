"""Fields of a result for a model card: what a run did not record is said so, and Markdown stays whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

__all__ = ["NOT_RECORDED", "cell", "field", "fold", "quoted", "said", "table"]

NOT_RECORDED: Final = "not recorded"


def field(raw: Any, *path: str) -> Any:
    """Return what stands at a path of nested mappings; ``None`` where any part of it is missing.

    >>> field({"ticket": {"macs": 3}}, "ticket", "macs"), field({}, "ticket", "macs")
    (3, None)
    """
    for name in path:
        if not isinstance(raw, Mapping) or name not in raw:
            return None
        raw = raw[name]
    return raw


def said(value: Any, words: Callable[[Any], str] = str) -> str:
    """Return a value in words; ``not recorded`` where there is none.

    >>> said(3, "{:,}".format), said(None)
    ('3', 'not recorded')
    """
    return NOT_RECORDED if value is None else words(value)


def cell(value: Any) -> str:
    r"""Return a text as it can stand in a cell of a Markdown table, or within a sentence.

    >>> cell("a|b <script>")
    'a\\|b &lt;script&gt;'
    """
    text = " ".join(str(value).split())
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(sign, written)
    return text


def table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a Markdown table, line by line.

    >>> table(["a", "b"], [(1, 2)])
    ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    lines = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(cell(each) for each in line)} |" for line in lines]


def fold(summary: str, text: str, language: str) -> list[str]:
    """Return a text in a fold that is closed at first, in a fence longer than any within it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [
        "<details>",
        f"<summary>{cell(summary)}</summary>",
        "",
        f"{fence}{language}",
        *text.rstrip("\n").split("\n"),
        fence,
        "",
        "</details>",
    ]


def quoted(text: str) -> str:
    """Return a text as YAML reads it: JSON's strings are YAML's double-quoted ones."""
    return json.dumps(text, ensure_ascii=True)
