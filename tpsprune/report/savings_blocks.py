"""What a report is made of, before it is HTML or Markdown: one order, one truth, two renderings.

Every number is a ``Tagged`` piece of text that carries its class; the renderers cannot lose it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "CHOSEN",
    "COUNTED",
    "DERIVED",
    "MEASURED",
    "NAME",
    "UNSAID",
    "Banner",
    "Block",
    "Bullets",
    "Cell",
    "Code",
    "Document",
    "Headline",
    "Headlines",
    "Inline",
    "Listing",
    "Paragraph",
    "Picture",
    "Section",
    "Table",
    "Tagged",
    "bullets",
    "chosen",
    "column_classes",
    "counted",
    "has_number",
    "measured",
    "name",
    "says",
    "table",
]

MEASURED, COUNTED, CHOSEN, DERIVED, NAME = "measured", "counted", "chosen", "derived", "name"
UNSAID: Final = frozenset({NAME, "none"})
"""Classes that are not written beside a figure: those of names, and of what nothing was metered of."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """Text with a number in it, and the number's class; ``name`` where the digits name something."""

    text: str
    number_class: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied or looked up, as it stands: commands, hashes, codes."""

    text: str


Inline = str | Tagged | Code
Cell = Inline | tuple[Inline, ...]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A few sentences; ``number_class`` where one class holds for every number in them."""

    parts: tuple[Inline, ...]
    number_class: str = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    """Paragraphs as a list, with what they have in common before it."""

    title: str
    items: tuple[Paragraph, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first column names the row. Figures stand to the right."""

    caption: Paragraph
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: int = 1
    """How many leading columns hold words; the others hold figures."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot: where its file lies, what it shows, for eyes and for ears, and the class of its numbers."""

    stem: str
    title: str
    caption: Paragraph
    spoken: str
    number_class: str
    svg: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Lines to be copied."""

    text: str


@dataclass(frozen=True, slots=True)
class Banner:
    """The verdict: in words, in a tone, with its code and the grade of the energy figures.

    The letters are of one size whatever the tone.
    """

    tone: Literal["saves", "costs", "refused"]
    words: str
    code: str
    statement: Tagged
    grade: str
    grade_meaning: Tagged


@dataclass(frozen=True, slots=True)
class Headline:
    """One of the three numbers: what it is, the number, its interval, and what else to know of it."""

    title: str
    figure: Tagged
    interval: Tagged
    notes: tuple[Inline, ...]
    tone: Literal["saves", "costs", "neutral"]


@dataclass(frozen=True, slots=True)
class Headlines:
    """The three numbers beside one another."""

    items: tuple[Headline, ...]


Block = Paragraph | Bullets | Table | Picture | Listing | Banner | Headlines


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """The report from top to bottom."""

    title: str
    lead: Paragraph
    sections: tuple[Section, ...]


def says(*parts: Inline, number_class: str = "") -> Paragraph:
    """Return a paragraph of these parts."""
    return Paragraph(parts, number_class)


def counted(value: object) -> Tagged:
    """Return a number that was counted."""
    return Tagged(f"{value:,}" if isinstance(value, int) else str(value), COUNTED)


def chosen(text: object) -> Tagged:
    """Return a setting that was fixed beforehand."""
    return Tagged(str(text), CHOSEN)


def measured(text: str) -> Tagged:
    """Return what a clock or a counter said."""
    return Tagged(text, MEASURED)


def name(text: object) -> Tagged:
    """Return a name: what digits are in it are no figures."""
    return Tagged(str(text), NAME)


def bullets(title: str, items: Iterable[Paragraph]) -> Bullets:
    """Return a list of paragraphs."""
    return Bullets(title, tuple(items))


def table(
    caption: Paragraph, headings: Iterable[str], rows: Iterable[tuple[Cell, ...]], texts: int = 1
) -> Table:
    """Return a table of these rows."""
    return Table(caption, tuple(headings), tuple(rows), texts)


def column_classes(shown: Table) -> tuple[str | None, ...]:
    """Return the class of each column's figures: empty without any, ``None`` where rows differ."""
    columns: list[str | None] = []
    for place in range(len(shown.headings)):
        found = {kind for row in shown.rows for kind in _classes(row[place])}
        columns.append(None if len(found) > 1 else next(iter(found), ""))
    return tuple(columns)


def has_number(part: Inline) -> bool:
    """Return whether a reader sees a figure in this piece of text.

    >>> has_number("12 pairs"), has_number("CO₂"), has_number(Code("sha256"))
    (True, False, False)
    """
    return (
        not isinstance(part, Code)
        and re.search(r"\d", part if isinstance(part, str) else part.text) is not None
    )


def _classes(cell: Cell) -> Iterable[str]:
    parts = cell if isinstance(cell, tuple) else (cell,)
    return (
        part.number_class
        for part in parts
        if isinstance(part, Tagged) and part.number_class != NAME and has_number(part)
    )
