"""The curves of a training, from its `metrics.jsonl`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sirt_ray.report.journal import json_lines

MAX_POINTS = 300
"""Points of a curve: more cannot be distinguished in a chart."""
_SMOOTHED = 20
"""A smoothed value is the mean over a twentieth of the points."""
_NAMES = (
    "loss",
    "margin",
    "accuracy",
    "chosen_logp",
    "rejected_logp",
    "validation_loss",
    "validation_margin",
    "validation_accuracy",
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over the steps of a training."""

    steps: tuple[float, ...]
    """Optimizer steps from 1; if there are more than MAX_POINTS, means of neighbours."""
    values: tuple[float, ...]
    smoothed: tuple[float, ...]
    """The running mean over neighbours, as long as `values`."""


@dataclass(frozen=True, slots=True)
class Training:
    """The metrics of a training so far."""

    artifact: str
    """`round_01/student`."""
    step: int
    """The last one."""
    total_steps: int
    curves: Mapping[str, Curve]
    """Metric, as in `metrics.jsonl` -> its curve, without metrics that the training does not have
    and values that are not finite."""
    mfu: float | None
    """Model FLOPs utilisation, mean over the steps; None if it was not measured."""
    broken: int
    """Number of lines that cannot be read."""


def read_training(file: Path, artifact: str) -> Training | None:
    """Read a training's metrics; None if there is no line yet."""
    lines = json_lines(file)
    rows = [row for row in lines.rows if isinstance(row.get("step"), int)]
    if not rows:
        return None
    curves = {name: curve for name in _NAMES if (curve := _curve(rows, name)) is not None}
    mfu = [value for _, value in _points(rows, "mfu")]
    return Training(
        artifact,
        rows[-1]["step"],
        max(int(row.get("total_steps") or 0) for row in rows),
        curves,
        fmean(mfu) if mfu else None,
        lines.broken + len(lines.rows) - len(rows),
    )


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [
        (row["step"], float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> Curve | None:
    points = _points(rows, name)
    if not points:
        return None
    every = -(-len(points) // MAX_POINTS)
    groups = [points[first : first + every] for first in range(0, len(points), every)]
    values = [fmean(value for _, value in group) for group in groups]
    return Curve(
        tuple(fmean(step for step, _ in group) for group in groups),
        tuple(values),
        tuple(_smoothed(values)),
    )


def _smoothed(values: Sequence[float]) -> list[float]:
    half = len(values) // _SMOOTHED // 2
    return [
        fmean(values[max(0, middle - half) : middle + half + 1]) for middle in range(len(values))
    ]
