"""Placement of engines and trainer on the nodes of a cluster, and the memory that each needs.

A run has three parts that take turns:

    teacher    samples first, on its own GPUs; it is stopped before the student samples
    student    prestarts while the teacher samples if resources are free (`can_prestart`); samples
               before and after every training
    trainer    runs after the teacher was stopped; the student's engine is stopped, too, unless the
               free resources suffice for both (`can_colocate`)

So parts use the same GPUs one after the other, never at the same time: an engine has its GPUs
exclusively. Labels and custom resources separate the parts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sirt_ray.config.resources import EngineConfig, ResourcesConfig
from sirt_ray.config.training import TrainingConfig
from sirt_ray.planning import memory, resources
from sirt_ray.planning.clusters import Cluster
from sirt_ray.planning.gpus import GB
from sirt_ray.planning.memory import Memory
from sirt_ray.planning.models import ModelShape
from sirt_ray.planning.resources import ResourceRequest

Role = Literal["teacher", "student", "trainer"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What is placed: one job, or all trials of a study with the same models and resources."""

    teacher: str | None
    """The teacher's model; None if the teacher is an endpoint or a file, or there is none."""
    student: str
    shapes: Mapping[str, ModelShape | None]
    """Shapes by model name; None if not known."""
    resources: ResourcesConfig
    trainings: tuple[TrainingConfig, ...]
    """Every kind of training of the student."""
    longest_completion: int
    """The largest `max_tokens` of all sampling."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles that are placed, in the order of their start."""
        engines: tuple[Role, ...] = ("student",) if self.teacher is None else ("teacher", "student")
        return (*engines, "trainer") if self.trainings else engines

    def shape(self, role: Role) -> ModelShape | None:
        """Return the shape of the role's model; None if not known."""
        name = self.teacher if role == "teacher" else self.student
        return None if name is None else self.shapes[name]

    def engine(self, role: Role) -> EngineConfig:
        """Return the settings of the engine of the teacher or the student."""
        return self.resources.teacher if role == "teacher" else self.resources.student


@dataclass(frozen=True, slots=True)
class Part:
    """The placement of one role."""

    role: Role
    count: int
    """Replicas, or workers, that are placed at the same time."""
    wanted: int
    """Replicas, or workers, that the job allows."""
    gpus: float
    """GPUs of each replica or worker."""
    per_node: Mapping[int, int]
    """Node number -> GPUs in use there, or bundles on a cluster without GPUs."""
    spread: bool
    """Whether shards of one replica are on several nodes."""
    memory: Memory | None
    """Memory on one GPU; None if the model's size is not known."""
    kv_tokens: float | None
    """Tokens that the KV cache of an engine holds; None for a trainer."""
    capacity: float | None
    """Bytes of one GPU; None on the CPU, or if not known."""

    @property
    def total_gpus(self) -> float:
        """GPUs of all replicas or workers."""
        return self.count * self.gpus


@dataclass(frozen=True, slots=True)
class Placement:
    """All parts of a setup on a cluster."""

    cluster: Cluster
    parts: Mapping[Role, Part]
    """Without the roles that cannot be placed."""
    prestarts: bool
    """Whether the student's engine starts while the teacher samples."""
    colocates: bool
    """Whether the student's engine keeps running while the trainer works."""


def plan_placement(setup: Setup, cluster: Cluster) -> Placement:
    """Place all roles that can be placed; `problem` returns why another cannot."""
    parts: dict[Role, Part] = {}
    for role in setup.roles:
        if (part := _part(setup, cluster, role)) is not None:
            parts[role] = part
    free = cluster.resources
    student = setup.resources.student
    prestarts = False
    if "teacher" in parts:
        teacher = resources.of_engine("teacher", setup.resources.teacher, cluster.gpus)
        gpu = resources.on_gpu(student, cluster.gpus)
        prestarts = resources.can_prestart(student, gpu, resources.subtract(free, teacher))
    colocates = False
    if "student" in parts and "trainer" in parts:
        one = resources.of_engine("student", student, cluster.gpus, 1)
        left = resources.subtract(free, one, parts["student"].count)
        trainer = resources.of_trainer(setup.resources.trainer, cluster.gpus)
        colocates = resources.can_colocate(student, trainer, left)
    return Placement(cluster, parts, prestarts, colocates)


def problem(setup: Setup, cluster: Cluster, role: Role) -> str | None:
    """Return why the role cannot run on the cluster with these settings; None if it can."""
    request = _request(setup, cluster, role)
    reason = resources.infeasible_reason(request, cluster.nodes)
    if reason is not None:
        return reason
    if resources.assign_nodes(request, cluster.nodes) is None:
        return (
            f"{request.name} cannot be placed: its bundles do not fit on the nodes together. Lower"
            f" {request.setting} or add a node"
        )
    if role != "trainer":
        shape, engine = setup.shape(role), setup.engine(role)
        shards = engine.tensor_parallel_size
        if shape is not None and resources.on_gpu(engine, cluster.gpus) and shape.heads % shards:
            return (
                f"{request.name} cannot be cut in {shards}: the model has {shape.heads} attention"
                f" heads, which {request.setting}.tensor_parallel_size must divide"
            )
    return _too_large(setup, cluster, role)


def _too_large(setup: Setup, cluster: Cluster, role: Role) -> str | None:
    """Return why the role does not fit into a GPU's memory; None if it does, or is not known."""
    part = _part(setup, cluster, role)
    if part is None or part.memory is None or part.capacity is None:
        return None
    held, capacity = part.memory, part.capacity
    if role == "trainer":
        if held.total <= capacity:
            return None
        shared = memory.sharing(part.gpus)
        workers = "a worker" if shared == 1 else f"{shared} workers on one GPU"
        return (
            f"the trainer does not fit a GPU of {capacity / GB:g} GB: {workers} of {part.count}"
            f" needs {held.total / GB:.1f} GB ({_listed(held)})"
        )
    shape, engine = setup.shape(role), setup.engine(role)
    assert shape is not None
    longest = memory.longest_sequence(shape, engine)
    needed = longest * shape.kv_bytes(engine.tensor_parallel_size)
    other = held.total - held.kv_cache
    # With kv_cache_gib, vLLM does not limit itself to its share.
    usable = capacity * (memory.VLLM_SHARE if engine.kv_cache_gib is None else 1)
    if held.kv_cache >= needed and held.total <= usable * (1 + 1e-9):
        return None
    return (
        f"the {role} engine does not fit {engine.tensor_parallel_size} GPU of {capacity / GB:g} GB"
        f" for each replica: of the {usable / GB:.1f} GB that vLLM uses, {other / GB:.1f} go to"
        f" {_listed(held, without='KV cache')}, and one sequence of {longest:,} tokens needs"
        f" {needed / GB:.1f} GB of KV cache"
    )


def _listed(held: Memory, without: str = "") -> str:
    named = {
        "weights": held.weights,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "activations": held.activations,
        "KV cache": held.kv_cache,
        "other": held.other,
    }
    shown = [f"{n} {b / GB:.1f}" for n, b in named.items() if b and n != without]
    return ", ".join(shown)


def _request(setup: Setup, cluster: Cluster, role: Role) -> ResourceRequest:
    if role == "trainer":
        return resources.of_trainer(setup.resources.trainer, cluster.gpus)
    return resources.of_engine(role, setup.engine(role), cluster.gpus)


def _part(setup: Setup, cluster: Cluster, role: Role) -> Part | None:
    """Place as many replicas or workers as possible; None if not even the minimum fits."""
    if role == "trainer":
        return _trainer(setup, cluster)
    engine, shape = setup.engine(role), setup.shape(role)
    gpu = resources.on_gpu(engine, cluster.gpus)
    capacity = _capacity(cluster) if gpu else None
    count, found = 0, None
    for replicas in range(max(1, engine.min_replicas), engine.max_replicas + 1):
        request = resources.of_engine(role, engine, cluster.gpus, replicas)
        assigned = resources.assign_nodes(request, cluster.nodes)
        if assigned is None:
            break
        count, found = replicas, assigned
    if found is None:
        return None
    held = None if shape is None else memory.of_engine(shape, engine, gpu, capacity)
    shards = engine.tensor_parallel_size if gpu else 1
    return Part(
        role,
        count,
        engine.max_replicas,
        float(shards) if gpu else 0.0,
        Counter(found),
        any(len(set(found[at : at + shards])) > 1 for at in range(0, len(found), shards)),
        held,
        None if shape is None or held is None else memory.kv_tokens(shape, engine, held, gpu),
        capacity,
    )


def _trainer(setup: Setup, cluster: Cluster) -> Part | None:
    trainer, shape = setup.resources.trainer, setup.shape("trainer")
    found = resources.assign_nodes(resources.of_trainer(trainer, cluster.gpus), cluster.nodes)
    if found is None:
        return None
    gpus = resources.gpus_per_worker(trainer, cluster.gpus)
    held = None
    if shape is not None:
        each = [memory.of_trainer(shape, c, trainer, gpus > 0) for c in setup.trainings]
        held = max(each, key=lambda one: one.total).times(memory.sharing(gpus))
    capacity = _capacity(cluster) if gpus else None
    workers = trainer.num_workers
    return Part("trainer", workers, workers, gpus, Counter(found), False, held, None, capacity)


def _capacity(cluster: Cluster) -> float | None:
    return None if cluster.gpu is None else cluster.gpu.memory_gb * GB


def unknown(setup: Setup) -> Sequence[str]:
    """Return the models of the setup whose size is not known."""
    return [name for name, shape in setup.shapes.items() if shape is None]
