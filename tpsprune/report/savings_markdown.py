"""The same document as Markdown: the same order, the same numbers, the same classes."""

from __future__ import annotations

import re

from tpsprune.report.savings_blocks import (
    UNSAID,
    Banner,
    Block,
    Bullets,
    Cell,
    Code,
    Document,
    Headline,
    Headlines,
    Inline,
    Listing,
    Paragraph,
    Picture,
    Section,
    Table,
    Tagged,
    column_classes,
    has_number,
)

__all__ = ["markdown_page"]


def markdown_page(document: Document) -> str:
    """Return the document as Markdown; plots are linked as files beside it."""
    sections = "\n\n".join(
        _section(number, section) for number, section in enumerate(document.sections, start=1)
    )
    return f"# {_safe(document.title)}\n\n{_paragraph(document.lead)}\n\n{sections}\n"


def _section(number: int, section: Section) -> str:
    blocks = "\n\n".join(map(_block, section.blocks))
    return f"## {number}. {_safe(section.title)}\n\n{blocks}"


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return _paragraph(block)
        case Bullets():
            title = f"**{_safe(block.title)}**\n\n" if block.title else ""
            return title + "\n".join(f"- {_paragraph(item)}" for item in block.items)
        case Table():
            return _table(block)
        case Picture():
            return (
                f"![{_safe(f'{block.title}. {block.spoken}')}](plots/{block.stem}.svg)\n\n"
                f"*{_safe(block.title)}.* {_inlines(block.caption.parts)} "
                f"Class: {block.number_class}. Numbers: [plots/{block.stem}.csv](plots/{block.stem}.csv)"
            )
        case Listing():
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
            return f"{fence}\n{block.text}\n{fence}"
        case Banner():
            return (
                f"**{_safe(block.words)}** (`{block.code}`)\n\n{_inline(block.statement)}\n\n"
                f"Grade **{_safe(block.grade)}**: {_inline(block.grade_meaning)}"
            )
        case Headlines():
            return "\n".join(map(_headline, block.items))


def _headline(block: Headline) -> str:
    own = block.figure.number_class
    interval, *notes = (
        _inline(part, label=getattr(part, "number_class", "") != own)
        for part in (block.interval, *block.notes)
    )
    kind = f" *({own})*" if own not in UNSAID else ""
    said = f"**{_safe(block.figure.text)}**{kind}{f', {interval}' if interval else ''}"
    return f"- {_safe(block.title)}: {'. '.join(filter(None, (said, ''.join(notes).strip())))}"


def _inline(part: Inline, *, label: bool = True) -> str:
    match part:
        case Tagged(text, number_class):
            shown = label and number_class not in UNSAID and has_number(part)
            return _safe(text) + (f" *({number_class})*" if shown else "")
        case Code(text):
            return f"`{text.replace('`', chr(39))}`" if text else ""
        case str():
            return _safe(part)


def _inlines(parts: tuple[Inline, ...], *, label: bool = True) -> str:
    return "".join(_inline(part, label=label) for part in parts)


def _paragraph(block: Paragraph) -> str:
    if block.number_class and any(map(has_number, block.parts)):
        return f"{_inlines(block.parts, label=False)} *({block.number_class})*"
    return _inlines(block.parts, label=not block.number_class)


def _table(block: Table) -> str:
    classes = column_classes(block)
    sides = ["---" if place < block.texts else "---:" for place in range(len(block.headings))]
    kinds = [
        f"*class: {classes[0]}*" if classes[0] else "*class*",
        *(f"*{'as marked' if kind is None else kind}*" if kind != "" else "" for kind in classes[1:]),
    ]
    lines = [block.headings, sides, *([kinds] if any(kind != "" for kind in classes) else [])]
    lines += [[_cell(cell, kind) for cell, kind in zip(row, classes, strict=True)] for row in block.rows]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"*{_inlines(block.caption.parts, label=False)}*\n\n{rows}"


def _cell(cell: Cell, kind: str | None) -> str:
    parts = cell if isinstance(cell, tuple) else (cell,)
    return _inlines(parts, label=kind is None).replace("|", r"\|")


def _safe(text: str) -> str:
    """Return text that Markdown takes as text, on one line."""
    text = " ".join(text.split()) if "\n" in text else text
    return re.sub(r"([\\`*\[\]_])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")
