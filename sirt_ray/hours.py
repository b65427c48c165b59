"""How long what is still to be made will take on a placement: by finished artifacts of the same
kind and model where there are some, else by `planning.speed`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sirt_ray.artifacts.store import RECORD
from sirt_ray.config.job import JobConfig
from sirt_ray.driver.plan import work_of
from sirt_ray.optimization import TrainingConfig
from sirt_ray.planning import speed
from sirt_ray.planning.placement import Placement, Role, Setup
from sirt_ray.planning.speed import Asking, Estimate
from sirt_ray.survey import State

Artifacts = Sequence[tuple[JobConfig, State]]
Placed = tuple[Setup, Placement]
_TRAINED = ("student", "reference")
_SAMPLED = ("demonstrations", "samples", "evaluation")


@dataclass(frozen=True, slots=True)
class _Task:
    """What making one artifact is."""

    kind: str
    role: Role
    model: str
    units: float
    """Completions, or steps, or a reference's pairs."""
    tokens: float
    asking: Asking | None
    """Of a sampled one."""
    training: TrainingConfig | None
    """Of a trained one."""


@dataclass(slots=True)
class _Taken:
    """By finished artifacts of one kind and model."""

    seconds: float = 0.0
    units: float = 0.0
    tokens: float = 0.0


def estimates(artifacts: Artifacts, placed: Sequence[Placed]) -> list[Estimate]:
    """By kind, in the order of the artifacts, of what is not finished. `placed`: of each artifact's
    job."""
    measured: dict[tuple[str, str], _Taken] = {}
    for job, state in artifacts:
        task = _task(job, state)
        if state.state == "finished" and task is not None:
            _add(measured.setdefault((task.kind, task.model), _Taken()), task.kind, state)
    found: dict[str, Estimate] = {}
    for (job, state), (setup, placement) in zip(artifacts, placed, strict=True):
        task = _task(job, state)
        if state.state != "finished" and task is not None:
            taken = measured.get((task.kind, task.model))
            one = _estimate(task, job, setup, placement, taken)
            found[task.kind] = found.get(task.kind, Estimate(task.kind)).plus(one)
    return list(found.values())


def _estimate(
    task: _Task, job: JobConfig, setup: Setup, placement: Placement, taken: _Taken | None
) -> Estimate:
    part = placement.parts.get(task.role)
    gpus = 0.0 if part is None else part.total_gpus
    if taken is not None and taken.units:
        seconds = taken.seconds / taken.units * task.units
        tokens = taken.tokens / taken.units * task.units
        return Estimate(task.kind, 1, tokens, seconds, seconds * gpus, measured=1)
    known = _seconds(task, job, setup, placement) if task.units else 0.0
    return Estimate(task.kind, 1, task.tokens, known, None if known is None else known * gpus)


def _seconds(task: _Task, job: JobConfig, setup: Setup, placement: Placement) -> float | None:
    """By the formulas; None where something that they need is not known."""
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
    if task.asking is not None:
        engine = setup.engine(task.role)
        return speed.sampling_seconds(task.asking, shape, engine, part.memory, gpu, part.count)
    assert task.training is not None
    trainer, forward_only = setup.resources.trainer, task.kind == "reference"
    return speed.training_seconds(task.tokens, shape, task.training, trainer, gpu, forward_only)


def _task(job: JobConfig, state: State) -> _Task | None:
    """None where it takes no model."""
    version, _, kind = state.name.rpartition("/")
    if kind in _TRAINED:
        return _training(job, version, kind)
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
    asking = Asking(completions, per_prompt, sampling.max_tokens)
    return _Task(kind, role, model, completions, asking.tokens, asking, None)


def _training(job: JobConfig, version: str, kind: str) -> _Task:
    """Of instruction tuning, of a round, or of the pass of a round's reference."""
    round = _round(version)
    refine = job.at_round(round).refine if round else job.refine
    config: TrainingConfig = refine if round else job.tune
    sampling = refine.sampling if round else job.teacher.sampling
    work = work_of(job, f"{version}/student")
    seen = min(work.steps * config.batch_size, work.examples * config.epochs)
    if kind == "reference":
        seen = work.examples
    units = seen if kind == "reference" else work.steps
    tokens = seen * speed.example_tokens(config, sampling.max_tokens)
    return _Task(kind, "trainer", job.student.model, units, tokens, None, config)


def _round(version: str) -> int:
    return int(version.rpartition("_")[2])


def _add(taken: _Taken, kind: str, state: State) -> None:
    """What a finished artifact's record says; earlier versions wrote no usage."""
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
