"""The few figures that a reader looks for first."""

from collections.abc import Sequence
from dataclasses import dataclass

from sirt_ray.core.scoring import score_of
from sirt_ray.core.statistics import mean_paired, paired
from sirt_ray.report.answers import Answers, Task
from sirt_ray.report.evidence import TUNED, Labelled
from sirt_ray.report.page.effort import Effort, Timeline
from sirt_ray.report.runs import RunRecord
from sirt_ray.report.table import PROMPTS
from sirt_ray.types import PromptKind


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    value: str
    note: str


def facts(
    run: RunRecord, answers: Labelled[Answers], efforts: Sequence[Effort], found: Timeline
) -> list[Fact]:
    far = [name for name in run.job.data.evaluate if name not in run.job.in_domain]
    near = [name for name in run.job.data.evaluate if name in run.job.in_domain]
    shown = [
        _accuracy("In-domain accuracy", run, answers, near),
        _accuracy("Out-domain accuracy", run, answers, far),
        _time(efforts, found),
        _tokens(efforts),
    ]
    return [fact for fact in shown if fact is not None]


def _accuracy(
    name: str, run: RunRecord, answers: Labelled[Answers], benchmarks: Sequence[str]
) -> Fact | None:
    """Of the student that was kept last, over benchmarks, each counting the same."""
    kind: PromptKind = "cot" if "cot" in run.job.evaluation.prompts else "plain"
    tasks: list[Task] = [(benchmark, kind) for benchmark in benchmarks]
    if not tasks or run.kept not in answers:
        return None

    def mean(stage: str) -> float:
        right = [answers[stage][task].right.values() for task in tasks]
        return sum(score_of(sum(of), len(of)).accuracy for of in right) / len(right)

    value = f"{100 * mean(run.kept):.1f} %"
    before = TUNED if TUNED in answers else "baseline"
    if before not in answers or before == run.kept:
        untuned = f", {100 * mean('baseline'):.1f} % untuned" if "baseline" in answers else ""
        return Fact(name, value, f"{run.kept}, {PROMPTS[kind]}{untuned}")
    gain = mean_paired(
        [paired(answers[before][task].right, answers[run.kept][task].right) for task in tasks]
    )
    than = "instruction tuning" if before == TUNED else "the untuned student"
    return Fact(
        name,
        value,
        f"{run.kept}, {PROMPTS[kind]}: {100 * gain.difference:+.1f} points"
        f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] to {than}",
    )


def _time(efforts: Sequence[Effort], found: Timeline) -> Fact | None:
    seconds = found.seconds or sum(effort.seconds for effort in efforts)
    if not seconds:
        return None
    again = len(found.starts)
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
