"""Runs, comparisons and studies -> HTML pages."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirt_ray.artifacts.store import RECORD, partial_of
from sirt_ray.core.statistics import over_seeds
from sirt_ray.report.compare import CompareReport, Comparison
from sirt_ray.report.document import Document
from sirt_ray.report.funnel import by_artifact, is_dropped
from sirt_ray.report.journal import json_lines
from sirt_ray.report.page import charts
from sirt_ray.report.page.charts import Estimate
from sirt_ray.report.page.curves import Training, read_training
from sirt_ray.report.page.effort import Effort, Timeline, duration, efforts, large, timeline
from sirt_ray.report.page.examples import read_examples
from sirt_ray.report.page.pairs import PairFigures, read_pairs
from sirt_ray.report.page.render import render
from sirt_ray.report.page.svg import Chart
from sirt_ray.report.records import RunRecord, read_run
from sirt_ray.report.run import report_runs
from sirt_ray.report.tables import (
    PROMPTS,
    TRIGGERS,
    TUNED,
    Result,
    Row,
    Task,
    benchmarks,
    compare_rows,
    difference_interval,
    scores,
)
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import read_json
from sirt_ray.training.workdir import WorkDir
from sirt_ray.types import PromptKind


def document_page(document: Document) -> str:
    """Return a page of tables only."""
    return render("document.html", document=document, sections=[])


def compare_page(report: CompareReport) -> str:
    """Return a page of charts and tables."""
    comparison = report.comparison
    sections = [
        (
            f"Accuracy and differences, {PROMPTS[kind]}",
            [*_forests(comparison, kind, differences=False)],
            [*_forests(comparison, kind, differences=True)],
        )
        for kind in comparison.prompts
    ]
    return render("document.html", document=report.document, sections=sections)


def run_page(run_dir: Path) -> str:
    """Return the page of one run. Raises DataError as `read_run`, and if a file cannot be read."""
    run = read_run(run_dir)
    report = report_runs([run])
    object_store.pull(run_dir / "events.jsonl")
    events = json_lines(run_dir / "events.jsonl")
    records = _records(run)
    trainings = _trainings(run)
    worked = timeline(events.rows)
    took = efforts(
        run.counts,
        {name: float(record.get("seconds", 0.0)) for name, record in records.items()},
        {training.artifact: training.mfu for training in trainings if training.mfu is not None},
        _trainer_gpus(run),
    )
    pairs = _pairs(run)
    broken = events.broken + sum(training.broken for training in trainings)
    return render(
        "run.html",
        run=run,
        report=report,
        facts=_facts(run, report.stages, took, worked),
        accuracy=_accuracy_charts(run),
        outcomes=_outcome_charts(run),
        funnel=by_artifact(run.counts),
        is_dropped=is_dropped,
        pairs=pairs,
        lengths=[charts.lengths(of_round) for of_round in pairs if of_round.sides],
        trainings=[(training, charts.training(training)) for training in trainings],
        efforts=took,
        timeline=charts.spans(worked) if worked.spans else None,
        restarts=len(worked.starts),
        examples=read_examples(run),
        broken=broken,
        config=(run_dir / "config.yaml").read_text(encoding="utf-8"),
        versions=_versions(records),
        command=_command(run),
        duration=duration,
        large=large,
    )


def _command(run: RunRecord) -> str:
    """Return the command that repeats the run in another folder."""
    config = shlex.quote(f"{object_store.to_uri(run.path)}/config.yaml")
    return f"sirt run {config} --set name={run.job.name}-again"


def _records(run: RunRecord) -> dict[str, dict[str, Any]]:
    return {name: read_json(run.path / name / RECORD) or {} for name in run.counts}


def _versions(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return each package with its version, or with several if stages were made with several."""
    found: dict[str, dict[str, None]] = {}
    for record in records.values():
        for package, version in record.get("versions", {}).items():
            found.setdefault(package, {})[str(version)] = None
    return [(package, ", ".join(versions)) for package, versions in found.items()]


def _trainings(run: RunRecord) -> list[Training]:
    """Return the trainings of finished students, and of one that is being trained."""
    students = [name for name in (*run.counts, *run.missing) if name.endswith("/student")]
    files = {name: _metrics(run.path / name) for name in students}
    read = [read_training(file, name) for name, file in files.items()]
    return [training for training in read if training is not None]


def _metrics(student: Path) -> Path:
    finished = student / "metrics.jsonl"
    object_store.pull(finished)
    if finished.exists():
        return finished
    file = WorkDir(partial_of(student)).metrics
    object_store.pull(file)
    return file


def _trainer_gpus(run: RunRecord) -> float | None:
    """Return the GPUs of all workers together, as the job or the sampling on GPUs implies."""
    trainer = run.job.resources.trainer
    if trainer.gpus_per_worker is None:
        sampled = [
            counts.get("sampling", counts).get("usage", {}) for counts in run.counts.values()
        ]
        on_gpus = any(usage.get("gpu_seconds") for usage in sampled)
        return float(trainer.num_workers) if on_gpus else 0.0
    return trainer.num_workers * trainer.gpus_per_worker


def _pairs(run: RunRecord) -> list[PairFigures]:
    rounds = [name for name in run.counts if name.endswith("/pairs")]
    return [
        read_pairs(object_store.fetch(run.path / name, RECORD), name.removesuffix("/pairs"))
        for name in rounds
    ]


def _accuracy_charts(run: RunRecord) -> list[tuple[str, list[Chart]]]:
    """Return a chart for each benchmark, in-domain and out-domain."""
    if not run.scores:
        return []
    near = [name for name in run.job.data.evaluate if name in run.job.in_domain]
    far = [name for name in run.job.data.evaluate if name not in run.job.in_domain]
    return [
        (domain, [charts.accuracy(run.scores, name, run.rolled_back) for name in names])
        for domain, names in (("In-domain", near), ("Out-domain", far))
        if names
    ]


def _outcome_charts(run: RunRecord) -> list[Chart]:
    """Return charts of the outcomes of completions and of training questions."""
    verdicts: dict[str, dict[str, int]] = {}
    questions: dict[str, dict[str, int]] = {}
    for name, counts in run.counts.items():
        made = counts.get("sampling") if name == "demonstrations" else counts
        if made and name.endswith(("demonstrations", "/samples")):
            verdicts[name] = {verdict: made[verdict] for verdict in charts.VERDICTS}
        if name == "demonstrations":
            questions["questions asked"] = {"questions": counts["questions"]}
            questions["demonstrated"] = {"questions": counts["kept"]}
        elif name.endswith("/pairs"):
            questions[f"{name.removesuffix('/pairs')} sampled"] = {"questions": counts["questions"]}
            paired = {"questions": counts["questions_paired"]}
            questions[f"{name.removesuffix('/pairs')} paired"] = paired
    found: list[Chart] = []
    if verdicts:
        title = "Completions by the verdict on their answer"
        found.append(charts.bars("verdicts", title, "completions", verdicts, charts.VERDICTS))
    if questions:
        colours = {"questions": "blue"}
        title = "Training questions that went on"
        found.append(charts.bars("questions", title, "questions", questions, colours))
    return found


# The few figures that a reader looks for first


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure at the top of a page."""

    name: str
    value: str
    note: str


def _facts(
    run: RunRecord, stages: Mapping[str, Row[Result]], efforts: Sequence[Effort], worked: Timeline
) -> list[Fact]:
    """Return the facts of a run that are known; `stages` as in `RunReport`."""
    far = [name for name in run.job.data.evaluate if name not in run.job.in_domain]
    near = [name for name in run.job.data.evaluate if name in run.job.in_domain]
    shown = [
        _accuracy_fact("In-domain accuracy", run, stages, near),
        _accuracy_fact("Out-domain accuracy", run, stages, far),
        _time_fact(efforts, worked),
        _tokens_fact(efforts),
    ]
    return [fact for fact in shown if fact is not None]


def _accuracy_fact(
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


def _time_fact(efforts: Sequence[Effort], worked: Timeline) -> Fact | None:
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


def _tokens_fact(efforts: Sequence[Effort]) -> Fact | None:
    sampled = sum(effort.tokens or 0 for effort in efforts if effort.kind == "sampling")
    trained = sum(effort.tokens or 0 for effort in efforts if effort.kind == "training")
    if not sampled + trained:
        return None
    return Fact(
        "Tokens",
        large(sampled + trained),
        f"{large(sampled)} generated, {large(trained)} trained on",
    )


# The charts of a comparison


def _forests(comparison: Comparison, kind: PromptKind, differences: bool) -> list[Chart]:
    """Return a chart for each benchmark, all with the same axis."""
    against = comparison.against
    found: dict[str, list[Estimate]] = {}
    for benchmark in benchmarks(comparison.rows):
        rows: list[Estimate] = []
        for row in comparison.rows:
            if not differences:
                rows += _accuracy_estimate(row, (benchmark, kind))
            elif row is not against and row.role not in ("teacher", "baseline"):
                pairs = compare_rows(against, row, [(benchmark, kind)])
                rows += [Estimate(row.label, *difference_interval(pairs))] if pairs else []
        if rows:
            found[benchmark] = rows
    ends = [abs(end) for rows in found.values() for row in rows for end in (row.low, row.high)]
    furthest = 1.1 * max(ends, default=0.0) + 1.0
    limits = (-furthest, furthest) if differences else (-2.0, 102.0)
    axis = f"difference to {against.label}, points" if differences else "right answers, %"
    name = "difference" if differences else "accuracy"
    return [
        charts.forest(f"{name}-{benchmark}-{kind}", benchmark, axis, rows, limits)
        for benchmark, rows in found.items()
    ]


def _accuracy_estimate(row: Row[Result], task: Task) -> list[Estimate]:
    """Return an accuracy ± one standard error, over questions of one seed or over several seeds;
    nothing if a seed has none."""
    found = scores(row, [task])
    if not found or len(found) != len(row.seeds):
        return []
    values = [100 * score.accuracy for score in found]
    mean = sum(values) / len(values)
    half = 100 * found[0].stderr if len(found) == 1 else over_seeds(values).stderr
    return [Estimate(row.label, mean, mean - half, mean + half)]
