"""The few figures that a reader looks for first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sirt_ray.report.page.effort import Effort, Timeline
from sirt_ray.report.runs import RunRecord
from sirt_ray.report.tables import (
    TRIGGERS,
    TUNED,
    Result,
    Row,
    Task,
    compare_rows,
    difference_interval,
    scores,
)
from sirt_ray.types import PromptKind


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    value: str
    note: str


def facts(
    run: RunRecord, stages: Mapping[str, Row[Result]], efforts: Sequence[Effort], worked: Timeline
) -> list[Fact]:
    """Return the facts of a run that are known; `stages` as in `RunReport`."""
    far = [name for name in run.job.data.evaluate if name not in run.job.in_domain]
    near = [name for name in run.job.data.evaluate if name in run.job.in_domain]
    shown = [
        _accuracy("In-domain accuracy", run, stages, near),
        _accuracy("Out-domain accuracy", run, stages, far),
        _time(efforts, worked),
        _tokens(efforts),
    ]
    return [fact for fact in shown if fact is not None]


def _accuracy(
    name: str, run: RunRecord, stages: Mapping[str, Row[Result]], benchmarks: Sequence[str]
) -> Fact | None:
    """Return the accuracy of the student that was kept last, a mean over `benchmarks`."""
    kind: PromptKind = "cot" if "cot" in run.job.evaluation.prompts else "plain"
    tasks: list[Task] = [(benchmark, kind) for benchmark in benchmarks]
    if not tasks or run.kept not in stages:
        return None
    means = {
        stage: f"{100 * scores(row, tasks)[0].accuracy:.1f} %" for stage, row in stages.items()
    }
    note = f"{run.kept}, {TRIGGERS[kind]}"
    before = TUNED if TUNED in stages else "baseline"
    if before not in stages or before == run.kept:
        untuned = f", {means['baseline']} untuned" if "baseline" in stages else ""
        return Fact(name, means[run.kept], f"{note}{untuned}")
    gain, low, high = difference_interval(compare_rows(stages[before], stages[run.kept], tasks))
    than = "instruction tuning" if before == TUNED else "the untuned student"
    return Fact(
        name, means[run.kept], f"{note}: {gain:+.1f} points [{low:+.1f}, {high:+.1f}] to {than}"
    )


def _time(efforts: Sequence[Effort], worked: Timeline) -> Fact | None:
    seconds = worked.seconds or sum(effort.seconds for effort in efforts)
    if not seconds:
        return None
    again = len(worked.starts)
    gpu_hours = [effort.gpu_hours for effort in efforts]
    known = sum(hours for hours in gpu_hours if hours is not None)
    note = f"{known:,.2f} GPU-hours" if known else "no GPU"
    if None in gpu_hours:
        note = "GPU-hours are not known in full"
    if again:
        note += f"; continued {'once' if again == 1 else f'{again} times'}"
    return Fact("Time at work", duration(seconds), note)


def _tokens(efforts: Sequence[Effort]) -> Fact | None:
    sampled = sum(effort.tokens or 0 for effort in efforts if effort.kind == "sampling")
    trained = sum(effort.tokens or 0 for effort in efforts if effort.kind == "training")
    if not sampled + trained:
        return None
    return Fact(
        "Tokens",
        large(sampled + trained),
        f"{large(sampled)} generated, {large(trained)} trained on",
    )


def duration(seconds: float) -> str:
    """`45 s`, `4 min 10 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def large(number: float) -> str:
    """`812`, `54.2 K`, `1.9 M`, `3.4 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"
