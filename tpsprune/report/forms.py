"""Values of templates: numbers with their class, code and tables, as HTML or as Markdown.

Whatever a template shows is escaped for its form, unless it is markup of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from markupsafe import Markup, escape

from tpsprune.errors import printable
from tpsprune.report import words

Form = Literal["html", "md", "plain"]
"""``plain`` is Markdown whose values are Markdown already: nothing is escaped."""
UNLABELLED: Final = frozenset({"name", "none", ""})
"""Classes that are not written next to a number."""

_UNIT: Final = re.compile(r"(?<=\d) (?=%|[kMmµn]?(?:J|Wh|W|s|g)\b|°C|pairs\b|points\b)")
"""The space between a number and its unit, where no line should end."""


@dataclass(frozen=True, slots=True)
class Number:
    """Text with a number in it, and the number's class; ``name`` where the digits name something."""

    text: str
    kind: str

    @property
    def has_figure(self) -> bool:
        """Whether a reader sees a figure in the text.

        >>> Number("12 pairs", "counted").has_figure, Number("CO₂", "name").has_figure
        (True, False)
        """
        return re.search(r"\d", self.text) is not None

    @property
    def label(self) -> str:
        """The class to write next to the text: only where the text holds a figure."""
        return self.kind if self.kind not in UNLABELLED and self.has_figure else ""


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied verbatim: commands, hashes, codes."""

    text: str


Cell = str | Number | Code | tuple[str | Number | Code, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first column names the row, and the first ``texts`` columns hold words."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: int = 1

    @property
    def classes(self) -> tuple[str | None, ...]:
        """The class of each column's numbers: empty without any, ``None`` where rows differ."""
        columns: list[str | None] = []
        for cells in zip(*self.rows, strict=True):
            parts = [part for cell in cells for part in (cell if isinstance(cell, tuple) else (cell,))]
            found = {part.kind for part in parts if isinstance(part, Number) and part.has_figure} - {"name"}
            columns.append(None if len(found) > 1 else next(iter(found), ""))
        return tuple(columns) if self.rows else ("",) * len(self.headings)

    @property
    def kinds(self) -> list[str]:
        """The row of classes below the headings, in words; its first cell names the row."""
        first, *others = self.classes
        return [f"class: {first}" if first else "class", *("as marked" if k is None else k for k in others)]

    @property
    def sides(self) -> list[str]:
        """The row of Markdown that sets words to the left and numbers to the right."""
        return ["---" if place < self.texts else "---:" for place in range(len(self.headings))]


def counted(value: object) -> Number:
    """Return a number that was counted."""
    return Number(f"{value:,}" if isinstance(value, int) else str(value), "counted")


def chosen(text: object) -> Number:
    """Return a setting that was fixed beforehand."""
    return Number(str(text), "chosen")


def measured(text: object) -> Number:
    """Return a reading of a clock or a counter."""
    return Number(str(text), "measured")


def derived(text: object) -> Number:
    """Return a result of statistics."""
    return Number(str(text), "derived")


def name(text: object) -> Number:
    """Return a name: digits in it are no figures."""
    return Number(str(text), "name")


def load_templates(
    form: Form,
    filters: Mapping[str, Callable[..., Any]],
    names: Mapping[str, Any],
    package: str = "tpsprune.report",
) -> Environment:
    """Return the templates of a package with what they may call, every value escaped for ``form``."""
    write = partial(_write, form)

    @pass_context
    def finalise(_: Any, value: Any) -> Markup:
        # It takes a context so that Jinja does not call it at compile time, after its own escaping.
        return write(value)

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.do"],
        finalize=finalise,
    )
    environment.globals |= {"Table": Table, **names}
    environment.filters |= {
        **{each.__name__: each for each in (chosen, counted, derived, measured, name)},
        **{each: getattr(words, each) for each in ("count", "percent", "seconds")},
        # The class of a number may be written elsewhere: at the head of its column or next to its neighbour.
        # A caption of Markdown is emphasised as a whole, so that no class can be marked within it.
        "unlabelled": partial(write, label=False),
        "label_unless": lambda value, kind: write(value, label=value.kind != kind),
        "emphasised": partial(write, label=form == "html"),
        "code": Code,
        "emphasis": lambda text: mark_up(f"*{write(text)}*") if text else "",
        "fence": _fence,
        "flow": lambda block: mark_up(re.sub(r"\s*\n\s*", " ", block.strip())),
        "number": Number,
        "row": partial(_row, form),
        "spoken": lambda text: mark_up(re.sub(r"\s<small>.*?</small>", "", text)).striptags(),
        **filters,
    }
    return environment


def mark_up(text: str) -> Markup:
    """Return text as markup: every part of it that is not ours is escaped."""
    return Markup(text)  # noqa: S704 - the one place that makes markup


def _fence(text: str) -> Markup:
    """Return a fence longer than any within the text."""
    return mark_up("`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0)))


def _write(form: Form, value: Any, *, label: bool = True) -> Markup:
    """Return a value in a form: a number with its class, everything else as text and never as markup."""
    match value:
        case Markup():
            return value
        case tuple():
            return mark_up("").join(_write(form, part, label=label) for part in value)
        case Number(text, kind) if form == "html":
            shown = f"\N{NO-BREAK SPACE}<small>[{escape(kind)}]</small>" if label and value.label else ""
            whole = _UNIT.sub("\N{NO-BREAK SPACE}", str(escape(printable(text))))
            return mark_up(f'<span data-class="{escape(kind)}">{whole}{shown}</span>')
        case Number(text):
            return mark_up(_escape_markdown(text) + (f" *({value.label})*" if label and value.label else ""))
        case Code(text) if form == "html":
            return mark_up(f"<code>{escape(printable(text))}</code>")
        case Code(text):
            return mark_up(f"`{printable(text).replace('`', chr(39))}`" if text else "")
        case _ if form == "plain":
            return mark_up(str(value))
    return escape(printable(str(value))) if form == "html" else mark_up(_escape_markdown(str(value)))


def _escape_markdown(text: str) -> str:
    """Return text that Markdown takes as text, on one line."""
    text = printable(" ".join(text.split()) if "\n" in text else text)
    text = re.sub(r"([\\`*\[\]_])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _row(form: Form, cells: Sequence[Any], classes: Sequence[str | None] | None = None) -> Markup:
    """Return a row of a Markdown table; a number needs no class where its column has one."""
    shown = [
        str(_write(form, cell, label=classes is None or classes[place] is None)).replace("|", r"\|")
        for place, cell in enumerate(cells)
    ]
    return mark_up(f"| {' | '.join(shown)} |")
