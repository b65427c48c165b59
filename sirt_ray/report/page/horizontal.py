"""Charts of rows with bars or points along an axis: what became of things, when, and how sure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sirt_ray.report.page.effort import Kind, Timeline
from sirt_ray.report.page.svg import COLOURS, Chart, drawing

VERDICTS = {"right": "green", "wrong": "orange", "unparseable": "muted"}
WORK: Mapping[Kind, str] = {"sampling": "blue", "training": "purple", "other": "muted"}
_ROW = 26
"""Pixels of a row of horizontal bars."""
_CHARACTER = 6.4
"""Pixels that a character of a label may take."""
_WIDE = 1040


def _across(axes: Axes) -> None:
    """Rows, with their figures along the x axis."""
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.spines["left"].set_visible(False)


def bars(
    name: str,
    title: str,
    axis: str,
    rows: Mapping[str, Mapping[str, int]],
    colours: Mapping[str, str],
) -> Chart:
    """A horizontal bar for each row, cut into parts."""
    longest = max((sum(parts.values()) for parts in rows.values()), default=1) or 1
    said = [
        f"{row}: {', '.join(f'{n:,} {part}' for part, n in of.items())}" for row, of in rows.items()
    ]
    left = 20 + _CHARACTER * max(map(len, rows), default=0)
    with drawing(name, f"{title}. {'; '.join(said)}.", _WIDE, 48 + _ROW * len(rows), left) as drawn:
        axes = drawn.axes
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set(ylim=(len(rows) - 0.45, -0.55), xlim=(0, longest * 1.02), xlabel=axis)
        _across(axes)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for place, parts in enumerate(rows.values()):
            begin = 0
            for part, n in parts.items():
                axes.barh(place, n, 0.62, begin, color=COLOURS[colours[part]])
                if n > 0.07 * longest:
                    axes.text(
                        begin + n / 2,
                        place,
                        f"{n:,}",
                        ha="center",
                        va="center",
                        color=COLOURS["panel"],
                        fontweight="bold",
                    )
                begin += n
    several = len(colours) > 1
    legend = tuple(("box", colour, part) for part, colour in colours.items()) if several else ()
    return Chart(title, drawn.svg, legend=legend)


def spans(found: Timeline) -> Chart:
    rows = list(dict.fromkeys(span.artifact for span in found.spans))
    unit, seconds = _unit(found.seconds)
    said = "; ".join(
        f"{span.artifact} {(span.end - span.begin) / seconds:.1f} {unit}, {span.how}"
        for span in found.spans
    )
    left = 20 + _CHARACTER * max(map(len, rows), default=0)
    with drawing("timeline", f"Timeline. {said}.", _WIDE, 48 + 21 * len(rows), left) as drawn:
        axes = drawn.axes
        axes.set_yticks(range(len(rows)), rows)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"time at work, {unit}")
        axes.set_xlim(0, max(found.seconds / seconds, 1e-3) * 1.01)
        _across(axes)
        for span in found.spans:
            begin, took = span.begin / seconds, max(span.end - span.begin, 0.3) / seconds
            faint = {} if span.how == "finished" else {"alpha": 0.4, "hatch": "////"}
            colour = COLOURS[WORK[span.kind]]
            axes.barh(rows.index(span.artifact), took, 0.66, begin, color=colour, **faint)
        for start in found.starts:
            axes.axvline(start / seconds, color=COLOURS["ink"], linestyle=":", linewidth=1.2)
    meant = {"sampling": "sampling, evaluation", "training": "training, reference"}
    legend = tuple(("box", colour, meant.get(kind, kind)) for kind, colour in WORK.items())
    return Chart("Timeline", drawn.svg, legend=legend)


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 120:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 7200 else ("hours", 3600.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    label: str
    value: float
    low: float
    high: float


def forest(
    name: str, title: str, axis: str, rows: Sequence[Estimate], limits: tuple[float, float]
) -> Chart:
    """A point with its interval in each row. Where the axis, by its `limits`, has its middle at
    zero, it is of differences: a point whose interval leaves out zero is filled."""
    signed = limits[0] == -limits[1]
    sign = "+" if signed else ""
    said = "; ".join(
        f"{row.label} {row.value:{sign}.1f} [{row.low:{sign}.1f}, {row.high:{sign}.1f}]"
        for row in rows
    )
    left = 20 + _CHARACTER * max((len(row.label) for row in rows), default=0)
    with drawing(name, f"{title}, {axis}: {said}.", 440, 58 + _ROW * len(rows), left) as drawn:
        axes = drawn.axes
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.75), xlim=limits, xlabel=axis)
        _across(axes)
        if signed:
            axes.axvline(0, color=COLOURS["ink"], linewidth=1.0)
        for place, row in enumerate(rows):
            sure = not signed or row.low > 0 or row.high < 0
            reach = np.array([[row.value - row.low], [row.high - row.value]]).clip(0)
            axes.errorbar(
                row.value,
                place,
                xerr=reach,
                fmt="o",
                color=COLOURS["blue"],
                markerfacecolor=COLOURS["blue"] if sure else COLOURS["panel"],
                capsize=3,
            )
            axes.annotate(
                f"{row.value:{sign}.1f}",
                (row.value, place),
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                bbox={"facecolor": COLOURS["panel"], "edgecolor": "none", "pad": 0.5},
            )
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return Chart(title, drawn.svg)
