"""Plots as SVG: in a file of their own, light on white, or inline, in the paints of the page they stand in.

Matplotlib draws in the light paints. One pass over its SVG drops what no reader sees and, inline, names each
paint as a CSS variable, so that a picture follows the page into the dark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from xml.etree import ElementTree as ET

from matplotlib.figure import Figure

from tpsprune.report.pictures import render

WIDTH: Final = 5.7
"""Inches of a plot: its words can be read on a desk, and on a telephone without scrolling."""

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#d5d9df", "#ffffff"
# Okabe and Ito's palette, its yellow darkened to be seen on white; then the same, lighter, for the dark.
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b37400", "#2b9fd9", "#8a7a00")
_SERIES_DARK: Final = ("#56b4e9", "#ff8a3d", "#2fc79a", "#e08fc0", "#e69f00", "#9ad5f5", "#f0e442")
_PAINTS: Final = {
    INK: ("ink", "#e6e8eb"),
    MUTED: ("muted", "#a3acb8"),
    GRID: ("grid", "#3a424d"),
    PAPER: ("paper", "#171b21"),
    **{
        light: (f"series-{place}", dark)
        for place, (light, dark) in enumerate(zip(SERIES, _SERIES_DARK, strict=True))
    },
}
"""By the paint on white its name, and the paint in the dark."""
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_PIXELS: Final = 1.5
"""Pixels of the page for a point of a figure: text then is as large as the page's small print."""

_SVG, _HREF = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
_FONT: Final = "system-ui, sans-serif"
_LONG_NUMBER: Final = re.compile(r"(\d+\.\d{2})\d+")
_POINTER: Final = re.compile(r"url\(#([^)]+)\)")


def paint_of(place: int) -> str:
    """Return the paint of the arm at ``place`` of the design; the first, the baseline, is drawn in ink."""
    return INK if place == 0 else SERIES[(place - 1) % len(SERIES)]


def marker_of(place: int) -> str:
    """Return the marker of the arm at ``place``: colours alone do not distinguish arms."""
    return _MARKERS[place % len(_MARKERS)]


def paint_variables(*, dark: bool) -> str:
    """Return the paints as CSS declarations, for the light or for the dark."""
    return " ".join(f"--{name}: {night if dark else light};" for light, (name, night) in _PAINTS.items())


def make_canvas(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def add_axes(figure: Figure, *place: Any, grid: str = "", **more: Any) -> Any:
    """Return axes in the report's paints, with lines to read values off along ``grid``: x, y or both."""
    axes = figure.add_subplot(*place, **more)
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=9.5, colors=MUTED, labelcolor=INK)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set(color=INK, fontsize=10)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.7)
    return axes


def add_key(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """Add a key below the axes: next to them it would take their width on a telephone."""
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


def energy_unit(values: Sequence[float]) -> tuple[float, str]:
    """Return by what to divide joules for an axis, and the unit then.

    >>> energy_unit([1200.0, 3.0]), energy_unit([0.002]), energy_unit([])
    ((1000.0, 'kJ'), (0.001, 'mJ'), (1.0, 'J'))
    """
    largest = max((abs(value) for value in values), default=0.0)
    for size, unit in ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ")):
        if largest >= size:
            return size, unit
    return (1e-6, "µJ") if largest else (1.0, "J")


def standalone_svg(figure: Figure, title: str) -> str:
    """Return the figure as a file of its own, light on white."""
    return _to_text(_clean(figure, title))


def inline_svg(figure: Figure, stem: str, title: str, spoken: str) -> str:
    """Return the figure to stand in a page: paints as variables, identifiers of its own, words for ears."""
    root = _clean(figure, title)
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{stem}-{element.get('id')}")
        for key, value in element.attrib.items():
            if key in {_HREF, "href"}:
                element.set(key, f"#{stem}-{value[1:]}")
            elif key == "style":
                element.set(key, "; ".join(_declare(each) for each in value.split("; ")))
            elif value in _PAINTS:
                element.set(key, f"var(--{_PAINTS[value][0]})")
            element.set(key, _POINTER.sub(rf"url(#{stem}-\1)", element.attrib[key]))
    width = round(float(root.attrib["viewBox"].split()[2]) * _PIXELS)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": f"{title}. {spoken}", "style": f"width: {width}px"}
    return _to_text(root)


def _declare(declaration: str) -> str:
    """Return a declaration of a style with its paint, if it has one of ours, as a variable of the page."""
    prop, colon, value = declaration.partition(": ")
    return f"{prop}: var(--{_PAINTS[value][0]})" if value in _PAINTS else prop + colon + value


def _clean(figure: Figure, title: str) -> ET.Element:
    """Return matplotlib's SVG without what no reader sees: metadata, styles, names that nothing points to."""
    root = ET.fromstring(render(figure, "svg"))  # noqa: S314 - matplotlib has just written it
    pointed = {value[1:] for each in root.iter() if (value := each.get(_HREF) or each.get("href"))}
    pointed |= {
        name for each in root.iter() for value in each.attrib.values() for name in _POINTER.findall(value)
    }
    for parent in list(root.iter()):
        for child in list(parent):
            # The style would be the page's own, for all its elements.
            empty = child.tag == f"{{{_SVG}}}defs" and all(each.tag == f"{{{_SVG}}}style" for each in child)
            if empty or child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}:
                parent.remove(child)
    for element in root.iter():
        element.tail = "\n"
        element.text = element.text if (element.text or "").strip() else None
        if element.get("id") not in pointed:
            element.attrib.pop("id", None)
        for key in {"d", "x", "y", "transform"} & set(element.attrib):
            # Coordinates to a hundredth of a point.
            element.set(key, _LONG_NUMBER.sub(r"\1", element.attrib[key]))
        if "font" in element.get("style", ""):
            element.set(
                "style", re.sub(r"font: (\S+px) [^;]*", rf"font: \1 {_FONT}", element.attrib["style"])
            )
    heading = ET.Element(f"{{{_SVG}}}title")
    heading.text, heading.tail = title, "\n"
    root.insert(0, heading)
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    return root


def _to_text(root: ET.Element) -> str:
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ET.tostring(root, encoding="unicode")
