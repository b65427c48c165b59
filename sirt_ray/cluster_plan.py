"""`sirt plan --address` and `--cluster`: who sits where, with how much memory, for how long.

The rules are `planning`'s; here a job, or the jobs of a study, are brought to them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console

from sirt_ray.config.job import JobConfig
from sirt_ray.driver import placement_table
from sirt_ray.errors import ResourceError
from sirt_ray.hours import Artifacts, estimates
from sirt_ray.optimization import TrainingConfig
from sirt_ray.planning import models, remedies
from sirt_ray.planning import resources as needs
from sirt_ray.planning.clusters import Cluster
from sirt_ray.planning.placement import Setup, place, problem
from sirt_ray.quickstart import assets


def show(
    console: Console, jobs: Sequence[JobConfig], artifacts: Artifacts, cluster: Cluster
) -> None:
    """Print the placement of each different (teacher, student, resources), and what all artifacts
    that are still to be made take. Raises one ResourceError for all that does not fit."""
    if cluster.described:
        jobs = [_anywhere(job) for job in jobs]
        artifacts = [(_anywhere(job), state) for job, state in artifacts]
    placed = {key: (setup, place(setup, cluster)) for key, setup in setups(jobs).items()}
    problems: dict[str, None] = {}
    for setup, placement in placed.values():
        placement_table.show(console, setup, placement)
        problems |= dict.fromkeys(_problems(setup, cluster))
    if problems:
        raise ResourceError("\n".join(problems))
    at_once = min(needs.runs_at_once(job.resources, cluster.resources) for job in jobs)
    at_once = min(at_once, len(jobs))
    hours = estimates(artifacts, [placed[_key(job)] for job, _ in artifacts])
    placement_table.show_time(console, cluster, hours, at_once)


def _anywhere(job: JobConfig) -> JobConfig:
    """The job without the names by which it chooses nodes."""
    resources = job.resources
    parts = {
        "teacher": resources.teacher.model_copy(update={"custom_resources": {}, "labels": {}}),
        "student": resources.student.model_copy(update={"custom_resources": {}, "labels": {}}),
        "trainer": resources.trainer.model_copy(update={"custom_resources": {}}),
    }
    return job.model_copy(update={"resources": resources.model_copy(update=parts)})


Key = tuple[str | None, str, str]


def _key(job: JobConfig) -> Key:
    return job.teacher.model, job.student.model, job.resources.model_dump_json()


def setups(jobs: Iterable[JobConfig]) -> dict[Key, Setup]:
    """Each different (teacher, student, resources) of the jobs."""
    by_key: defaultdict[Key, list[JobConfig]] = defaultdict(list)
    for job in jobs:
        by_key[_key(job)].append(job)
    return {key: setup_of(alike) for key, alike in by_key.items()}


def setup_of(jobs: Sequence[JobConfig]) -> Setup:
    """Of jobs with the same teacher, student and resources."""
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
    """What does not fit, each with the smallest change that would make it fit; where a part has
    none, also the cluster that would do."""
    texts: list[str] = []
    changes: list[remedies.Change | None] = []
    for role in setup.roles:
        told = problem(setup, cluster, role)
        if told is None:
            continue
        who = setup.teacher if role == "teacher" else setup.student
        change = remedies.smallest_change(setup, cluster, role)
        changes.append(change)
        way = "No setting makes it fit" if change is None else f"The smallest change: {change}"
        texts.append(f"{who}: {told}. {way}")
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
