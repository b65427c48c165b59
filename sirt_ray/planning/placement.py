"""Who sits where on a cluster, beside whom, and with how much memory: the plan that a run follows.

A run has three parts that take turns:

    teacher    answers first, on GPUs of its own; it is stopped before the student is asked
    student    begins to start beside the teacher where there is room (`needs.starts_early`);
               answers before and after every training
    trainer    the teacher is gone by then; the student's engine goes, too, unless the trainer fits
               beside it (`needs.stays_beside`)

So parts sit together on the same GPUs one after the other, never at the same time: an engine has
its GPUs for itself. Labels and custom resources put them apart.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sirt_ray.config.resources import EngineConfig, ResourcesConfig
from sirt_ray.config.training import TrainingConfig
from sirt_ray.planning import memory
from sirt_ray.planning import resources as needs
from sirt_ray.planning.clusters import Cluster
from sirt_ray.planning.gpus import GB
from sirt_ray.planning.memory import Memory
from sirt_ray.planning.models import ModelShape
from sirt_ray.planning.resources import ResourceRequest

Role = Literal["teacher", "student", "trainer"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What is placed: of one job, or of all cells of a study with these models and resources."""

    teacher: str | None
    """The model that is served; None: it is an endpoint or a file, or nobody."""
    student: str
    shapes: Mapping[str, ModelShape | None]
    """By these names; None: not known."""
    resources: ResourcesConfig
    trainings: tuple[TrainingConfig, ...]
    """Every kind of training of the student."""
    longest_completion: int
    """Tokens that are asked of an engine at most."""

    @property
    def roles(self) -> tuple[Role, ...]:
        engines: tuple[Role, ...] = ("student",) if self.teacher is None else ("teacher", "student")
        return (*engines, "trainer") if self.trainings else engines

    def shape(self, role: Role) -> ModelShape | None:
        name = self.teacher if role == "teacher" else self.student
        return None if name is None else self.shapes[name]

    def engine(self, role: Role) -> EngineConfig:
        return self.resources.teacher if role == "teacher" else self.resources.student


@dataclass(frozen=True, slots=True)
class Part:
    """One role, placed."""

    role: Role
    count: int
    """Replicas, or workers, that have a place at the same time."""
    wanted: int
    """That the job allows."""
    gpus: float
    """Of each of them."""
    per_node: Mapping[int, int]
    """Node's number -> its GPUs that are taken; where there are none, bundles."""
    spread: bool
    """Whether shards of one replica sit on several nodes."""
    memory: Memory | None
    """On one GPU; None: the model's size is not known, or the settings cannot be."""
    kv_tokens: float | None
    """Of an engine."""
    capacity: float | None
    """Bytes of one GPU."""

    @property
    def total_gpus(self) -> float:
        return self.count * self.gpus


@dataclass(frozen=True, slots=True)
class Placement:
    cluster: Cluster
    parts: Mapping[Role, Part]
    early: bool
    """Whether the student's engine starts while the teacher answers."""
    stays: bool
    """Whether the student's engine stays while the trainer works."""


def place_engines(setup: Setup, cluster: Cluster) -> Placement:
    """Everything that finds a place; `problem` says why something does not."""
    parts: dict[Role, Part] = {}
    for role in setup.roles:
        if (part := _part(setup, cluster, role)) is not None:
            parts[role] = part
    free = cluster.resources
    student, gpu = setup.resources.student, needs.on_gpu(setup.resources.student, cluster.gpus)
    early = False
    if "teacher" in parts:
        teacher = needs.of_engine("teacher", setup.resources.teacher, cluster.gpus)
        early = needs.can_prestart(student, gpu, needs.subtract(free, teacher))
    stays = False
    if "student" in parts and "trainer" in parts:
        one = needs.of_engine("student", student, cluster.gpus, 1)
        left = needs.subtract(free, one, parts["student"].count)
        trainer = needs.of_trainer(setup.resources.trainer, cluster.gpus)
        stays = needs.can_colocate(student, trainer, left)
    return Placement(cluster, parts, early, stays)


def problem(setup: Setup, cluster: Cluster, role: Role) -> str | None:
    """Why the role cannot work on the cluster with these settings; None where it can."""
    need = _need(setup, cluster, role)
    told = needs.infeasible_reason(need, cluster.nodes)
    if told is not None:
        return told
    found = needs.assign_nodes(need, cluster.nodes)
    if found is None:
        return (
            f"{need.who} finds no place: its parts do not fit the nodes one beside the other. Lower"
            f" {need.setting} or add a node"
        )
    if role == "trainer":
        return _too_large(setup, cluster, role)
    shape, engine = setup.shape(role), setup.engine(role)
    shards = engine.tensor_parallel_size
    if shape is not None and needs.on_gpu(engine, cluster.gpus) and shape.heads % shards:
        return (
            f"{need.who} cannot be cut in {shards}: the model has {shape.heads} attention heads,"
            f" which {need.setting}.tensor_parallel_size must divide"
        )
    return _too_large(setup, cluster, role)


def _too_large(setup: Setup, cluster: Cluster, role: Role) -> str | None:
    part = _part(setup, cluster, role)
    if part is None or part.memory is None or part.capacity is None:
        return None
    held, capacity = part.memory, part.capacity
    if role == "trainer":
        if held.total <= capacity:
            return None
        shared = memory.sharing(part.gpus)
        who = "a worker" if shared == 1 else f"{shared} workers on one GPU"
        return (
            f"the trainer does not fit a GPU of {capacity / GB:g} GB: {who} of {part.count} needs"
            f" {held.total / GB:.1f} GB ({_listed(held)})"
        )
    shape, engine = setup.shape(role), setup.engine(role)
    assert shape is not None
    longest = memory.longest_sequence(shape, engine)
    needed = longest * shape.kv_bytes(engine.tensor_parallel_size)
    beside = held.total - held.kv_cache
    # A cache of a size of its own is taken from all of the GPU.
    room = capacity * (memory.VLLM_SHARE if engine.kv_cache_gib is None else 1)
    if held.kv_cache >= needed and held.total <= room * (1 + 1e-9):
        return None
    return (
        f"the {role} engine does not fit {engine.tensor_parallel_size} GPU of {capacity / GB:g} GB"
        f" for each replica: of the {room / GB:.1f} GB that vLLM uses, {beside / GB:.1f} go to"
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


def _need(setup: Setup, cluster: Cluster, role: Role) -> ResourceRequest:
    if role == "trainer":
        return needs.of_trainer(setup.resources.trainer, cluster.gpus)
    return needs.of_engine(role, setup.engine(role), cluster.gpus)


def _part(setup: Setup, cluster: Cluster, role: Role) -> Part | None:
    """None where not even the least finds a place."""
    if role == "trainer":
        return _trainer(setup, cluster)
    engine, shape = setup.engine(role), setup.shape(role)
    gpu = needs.on_gpu(engine, cluster.gpus)
    capacity = _capacity(cluster) if gpu else None
    count, found = 0, None
    for replicas in range(max(1, engine.min_replicas), engine.max_replicas + 1):
        need = needs.of_engine(role, engine, cluster.gpus, replicas)
        seated = needs.assign_nodes(need, cluster.nodes)
        if seated is None:
            break
        count, found = replicas, seated
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
    found = needs.assign_nodes(needs.of_trainer(trainer, cluster.gpus), cluster.nodes)
    if found is None:
        return None
    gpus = needs.gpus_per_worker(trainer, cluster.gpus)
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
    """Models of the setup whose size is not known."""
    return [name for name, shape in setup.shapes.items() if shape is None]
