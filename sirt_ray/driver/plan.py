"""What a job or a study would do: its artifacts and their size, the placement of its parts on a
cluster, and how long it takes.

Sizes follow from the settings. Placement and memory are computed by `planning/`; times come from
finished artifacts of the same kind and model, and without these from `planning/speed.py`.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from sirt_ray.artifacts.store import RECORD, ArtifactStatus
from sirt_ray.benchmarks.base import CustomSource
from sirt_ray.benchmarks.registry import benchmarks_of
from sirt_ray.config.job import JobConfig
from sirt_ray.config.study import Study
from sirt_ray.config.training import RULES, TrainingConfig
from sirt_ray.driver import placement_table, run
from sirt_ray.errors import ResourceError
from sirt_ray.planning import models, remedies, resources, speed
from sirt_ray.planning.clusters import Cluster
from sirt_ray.planning.placement import Placement, Role, Setup, plan_placement, problem
from sirt_ray.planning.speed import SamplingLoad, TimeEstimate
from sirt_ray.quickstart import assets

_FORMULAS = """\
Each is a most, from the settings alone: every question gets its demonstration, its right answers
and its pairs, and no round is undone.
  completions   questions x completions asked of each; evaluations x prompts
  examples      tuning: demonstrations; a round: questions x pairs.max_per_question x rules
  questions     of a split whose size the settings do not say: as published, with the held-out ones
  steps         examples, less those held out, / batch_size x epochs, max_steps at most\
"""


@dataclass
class Work:
    """The work that artifacts take, at most. `unsized`: splits without a size in the settings."""

    completions: int = 0
    examples: int = 0
    steps: int = 0
    unsized: set[str] = field(default_factory=set[str])

    def add(self, other: "Work") -> None:
        self.completions += other.completions
        self.examples += other.examples
        self.steps += other.steps
        self.unsized |= other.unsized


Artifacts = Sequence[tuple[JobConfig, ArtifactStatus]]
Distinct = Mapping[Path, tuple[JobConfig, ArtifactStatus]]
"""Path of an artifact -> a job that it is made for, and its status."""


def show_study(console: Console, study: Study) -> Distinct:
    """Print the study's axes, its artifacts by kind, and what is left to do; return the artifacts.
    Raises ArtifactError if a finished artifact is stale."""
    distinct: dict[Path, tuple[JobConfig, ArtifactStatus]] = {}
    total_by_kind: Counter[str] = Counter()
    finished = 0
    for trial in study.trials:
        planned = run.dry_run(trial.job, study.folder / trial.name, study.shared_dir)
        planned.raise_if_stale()
        finished += planned.finished
        for status in planned.statuses:
            total_by_kind[_kind(status.name)] += 1
            distinct.setdefault(status.path, (trial.job, status))
    for axis, labels in study.axes.items():
        console.print(f"{axis}: {', '.join(labels)}", highlight=False, soft_wrap=True)
    console.print(_table(total_by_kind, distinct))
    missing = [(job, state) for job, state in distinct.values() if state.state != "finished"]
    console.print(
        f"{len(study.trials)} trials, {finished} finished; {sum(total_by_kind.values())} artifacts,"
        f" of which {len(distinct)} are distinct, {len(missing)} of them to be made",
        soft_wrap=True,
    )
    total = Work()
    for job, state in missing:
        total.add(work_of(job, state.name))
    if total.unsized:
        console.print(
            "The sizes of these are not in the settings, so nothing is counted for them:"
            f" {', '.join(sorted(total.unsized))}",
            soft_wrap=True,
        )
    console.print(_FORMULAS, style="dim", highlight=False, soft_wrap=True)
    if (time := _time(distinct.values())) is not None:
        console.print(time, soft_wrap=True)
    console.print(f"Study folder: {study.folder.resolve()}", soft_wrap=True)
    return distinct


def _table(
    kinds: Iterable[str], distinct: Mapping[Path, tuple[JobConfig, ArtifactStatus]]
) -> Table:
    table = Table(
        title="Artifacts of this study, each once",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
    )
    table.add_column("artifact")
    for column in ("distinct", "done", "to make"):
        table.add_column(column, justify="right")
    for column in ("completions", "examples", "steps"):
        table.add_column(f"{column}\nat most", justify="right")
    for kind in kinds:
        of_kind = [(job, state) for job, state in distinct.values() if _kind(state.name) == kind]
        missing = [(job, state) for job, state in of_kind if state.state != "finished"]
        work = Work()
        for job, state in missing:
            work.add(work_of(job, state.name))
        numbers = [len(of_kind), len(of_kind) - len(missing), len(missing)]
        amounts = [work.completions, work.examples, work.steps]
        table.add_row(kind, *(f"{n:,}" for n in numbers), *(f"{n:,}" if n else "" for n in amounts))
    return table


def _kind(name: str) -> str:
    return name.rsplit("/", maxsplit=1)[-1]


def work_of(job: JobConfig, name: str) -> Work:
    """Return the work that the artifact of this name takes, at most."""
    version, _, kind = name.rpartition("/")
    work = Work()
    if kind == "demonstrations":
        questions = _training(job, job.data.train, None, work)
        work.completions = questions * job.demonstrations.samples_per_question
        if not job.teacher.answers:
            work.completions = 0
    elif kind == "evaluation":
        test = sum(_test_questions(job, work))
        work.completions = test * len(job.evaluation.prompts)
        if version != "teacher":
            work.completions += job.data.num_validation * len(job.data.train)
    elif kind == "samples":
        refine = job.at_round(_round(version)).refine
        questions = _learned(job, refine.tasks, refine.max_questions, work)
        work.completions = questions * (refine.num_cot + refine.num_plain)
    elif kind == "student" and _round(version) == 0:
        work.examples = _learned(job, job.tune.tasks, job.tune.max_demonstrations, work)
        work.steps = _steps(work.examples, job.tune)
    elif kind == "student":
        refine = job.at_round(_round(version)).refine
        pairs = refine.pairs
        questions = _learned(job, refine.tasks, refine.max_questions, work)
        work.examples = questions * pairs.max_per_question * len(RULES.get(pairs.rule, ("own",)))
        if pairs.rule == "right":
            work.examples = questions * min(pairs.max_per_question, refine.num_cot)
            if pairs.with_demonstrations:
                work.examples += _learned(job, job.tune.tasks, job.tune.max_demonstrations, work)
        work.steps = _steps(work.examples, refine)
    return work


def _round(version: str) -> int:
    return int(version.rpartition("_")[2])


def _learned(job: JobConfig, tasks: Sequence[str] | None, most: int | None, work: Work) -> int:
    """Training questions that are learned from, at most `most` of each task."""
    return _training(job, tasks or job.data.train, most, work, job.data.fraction)


def _training(
    job: JobConfig, tasks: Sequence[str], most: int | None, work: Work, fraction: float = 1.0
) -> int:
    total, known = 0, benchmarks_of(job.data)
    for name in tasks:
        benchmark = known[name]
        size = job.data.num_train or benchmark.default_num_train
        if not size and not isinstance(benchmark.source, CustomSource):
            size = benchmark.source.num_train
        if not size:
            work.unsized.add(f"{name} train")
            continue
        total += min(math.ceil(size * fraction), most or size)
    return total


def _test_questions(job: JobConfig, work: Work) -> Iterator[int]:
    known = benchmarks_of(job.data)
    for name in job.data.evaluate:
        source = known[name].source
        size = job.data.num_test
        if not size and not isinstance(source, CustomSource):
            size = source.num_test
        if not size:
            work.unsized.add(f"{name} test")
        yield size or 0


def _steps(examples: int, config: TrainingConfig) -> int:
    trained = examples * (1 - config.validation_fraction)
    steps = math.ceil(math.ceil(trained / config.batch_size) * config.epochs)
    return min(steps, config.max_steps or steps)


def _time(artifacts: Iterable[tuple[JobConfig, ArtifactStatus]]) -> str | None:
    """Return how long the missing artifacts take, by finished ones of each kind; None without
    any."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    missing: Counter[str] = Counter()
    for _, state in artifacts:
        if state.state == "finished":
            record = json.loads((state.path / RECORD).read_text())
            took[_kind(state.name)].append(record["seconds"])
        else:
            missing[_kind(state.name)] += 1
    if not took or not missing:
        return None
    means = {kind: sum(seconds) / len(seconds) for kind, seconds in took.items()}
    parts = [f"{n} {kind} x {means[kind]:.0f} s" for kind, n in missing.items() if kind in means]
    unknown = [kind for kind in missing if kind not in means]
    hours = sum(n * means.get(kind, 0.0) for kind, n in missing.items()) / 3600
    return (
        f"As long as finished ones of their kind took on average: {' + '.join(parts)} ="
        f" {hours:.1f} h, with starting engines where it was needed"
        + (f"; nothing is known of {', '.join(unknown)}" if unknown else "")
    )


def show_placement(
    console: Console, jobs: Sequence[JobConfig], artifacts: Artifacts, cluster: Cluster
) -> None:
    """Print the placement of each different (teacher, student, resources), and the time that all
    missing artifacts take. Raises one ResourceError for all that does not fit."""
    if cluster.described:
        jobs = [_without_node_constraints(job) for job in jobs]
        artifacts = [(_without_node_constraints(job), state) for job, state in artifacts]
    placed = {key: (setup, plan_placement(setup, cluster)) for key, setup in setups(jobs).items()}
    problems: dict[str, None] = {}
    for setup, placement in placed.values():
        placement_table.show(console, setup, placement)
        problems |= dict.fromkeys(_problems(setup, cluster))
    if problems:
        raise ResourceError("\n".join(problems))
    at_once = min(resources.runs_at_once(job.resources, cluster.resources) for job in jobs)
    at_once = min(at_once, len(jobs))
    hours = estimates(artifacts, [placed[_key(job)] for job, _ in artifacts])
    placement_table.show_time(console, cluster, hours, at_once)


def _without_node_constraints(job: JobConfig) -> JobConfig:
    """Return the job without the resources and labels by which it chooses nodes."""
    config = job.resources
    parts = {
        "teacher": config.teacher.model_copy(update={"custom_resources": {}, "labels": {}}),
        "student": config.student.model_copy(update={"custom_resources": {}, "labels": {}}),
        "trainer": config.trainer.model_copy(update={"custom_resources": {}}),
    }
    return job.model_copy(update={"resources": config.model_copy(update=parts)})


Key = tuple[str | None, str, str]


def _key(job: JobConfig) -> Key:
    return job.teacher.model, job.student.model, job.resources.model_dump_json()


def setups(jobs: Iterable[JobConfig]) -> dict[Key, Setup]:
    """Return each different (teacher, student, resources) of the jobs."""
    by_key: defaultdict[Key, list[JobConfig]] = defaultdict(list)
    for job in jobs:
        by_key[_key(job)].append(job)
    return {key: setup_of(alike) for key, alike in by_key.items()}


def setup_of(jobs: Sequence[JobConfig]) -> Setup:
    """Return the setup of jobs with the same teacher, student and resources."""
    first = jobs[0]
    named = {first.student.model: first.student.revision}
    if first.teacher.model is not None:
        named[first.teacher.model] = first.teacher.revision
    trainings: dict[str, TrainingConfig] = {}
    for job in jobs:
        for config in _trainings(job):
            trainings.setdefault(f"{type(config).__name__} {config.model_dump_json()}", config)
    sampled = [
        sampling.max_tokens
        for job in jobs
        for sampling in (job.teacher.sampling, job.refine.sampling, job.evaluation.sampling)
    ]
    return Setup(
        first.teacher.model,
        first.student.model,
        {
            name: models.shape_of(str(assets.resolve(name)), revision)
            for name, revision in named.items()
        },
        first.resources,
        tuple(trainings.values()),
        max(sampled),
    )


def _trainings(job: JobConfig) -> list[TrainingConfig]:
    rounds = range(1, min(job.refine.rounds, 2) + 1)
    return [*([] if job.tune.skip else [job.tune]), *map(job.refine.of_round, rounds)]


def _problems(setup: Setup, cluster: Cluster) -> list[str]:
    """Return what does not fit, each with the smallest change that would make it fit; if a part has
    none, also the smallest cluster that would do."""
    texts: list[str] = []
    changes: list[remedies.Change | None] = []
    for role in setup.roles:
        text = problem(setup, cluster, role)
        if text is None:
            continue
        who = setup.teacher if role == "teacher" else setup.student
        change = remedies.smallest_change(setup, cluster, role)
        changes.append(change)
        way = "No setting makes it fit" if change is None else f"The smallest change: {change}"
        texts.append(f"{who}: {text}. {way}")
    if None in changes:
        larger = remedies.smallest_cluster(setup, cluster)
        if larger is not None:
            with_change = f" with {larger[1]}" if larger[1].settings else ", as it is"
            teacher = f"{setup.teacher} and " if setup.teacher else ""
            texts.append(
                f"{teacher}{setup.student}: the smallest cluster that holds all of it without"
                f" another method is {larger[0].name}{with_change}"
            )
    return texts


Placed = tuple[Setup, Placement]
_TRAINED = ("student", "reference")
_SAMPLED = ("demonstrations", "samples", "evaluation")


@dataclass(frozen=True, slots=True)
class _Task:
    """The work of one artifact."""

    kind: str
    role: Role
    model: str
    units: float
    """Completions, or steps, or a reference's pairs."""
    tokens: float
    sampling: SamplingLoad | None
    """If it is sampled."""
    training: TrainingConfig | None
    """If it is trained."""


@dataclass(slots=True)
class _Taken:
    """What finished artifacts of one kind and model took."""

    seconds: float = 0.0
    units: float = 0.0
    tokens: float = 0.0


def estimates(artifacts: Artifacts, placed: Sequence[Placed]) -> list[TimeEstimate]:
    """Return the estimate of what is not finished, by kind, in the order of the artifacts.
    `placed`: setup and placement of each artifact's job."""
    measured: dict[tuple[str, str], _Taken] = {}
    for job, state in artifacts:
        task = _task(job, state)
        if state.state == "finished" and task is not None:
            _add(measured.setdefault((task.kind, task.model), _Taken()), task.kind, state)
    found: dict[str, TimeEstimate] = {}
    for (job, state), (setup, placement) in zip(artifacts, placed, strict=True):
        task = _task(job, state)
        if state.state != "finished" and task is not None:
            taken = measured.get((task.kind, task.model))
            one = _estimate(task, job, setup, placement, taken)
            found[task.kind] = found.get(task.kind, TimeEstimate(task.kind)).plus(one)
    return list(found.values())


def _estimate(
    task: _Task, job: JobConfig, setup: Setup, placement: Placement, taken: _Taken | None
) -> TimeEstimate:
    part = placement.parts.get(task.role)
    gpus = 0.0 if part is None else part.total_gpus
    if taken is not None and taken.units:
        seconds = taken.seconds / taken.units * task.units
        tokens = taken.tokens / taken.units * task.units
        return TimeEstimate(task.kind, 1, tokens, seconds, seconds * gpus, measured=1)
    known = _seconds(task, job, setup, placement) if task.units else 0.0
    return TimeEstimate(task.kind, 1, task.tokens, known, None if known is None else known * gpus)


def _seconds(task: _Task, job: JobConfig, setup: Setup, placement: Placement) -> float | None:
    """Return the time by the formulas; None if something that they need is unknown."""
    endpoint = job.teacher.endpoint
    if task.role == "teacher" and endpoint is not None:
        pace = endpoint.requests_per_minute
        return None if pace is None else 60 * task.units / pace
    part, gpu = placement.parts.get(task.role), placement.cluster.gpu
    shape = setup.shape(task.role)
    if part is None or part.memory is None or shape is None or not part.gpus:
        return None
    if gpu is None or not gpu.peak_flops:
        return None
    if task.sampling is not None:
        engine = setup.engine(task.role)
        return speed.sampling_seconds(task.sampling, shape, engine, part.memory, gpu, part.count)
    assert task.training is not None
    trainer, forward_only = setup.resources.trainer, task.kind == "reference"
    return speed.training_seconds(task.tokens, shape, task.training, trainer, gpu, forward_only)


def _task(job: JobConfig, state: ArtifactStatus) -> _Task | None:
    """Return the work of an artifact; None if it takes no model."""
    version, _, kind = state.name.rpartition("/")
    if kind in _TRAINED:
        return _training_task(job, version, kind)
    if kind not in _SAMPLED or (kind == "demonstrations" and not job.teacher.answers):
        return None
    completions = work_of(job, state.name).completions
    per_prompt, sampling = 1.0, job.evaluation.sampling
    if kind == "demonstrations":
        per_prompt, sampling = job.demonstrations.samples_per_question, job.teacher.sampling
    elif kind == "samples":
        refine = job.at_round(_round(version)).refine
        prompts = 2 if refine.num_plain else 1
        per_prompt, sampling = (refine.num_cot + refine.num_plain) / prompts, refine.sampling
    taught = kind == "demonstrations" or version == "teacher"
    role: Role = "teacher" if taught else "student"
    model = job.teacher.source if taught else job.student.model
    load = SamplingLoad(completions, per_prompt, sampling.max_tokens)
    return _Task(kind, role, model, completions, load.tokens, load, None)


def _training_task(job: JobConfig, version: str, kind: str) -> _Task:
    """Return the work of instruction tuning, of a round, or of a round's reference pass."""
    round_number = _round(version)
    refine = job.at_round(round_number).refine if round_number else job.refine
    config: TrainingConfig = refine if round_number else job.tune
    sampling = refine.sampling if round_number else job.teacher.sampling
    work = work_of(job, f"{version}/student")
    seen = min(work.steps * config.batch_size, work.examples * config.epochs)
    if kind == "reference":
        seen = work.examples
    units = seen if kind == "reference" else work.steps
    tokens = seen * speed.example_tokens(config, sampling.max_tokens)
    return _Task(kind, "trainer", job.student.model, units, tokens, None, config)


def _add(taken: _Taken, kind: str, state: ArtifactStatus) -> None:
    """Add what a finished artifact's record has; those of version 0.1.0 have no usage."""
    record = json.loads((state.path / RECORD).read_text())
    counts: Mapping[str, float] = record["counts"]
    if kind == "student":
        seconds, units, tokens = counts["seconds"], counts["steps"], counts["tokens"]
    elif kind == "reference":
        seconds, units, tokens = record["seconds"], counts["pairs"], counts["tokens"]
    else:
        sampling = record["counts"].get("sampling", counts)
        if "usage" not in sampling:
            return
        seconds, units = sampling["usage"]["seconds"], sampling["completions"]
        tokens = sampling["completion_tokens"]
    taken.seconds += seconds
    taken.units += units
    taken.tokens += tokens
