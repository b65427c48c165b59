"""matplotlib figures -> SVG that is part of a page: no scripts, text as text, colours from CSS.

What is drawn in one of `COLOURS` becomes `var(--name)` in the page, so a chart follows its light or
dark scheme; `templates/page.css` has the values.
"""

import io
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_NAMES = ("ink", "muted", "grid", "panel", "blue", "orange", "green", "purple")
COLOURS = {name: f"#0b0b{number:02x}" for number, name in enumerate(_NAMES, start=1)}
"""Name of a CSS variable -> the colour that represents it in a figure."""
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 10.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10.5,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "xtick.color": COLOURS["muted"],
    "xtick.labelsize": 10.5,
    "ytick.color": COLOURS["muted"],
    "ytick.labelsize": 10.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
}
_USED = re.compile(r"#([\w.-]+)")


Mark = tuple[str, str, str]
"""An entry of a legend: the mark's shape, its colour, its name."""


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    svg: Markup
    note: str = ""
    legend: tuple[Mark, ...] = ()


@dataclass(slots=True)
class Drawing:
    """A figure that is being drawn; `svg` is set when it is done."""

    figure: Figure
    axes: Axes
    label: str
    """A description of the chart, for screen readers."""
    svg: Markup = field(default=Markup(""))


@contextmanager
def drawing(
    name: str, label: str = "", width: float = 360, height: float = 240, left: float = 50
) -> Generator[Drawing]:
    """Yield axes to draw on, with sizes in pixels of a page (points of the figure).

    `name`: unique in a page. `left`: space for the labels of the y axis.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes(
            (left / width, 40 / height, 1 - (left + 14) / width, 1 - 48 / height)
        )
        drawn = Drawing(figure, axes, label)
        yield drawn
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
        drawn.svg = _inline(buffer.getvalue(), drawn.label)


def _inline(svg: bytes, label: str) -> Markup:
    root = ElementTree.fromstring(svg)
    text = svg.decode()
    used = set(_USED.findall(" ".join(re.findall(r'href="[^"]*"|url\([^)]*\)', text))))
    _clean(root, used)
    shape = root.get("viewBox", "").split()
    root.attrib.clear()
    root.attrib |= {
        "viewBox": " ".join(shape),
        "width": shape[2],
        "height": shape[3],
        "role": "img",
        "aria-label": label,
        "class": "chart",
    }
    return Markup(_coloured(ElementTree.tostring(root, encoding="unicode")))


def _clean(element: ElementTree.Element, used: set[str]) -> None:
    """Remove namespaces, metadata, style sheets, which would apply to the whole page, and ids that
    nothing refers to, which several charts share."""
    element.tag = _local(element.tag)
    for key in list(element.attrib):
        value = element.attrib.pop(key)
        if key != "id" or value in used:
            element.set(_local(key), value)
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _clean(child, used)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _coloured(text: str) -> str:
    for name, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{name})")
    return text
