"""A report's document as one HTML page: no script, no network, every number with its class.

The class stands in ``data-class`` for programs; for readers it stands beside the number, at the head of the
column, or in the caption.
"""

from __future__ import annotations

from functools import cache
from html import escape
from importlib.resources import files

from tpsprune.report.savings_blocks import (
    NAME,
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
from tpsprune.report.savings_svg import variables

__all__ = ["html_page"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_SIGNS = {"saves": "▼", "costs": "▲", "refused": "■", "neutral": ""}


def html_page(document: Document) -> str:
    """Return the document as a page that needs nothing beside it."""
    contents = "".join(
        f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in document.sections
    )
    body = "\n".join(_section(section) for section in document.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="generator" content="tpsprune">\n'
        f"<title>{escape(document.title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<h1 data-class="{NAME}">{escape(document.title)}</h1>\n'
        f"{_paragraph(document.lead)}\n</header>\n"
        f"<nav><details><summary>Contents</summary><ol>{contents}</ol></details></nav>\n"
        f"{body}\n"
        "</main>\n</body>\n</html>\n"
    )


@cache
def _style() -> str:
    sheet = files("tpsprune.report").joinpath("savings.css").read_text(encoding="utf-8")
    light, dark = variables(dark=False), variables(dark=True)
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{sheet}"
    )


def _section(section: Section) -> str:
    blocks = "\n".join(map(_block, section.blocks))
    heading = f"<h2>{escape(section.title)}</h2>\n"
    return f'<section id="{section.anchor}">\n{heading}{blocks}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return _paragraph(block)
        case Bullets():
            return _bullets(block)
        case Table():
            return _table(block)
        case Picture():
            return _picture(block)
        case Listing():
            return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>'
        case Banner():
            return _banner(block)
        case Headlines():
            return f'<div class="headlines">\n{"".join(map(_headline, block.items))}</div>'


def _inline(part: Inline, *, label: bool = True) -> str:
    match part:
        case Tagged(text, number_class):
            shown = label and number_class not in UNSAID and has_number(part)
            said = f"\N{NO-BREAK SPACE}{_class(number_class)}" if shown else ""
            return f'<span data-class="{escape(number_class)}">{escape(text)}{said}</span>'
        case Code(text):
            return f"<code>{escape(text)}</code>"
        case str():
            return escape(part)


def _class(number_class: str) -> str:
    """Return a class beside its number: as text, so that it stays with what is copied or read out."""
    return f"<small>[{escape(number_class)}]</small>"


def _inlines(parts: tuple[Inline, ...], *, label: bool = True) -> str:
    return "".join(_inline(part, label=label) for part in parts)


def _paragraph(block: Paragraph, tag: str = "p") -> str:
    if block.number_class:
        said = f" {_class(block.number_class)}" if any(map(has_number, block.parts)) else ""
        return (
            f'<{tag} data-class="{escape(block.number_class)}">'
            f"{_inlines(block.parts, label=False)}{said}</{tag}>"
        )
    return f"<{tag}>{_inlines(block.parts)}</{tag}>"


def _bullets(block: Bullets) -> str:
    title = f"<h3>{escape(block.title)}</h3>\n" if block.title else ""
    return f"{title}<ul>{''.join(_paragraph(item, 'li') for item in block.items)}</ul>"


def _table(block: Table) -> str:
    classes = column_classes(block)
    head = "".join(
        f'<th scope="col"{_side(place, block)}>{_inline(Tagged(heading, NAME))}</th>'
        for place, heading in enumerate(block.headings)
    )
    kinds = "".join(
        f"<td{_side(place, block)}>{'as marked' if kind is None else escape(kind)}</td>"
        for place, kind in enumerate(classes[1:], start=1)
    )
    first = escape(f"class: {classes[0]}" if classes[0] else "class")
    said = (
        f'<tr class="kinds"><th scope="row">{first}</th>{kinds}</tr>\n'
        if any(k != "" for k in classes)
        else ""
    )
    rows = "".join(_row(row, block, classes) for row in block.rows)
    return (
        f'<div class="scrolls" tabindex="0" role="region" aria-label="{escape(_plain(block.caption))}">\n'
        f"<table>\n<caption><div>{_inlines(block.caption.parts)}</div></caption>\n<thead>\n<tr>{head}</tr>\n"
        f"{said}</thead>\n"
        f"<tbody>\n{rows}</tbody>\n</table>\n</div>"
    )


def _row(row: tuple[Cell, ...], block: Table, classes: tuple[str | None, ...]) -> str:
    cells = []
    for place, (cell, kind) in enumerate(zip(row, classes, strict=True)):
        parts = cell if isinstance(cell, tuple) else (cell,)
        tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
        cells.append(f"<{tag}{scope}{_side(place, block)}>{_inlines(parts, label=kind is None)}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>\n"


def _side(place: int, block: Table) -> str:
    return "" if place < block.texts else ' class="figure"'


def _picture(block: Picture) -> str:
    return (
        f'<figure id="plot-{block.stem}" data-class="{escape(block.number_class)}">\n'
        f'<div class="scrolls" tabindex="0" role="region" aria-label="{escape(block.title)}">'
        f"{block.svg}</div>\n"
        f"<figcaption><strong>{escape(block.title)}.</strong> {_inlines(block.caption.parts)} "
        f'<span class="kind">Class: {escape(block.number_class)}.</span> '
        f'Numbers: <a href="plots/{block.stem}.csv">plots/{block.stem}.csv</a></figcaption>\n</figure>'
    )


def _banner(block: Banner) -> str:
    return (
        f'<div class="banner {block.tone}">\n'
        f'<p class="verdict"><span aria-hidden="true">{_SIGNS[block.tone]} </span>{escape(block.words)}</p>\n'
        f'<p class="badge"><span>grade</span> <strong>{escape(block.grade)}</strong></p>\n'
        f'<p class="statement">{_inline(block.statement)}</p>\n'
        f'<p class="small"><code>{escape(block.code)}</code> · grade {escape(block.grade)}: '
        f"{_inline(block.grade_meaning)}</p>\n</div>"
    )


def _headline(block: Headline) -> str:
    sign, own = _SIGNS[block.tone], block.figure.number_class
    interval, *notes = (
        _inline(part, label=getattr(part, "number_class", "") != own)
        for part in (block.interval, *block.notes)
    )
    mark = f'<span aria-hidden="true">{sign} </span>' if sign else ""
    return (
        f'<div class="headline {block.tone}">\n<h3>{escape(block.title)}</h3>\n'
        f'<p class="big">{mark}{_inline(block.figure, label=False)}</p>\n'
        + (f'<p class="kind">{escape(own)}</p>\n' if own not in UNSAID else "")
        + (f"<p>{interval}</p>\n" if block.interval.text else "")
        + f'<p class="small">{"".join(notes)}</p>\n</div>\n'
    )


def _plain(block: Paragraph) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in block.parts)
