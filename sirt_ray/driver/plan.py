"""What a study would do, as far as its settings say."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from sirt_ray.artifacts.store import RECORD
from sirt_ray.benchmarks.base import Generated
from sirt_ray.benchmarks.registry import benchmarks_of
from sirt_ray.benchmarks.sizes import PUBLISHED
from sirt_ray.config.job import JobConfig
from sirt_ray.config.study import Study
from sirt_ray.config.training import RULES
from sirt_ray.driver import run
from sirt_ray.optimization import TrainingConfig
from sirt_ray.survey import State

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
    """What artifacts cost, at most. `unsized`: splits whose size the settings do not say."""

    completions: int = 0
    examples: int = 0
    steps: int = 0
    unsized: set[str] = field(default_factory=set[str])

    def add(self, other: "Work") -> None:
        self.completions += other.completions
        self.examples += other.examples
        self.steps += other.steps
        self.unsized |= other.unsized


Distinct = Mapping[Path, tuple[JobConfig, State]]
"""Where an artifact lies -> a job that it is made for, and how it stands."""


def show(console: Console, study: Study) -> Distinct:
    """Print the study's axes, its artifacts by kind, and what is to be done; returns the artifacts.
    Raises ArtifactError where settings would make a finished artifact untrue."""
    distinct: dict[Path, tuple[JobConfig, State]] = {}
    asked: Counter[str] = Counter()
    finished = 0
    for cell in study.cells:
        survey = run.survey(cell.job, study.folder / cell.name, study.pool)
        survey.refuse_untrue()
        finished += survey.finished
        for state in survey.states:
            asked[_kind(state.name)] += 1
            distinct.setdefault(state.path, (cell.job, state))
    for axis, labels in study.axes.items():
        console.print(f"{axis}: {', '.join(labels)}", highlight=False, soft_wrap=True)
    console.print(_table(asked, distinct))
    missing = [(job, state) for job, state in distinct.values() if state.state != "finished"]
    console.print(
        f"{len(study.cells)} cells, {finished} finished; {sum(asked.values())} artifacts, of which"
        f" {len(distinct)} are distinct, {len(missing)} of them to be made",
        soft_wrap=True,
    )
    total = Work()
    for job, state in missing:
        total.add(work_of(job, state.name))
    if total.unsized:
        console.print(
            "The sizes of these are not in the settings, so that nothing is counted for them:"
            f" {', '.join(sorted(total.unsized))}",
            soft_wrap=True,
        )
    console.print(_FORMULAS, style="dim", highlight=False, soft_wrap=True)
    if (time := _time(distinct.values())) is not None:
        console.print(time, soft_wrap=True)
    console.print(f"Study folder: {study.folder.resolve()}", soft_wrap=True)
    return distinct


def _table(kinds: Iterable[str], distinct: Mapping[Path, tuple[JobConfig, State]]) -> Table:
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
        cells = [len(of_kind), len(of_kind) - len(missing), len(missing)]
        amounts = [work.completions, work.examples, work.steps]
        table.add_row(kind, *(f"{n:,}" for n in cells), *(f"{n:,}" if n else "" for n in amounts))
    return table


def _kind(name: str) -> str:
    return name.rsplit("/", maxsplit=1)[-1]


def work_of(job: JobConfig, name: str) -> Work:
    """What making the artifact of that name costs at most."""
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
        if size is None and isinstance(benchmark.source, Generated):
            size = benchmark.source.num_train
        size = size or PUBLISHED.get((name, "train"))
        if size is None:
            work.unsized.add(f"{name} train")
            continue
        total += min(math.ceil(size * fraction), most or size)
    return total


def _test_questions(job: JobConfig, work: Work) -> Iterator[int]:
    known = benchmarks_of(job.data)
    for name in job.data.evaluate:
        source = known[name].source
        size = job.data.num_test
        if size is None and isinstance(source, Generated):
            size = source.num_test
        size = size or PUBLISHED.get((name, "test"))
        if size is None:
            work.unsized.add(f"{name} test")
        yield size or 0


def _steps(examples: int, config: TrainingConfig) -> int:
    trained = examples * (1 - config.validation_fraction)
    steps = math.ceil(math.ceil(trained / config.batch_size) * config.epochs)
    return min(steps, config.max_steps or steps)


def _time(artifacts: Iterable[tuple[JobConfig, State]]) -> str | None:
    """How long it would take by the finished artifacts of each kind; None where there are none."""
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
