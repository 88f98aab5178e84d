"""Plots in colours that a page may change: drawn in stand-ins, which become CSS variables or light colours.

Inline, a picture follows the page into the dark; as a file of its own it is dark on white wherever it is
opened. Matplotlib knows only fixed colours, so each paint is drawn as a colour that nothing else uses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from matplotlib.figure import Figure

from tpsprune.report.figures import rendered

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "SERIES",
    "WIDTH",
    "axes_of",
    "canvas",
    "energy_axis",
    "inline_svg",
    "key_below",
    "marker_of",
    "own_svg",
    "paint_of",
    "variables",
]

WIDTH: Final = 5.7
"""Inches of a plot: its words can be read on a desk, and on a telephone without scrolling."""

INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES: Final = tuple(f"#0102{10 + place}" for place in range(7))
# Okabe and Ito's palette, its yellow darkened to be seen on white; then the same, lighter, for the dark.
_LIGHT: Final = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B37400", "#2B9FD9", "#8A7A00")
_DARK: Final = ("#56B4E9", "#FF8A3D", "#2FC79A", "#E08FC0", "#E69F00", "#9AD5F5", "#F0E442")
_PAINTS: Final = {
    INK: ("ink", "#1B1F24", "#E6E8EB"),
    MUTED: ("muted", "#5B6470", "#A3ACB8"),
    GRID: ("grid", "#D5D9DF", "#3A424D"),
    PAPER: ("paper", "#FFFFFF", "#171B21"),
    **{
        stand_in: (f"series-{place}", light, dark)
        for place, (stand_in, light, dark) in enumerate(zip(SERIES, _LIGHT, _DARK, strict=True))
    },
}
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")

_COORDINATE: Final = re.compile(r"(\d+\.\d{2})\d+")
_PIXELS: Final = 1.5
"""Pixels of the page for a point of a figure: text then is as large as the page's small print."""


def paint_of(place: int) -> str:
    """Return the paint of the arm at ``place`` of the design; the first, the baseline, is drawn in ink."""
    return INK if place == 0 else SERIES[(place - 1) % len(SERIES)]


def marker_of(place: int) -> str:
    """Return the marker of the arm at ``place``: colours alone tell nothing apart."""
    return _MARKERS[place % len(_MARKERS)]


def variables(*, dark: bool) -> str:
    """Return the paints as CSS declarations, for the light or for the dark."""
    return " ".join(f"--{name}: {night if dark else light};" for name, light, night in _PAINTS.values())


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_facecolor(PAPER)
    return figure


def axes_of(figure: Figure, *place: Any, **more: Any) -> Any:
    """Return axes in the figure's paints, with lines to read values off along neither axis."""
    axes = figure.add_subplot(*place, **more)
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=9.5, colors=MUTED, labelcolor=INK)
    axes.xaxis.label.set(color=INK, fontsize=10)
    axes.yaxis.label.set(color=INK, fontsize=10)
    axes.title.set(color=INK, fontsize=10)
    axes.set_axisbelow(True)
    return axes


def key_below(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """Put a key under the axes: beside them it would take their width on a telephone."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handlelength=1.8,
        columnspacing=1.3,
    )


def energy_axis(values: Sequence[float]) -> tuple[float, str]:
    """Return by what to divide joules for an axis, and the unit then.

    >>> energy_axis([1200.0, 3.0]), energy_axis([0.002]), energy_axis([])
    ((1000.0, 'kJ'), (0.001, 'mJ'), (1.0, 'J'))
    """
    largest = max((abs(value) for value in values), default=0.0)
    for size, unit in ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ")):
        if largest >= size:
            return size, unit
    return (1e-6, "µJ") if largest else (1.0, "J")


def own_svg(figure: Figure, title: str) -> str:
    """Return the figure as a file of its own, light colours on white."""
    return _painted(_cleaned(figure, title), inline=False)


def inline_svg(figure: Figure, stem: str, title: str, spoken: str) -> str:
    """Return the figure to stand in a page: paints as variables, identifiers of its own, words for ears."""
    text = _cleaned(figure, title)
    text = re.sub(r'\bid="', f'id="{stem}-', text)
    text = re.sub(r"url\(#", f"url(#{stem}-", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{stem}-', text)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    width = round(float(box[1].split()[2]) * _PIXELS)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}" role="img" '
        f'aria-label="{escape(f"{title}. {spoken}")}" style="width: {width}px">'
    )
    return _painted(re.sub(r"<svg\b[^>]*>", opening, text, count=1), inline=True).strip() + "\n"


def _cleaned(figure: Figure, title: str) -> str:
    """Return matplotlib's SVG without what no reader sees: prolog, metadata, names that nothing points to."""
    text = rendered(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # The page's own style would be overruled by this one, for all its elements.
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>\s*", "", text)
    text = re.sub(r"font: (\S+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    pointed = set(re.findall(r"#([A-Za-z][\w.-]*)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in pointed else "", text)
    # Coordinates to a hundredth of a point; what is written as text stays as it is.
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: _COORDINATE.sub(r"\1", found[0]), text)
    text = re.sub(r"\n\s+", "\n", text)
    text = re.sub(r"(<svg\b[^>]*>)", rf"\1<title>{escape(title)}</title>", text, count=1)
    return re.sub(r"(<svg\b)", r'\1 stroke-linejoin="round" stroke-linecap="butt"', text, count=1)


def _painted(text: str, *, inline: bool) -> str:
    for stand_in, (name, light, _) in _PAINTS.items():
        text = text.replace(stand_in, f"var(--{name})" if inline else light)
    return text
