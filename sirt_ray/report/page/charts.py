"""The charts of a page. Each has a label that describes it; the numbers are in tables too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sirt_ray.report.page.curves import Curve, Training
from sirt_ray.report.page.effort import Kind, Timeline
from sirt_ray.report.page.pairs import PairFigures
from sirt_ray.report.page.svg import COLOURS, Chart, Mark, drawing
from sirt_ray.types import PromptKind, Score, Scores

KINDS: Mapping[PromptKind, tuple[str, str, str]] = {
    "cot": ("blue", "o", "-"),
    "plain": ("orange", "s", "--"),
}
"""Kind of prompt -> colour, marker, line style."""
_MIN_LABEL_GAP = 8.0
"""Points of accuracy between two labels."""

# Accuracy


def accuracy(scores: Mapping[str, Scores], benchmark: str, rolled_back: Sequence[str]) -> Chart:
    """Draw the stages of the student from left to right, with the teacher as a line."""
    stages = [stage for stage in scores if stage != "teacher" and benchmark in scores[stage]]
    teacher = scores.get("teacher", {}).get(benchmark, {})
    described: list[str] = []
    dodge = 0.02 * len(stages)
    with drawing(f"accuracy-{benchmark}", width=400) as drawn:
        axes = drawn.axes
        axes.set(ylim=(0, 100), ylabel="right answers, %", xlim=(-0.35, len(stages) - 0.45))
        axes.set_xticks(range(len(stages)), _short(stages))
        axes.set_xlabel("stage")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if "cot" in teacher:
            _teacher(axes, teacher["cot"])
            described.append(f"teacher, cot: {_percent(teacher['cot'])}")
        last: dict[str, tuple[float, float]] = {}
        for position, kind in enumerate(KINDS):
            points = [
                (at + dodge * (position - 0.5), stage, found[kind])
                for at, stage in enumerate(stages)
                if kind in (found := scores[stage][benchmark])
            ]
            if points:
                _stages(axes, points, kind, rolled_back)
                last[kind] = points[-1][0], 100 * points[-1][2].accuracy
                shown = ", ".join(f"{stage} {_percent(score)}" for _, stage, score in points)
                described.append(f"{kind}: {shown}")
        _values(axes, last)
        drawn.label = f"Accuracy on {benchmark} in percent. {'; '.join(described)}."
    return Chart(benchmark, drawn.svg)


def _stages(
    axes: Axes,
    points: Sequence[tuple[float, str, Score]],
    kind: PromptKind,
    rolled_back: Sequence[str],
) -> None:
    """Draw one kind of prompt. The line continues from the student that was kept."""
    name, marker, line = KINDS[kind]
    colour = COLOURS[name]
    kept = [(at, 100 * score.accuracy) for at, stage, score in points if stage not in rolled_back]
    axes.plot([at for at, _ in kept], [value for _, value in kept], line, color=colour)
    for at, stage, score in points:
        axes.errorbar(
            at,
            100 * score.accuracy,
            yerr=100 * score.stderr,
            fmt=marker,
            color=colour,
            markerfacecolor=COLOURS["panel"] if stage in rolled_back else colour,
            elinewidth=1.4,
            capsize=3,
        )


def _values(axes: Axes, last: Mapping[str, tuple[float, float]]) -> None:
    """Write the last accuracies next to their points, without overlap."""
    ordered = sorted(last.items(), key=lambda item: item[1][1])
    heights = [value for _, (_, value) in ordered]
    if len(heights) == 2 and heights[1] - heights[0] < _MIN_LABEL_GAP:
        middle = sum(heights) / 2
        heights = [middle - _MIN_LABEL_GAP / 2, middle + _MIN_LABEL_GAP / 2]
    lift = max(0.0, _MIN_LABEL_GAP / 2 - heights[0]) if heights else 0.0
    heights = [height + lift for height in heights]
    for (kind, (at, value)), height in zip(ordered, heights, strict=True):
        axes.annotate(
            f"{value:.1f}",
            (at, height),
            (9, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[KINDS[cast(PromptKind, kind)][0]],
            fontweight="bold",
        )


def _teacher(axes: Axes, score: Score) -> None:
    value, stderr = 100 * score.accuracy, 100 * score.stderr
    high = value + stderr > 90  # No space above it.
    axes.axhspan(value - stderr, value + stderr, color=COLOURS["muted"], alpha=0.15, linewidth=0)
    axes.axhline(value, color=COLOURS["muted"], linestyle=":", linewidth=1.4)
    axes.annotate(
        f"teacher {value:.1f}",
        (0.02, value - stderr if high else value + stderr),
        (0, -3 if high else 3),
        va="top" if high else "bottom",
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=COLOURS["muted"],
    )


def _percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f} ± {100 * score.stderr:.1f}"


def _short(stages: Sequence[str]) -> list[str]:
    """Return the names of stages, or of many only the rounds' numbers."""
    if len(stages) <= 5:
        return list(stages)
    return [stage.removeprefix("round_").replace("baseline", "base") for stage in stages]


# Pairs


def lengths(figures: PairFigures) -> Chart:
    """Draw how long the sides of a round's pairs are."""
    sides = {"chosen": ("blue", "-"), "rejected": ("orange", "--")}
    medians = {side: found.median for side, found in figures.sides.items()}
    described = ", ".join(f"{side} {median:.0f}" for side, median in medians.items())
    label = f"Lengths in {figures.unit} of the pairs of {figures.version}. Medians: {described}."
    with drawing(f"lengths-{figures.version}", label) as drawn:
        axes = drawn.axes
        axes.set(xlabel=f"length, {figures.unit}", ylabel="share of the side, %")
        for side, found in figures.sides.items():
            colour, line = COLOURS[sides[side][0]], sides[side][1]
            axes.stairs(found.shares, figures.edges, color=colour, fill=True, alpha=0.18)
            axes.stairs(found.shares, figures.edges, color=colour, linestyle=line, linewidth=1.6)
            axes.axvline(found.median, color=colour, linestyle=":", linewidth=1.2)
        axes.set_ylim(0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    title = f"{figures.version}: {figures.pairs:,} pairs"
    return Chart(title, drawn.svg, f"Medians, dotted: {described} {figures.unit}.")


# Training


_DRAWN: tuple[tuple[str, str, Mapping[str, Mark]], ...] = (
    (
        "Loss",
        "loss",
        {"loss": ("line", "blue", "training"), "validation_loss": ("dot", "orange", "held-out")},
    ),
    (
        "Reward margin",
        "chosen - rejected, nats",
        {
            "margin": ("line", "blue", "training"),
            "validation_margin": ("dot", "orange", "held-out"),
        },
    ),
    (
        "Log-probability of a completion",
        "log-probability, nats",
        {
            "chosen_logp": ("line", "blue", "chosen"),
            "rejected_logp": ("dash", "orange", "rejected"),
        },
    ),
)
"""Title, axis, and metric -> its mark."""


def training(found: Training) -> list[Chart]:
    """Draw the loss; of a preference loss its margin and log-probabilities too."""
    charts: list[Chart] = []
    for title, axis, marks in _DRAWN:
        curves = {name: found.curves[name] for name in marks if name in found.curves}
        if curves:
            charts.append(_curves(found.artifact, title, axis, curves, marks))
    return charts


def _curves(
    artifact: str,
    title: str,
    axis: str,
    curves: Mapping[str, Curve],
    marks: Mapping[str, Mark],
) -> Chart:
    described = "; ".join(
        f"{marks[name][2]} from {curve.smoothed[0]:.3g} to {curve.smoothed[-1]:.3g}"
        for name, curve in curves.items()
    )
    with drawing(f"{artifact}-{title}", f"{title} of {artifact}: {described}.") as drawn:
        axes = drawn.axes
        axes.set(xlabel="optimizer step", ylabel=axis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.02)
        for name, curve in curves.items():
            mark, colour = marks[name][0], COLOURS[marks[name][1]]
            if mark == "dot":
                axes.plot(curve.steps, curve.values, "o", color=colour)
                continue
            axes.plot(curve.steps, curve.values, color=colour, linewidth=0.7, alpha=0.35)
            line = "--" if mark == "dash" else "-"
            axes.plot(curve.steps, curve.smoothed, line, color=colour)
    return Chart(title, drawn.svg, legend=tuple(marks[name] for name in curves))


VERDICTS = {"right": "green", "wrong": "orange", "unparseable": "muted"}
WORK: Mapping[Kind, str] = {"sampling": "blue", "training": "purple", "other": "muted"}
_ROW = 26
"""Pixels of a row of horizontal bars."""
_CHARACTER = 6.4
"""Pixels for a character of a label."""
_WIDE = 1040
"""Pixels of a chart as wide as the page."""


def _across(axes: Axes) -> None:
    """Set up axes with rows down and their figures along x."""
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
    """Draw a horizontal bar for each row, divided into parts."""
    longest = max((sum(parts.values()) for parts in rows.values()), default=1) or 1
    described = [
        f"{row}: {', '.join(f'{n:,} {part}' for part, n in of.items())}" for row, of in rows.items()
    ]
    left = 20 + _CHARACTER * max(map(len, rows), default=0)
    with drawing(
        name, f"{title}. {'; '.join(described)}.", _WIDE, 48 + _ROW * len(rows), left
    ) as drawn:
        axes = drawn.axes
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set(ylim=(len(rows) - 0.45, -0.55), xlim=(0, longest * 1.02), xlabel=axis)
        _across(axes)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for position, parts in enumerate(rows.values()):
            begin = 0
            for part, n in parts.items():
                axes.barh(position, n, 0.62, begin, color=COLOURS[colours[part]])
                if n > 0.07 * longest:
                    axes.text(
                        begin + n / 2,
                        position,
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
    """Draw when each artifact was being built."""
    rows = list(dict.fromkeys(span.artifact for span in found.spans))
    unit, seconds = _unit(found.seconds)
    described = "; ".join(
        f"{span.artifact} {(span.end - span.begin) / seconds:.1f} {unit}, {span.outcome}"
        for span in found.spans
    )
    left = 20 + _CHARACTER * max(map(len, rows), default=0)
    with drawing("timeline", f"Timeline. {described}.", _WIDE, 48 + 21 * len(rows), left) as drawn:
        axes = drawn.axes
        axes.set_yticks(range(len(rows)), rows)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"time at work, {unit}")
        axes.set_xlim(0, max(found.seconds / seconds, 1e-3) * 1.01)
        _across(axes)
        for span in found.spans:
            begin, took = span.begin / seconds, max(span.end - span.begin, 0.3) / seconds
            faint = {} if span.outcome == "finished" else {"alpha": 0.4, "hatch": "////"}
            colour = COLOURS[WORK[span.kind]]
            axes.barh(rows.index(span.artifact), took, 0.66, begin, color=colour, **faint)
        for start in found.starts:
            axes.axvline(start / seconds, color=COLOURS["ink"], linestyle=":", linewidth=1.2)
    names = {"sampling": "sampling, evaluation", "training": "training, reference"}
    legend = tuple(("box", colour, names.get(kind, kind)) for kind, colour in WORK.items())
    return Chart("Timeline", drawn.svg, legend=legend)


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 120:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 7200 else ("hours", 3600.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A row of a forest plot."""

    label: str
    value: float
    low: float
    high: float


def forest(
    name: str, title: str, axis: str, rows: Sequence[Estimate], limits: tuple[float, float]
) -> Chart:
    """Draw a point with its interval in each row. If `limits` are symmetric about zero, the values
    are differences: a point whose interval excludes zero is filled."""
    signed = limits[0] == -limits[1]
    sign = "+" if signed else ""
    described = "; ".join(
        f"{row.label} {row.value:{sign}.1f} [{row.low:{sign}.1f}, {row.high:{sign}.1f}]"
        for row in rows
    )
    left = 20 + _CHARACTER * max((len(row.label) for row in rows), default=0)
    with drawing(name, f"{title}, {axis}: {described}.", 440, 58 + _ROW * len(rows), left) as drawn:
        axes = drawn.axes
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.75), xlim=limits, xlabel=axis)
        _across(axes)
        if signed:
            axes.axvline(0, color=COLOURS["ink"], linewidth=1.0)
        for position, row in enumerate(rows):
            sure = not signed or row.low > 0 or row.high < 0
            reach = np.array([[row.value - row.low], [row.high - row.value]]).clip(0)
            axes.errorbar(
                row.value,
                position,
                xerr=reach,
                fmt="o",
                color=COLOURS["blue"],
                markerfacecolor=COLOURS["blue"] if sure else COLOURS["panel"],
                capsize=3,
            )
            axes.annotate(
                f"{row.value:{sign}.1f}",
                (row.value, position),
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                bbox={"facecolor": COLOURS["panel"], "edgecolor": "none", "pad": 0.5},
            )
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return Chart(title, drawn.svg)
