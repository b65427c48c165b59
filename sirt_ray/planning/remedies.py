"""Search for the smallest change of settings with which a part fits, in the order of harm.

Harm is counted in points and added up; with equal sums fewer changes win. First come changes that
cost only some time or communication, then those that cost much time, last those of the method:

    1   gradient checkpointing (a third more computation); each halving of the micro-batch; ZeRO-2;
        more workers; doubling or halving the GPUs of an engine; fewer replicas at the start; the
        KV cache in vLLM's default size
    2   fewer workers; shorter sequences, down to what the job needs
    3   ZeRO-3
    4   optimizer states in host memory
    6   parameters in host memory, too
  100   LoRA instead of full fine-tuning
  101   QLoRA
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.config.training import LoraConfig, TrainingConfig
from sirt_ray.planning import resources
from sirt_ray.planning.clusters import Cluster, of_size
from sirt_ray.planning.gpus import GPUS
from sirt_ray.planning.placement import Role, Setup, problem

_PROMPT_TOKENS = 512
"""Tokens that an engine must accept in addition to the longest completion."""
_METHOD = 100
"""The least harm of a change of the method."""
_NODES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8))
"""(nodes, GPUs per node) of the larger clusters that are tried."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of settings in a job file."""

    settings: Mapping[str, Any]
    """Dotted setting -> new value."""
    harm: int
    setup: Setup
    """The setup after the change."""

    def __str__(self) -> str:
        return ", ".join(f"{name}: {_shown(value)}" for name, value in self.settings.items())


@dataclass(frozen=True, slots=True)
class _Option:
    """One new value of one setting."""

    name: str
    value: Any
    harm: int


def smallest_change(setup: Setup, cluster: Cluster, role: Role) -> Change | None:
    """Return the least harmful change with which the role fits the cluster; None without one."""
    for change in _changes(setup, cluster, role):
        if change.settings and problem(change.setup, cluster, role) is None:
            return change
    return None


def smallest_cluster(setup: Setup, cluster: Cluster) -> tuple[Cluster, Change] | None:
    """Return the larger cluster with the least total memory on which every part fits, and the
    change that the job still needs there (it may be empty, and is never one of the method). The
    clusters tried have more GPUs of the same kind, or GPUs with more memory."""
    current = cluster.gpu
    if current is None:
        return None
    larger = {gpu.memory_gb: gpu for gpu in GPUS if gpu.memory_gb > current.memory_gb}
    shapes = [
        (nodes, each, gpu)
        for gpu in [current, *larger.values()]
        for nodes, each in _NODES
        if nodes * each * gpu.memory_gb > cluster.gpus * current.memory_gb
    ]
    for nodes, each, gpu in sorted(shapes, key=lambda s: (s[0] * s[1] * s[2].memory_gb, s[:2])):
        tried = of_size(gpu, nodes, each)
        change = _for_all_parts(setup, tried)
        if change is not None:
            return tried, change
    return None


def _for_all_parts(setup: Setup, cluster: Cluster) -> Change | None:
    """Return the smallest change with which every part fits (it may be empty); None if that would
    be a change of the method."""
    settings: dict[str, Any] = {}
    harm, changed = 0, setup
    for role in setup.roles:
        if problem(changed, cluster, role) is None:
            continue
        change = smallest_change(changed, cluster, role)
        if change is None or change.harm >= _METHOD:
            return None
        settings |= change.settings
        harm, changed = harm + change.harm, change.setup
    return Change(settings, harm, changed)


def _changes(setup: Setup, cluster: Cluster, role: Role) -> Iterator[Change]:
    """Yield every combination of options, least harm first, without contradictory settings."""
    trains = role == "trainer"
    options = _of_trainer(setup, cluster) if trains else _of_engine(setup, cluster, role)
    combined = [[one for one in taken if one is not None] for taken in product(*options)]
    for taken in sorted(combined, key=lambda each: (sum(o.harm for o in each), len(each))):
        changed = _changed(setup, role, taken)
        if changed is not None:
            yield Change(_settings(role, taken), sum(o.harm for o in taken), changed)


def _of_trainer(setup: Setup, cluster: Cluster) -> list[list[_Option | None]]:
    trainer = setup.resources.trainer
    tokens = trainer.max_tokens_per_micro_batch
    offloads = ("none", "optimizer", "parameters")
    lora: list[tuple[LoraConfig, int]] = []
    if not all(config.lora for config in setup.trainings):
        lora.append((LoraConfig(), _METHOD))
    if cluster.gpus and not all(config.quantizes for config in setup.trainings):
        lora.append((LoraConfig(quantize="nf4"), _METHOD + 1))
    return [
        _options("gradient_checkpointing", () if trainer.gradient_checkpointing else [(True, 1)]),
        _options(
            "max_tokens_per_micro_batch",
            [(tokens >> halved, halved) for halved in (1, 2, 3) if tokens >> halved >= 512],
        ),
        _options("zero_stage", [one for one in ((2, 1), (3, 3)) if one[0] > trainer.zero_stage]),
        _options(
            "num_workers",
            [(n, 2 if n < trainer.num_workers else 1) for n in _worker_counts(trainer, cluster)],
        ),
        _options(
            "offload",
            [
                (kind, harm)
                for kind, harm in (("optimizer", 4), ("parameters", 6))
                if offloads.index(kind) > offloads.index(trainer.offload)
            ],
        ),
        _options("lora", lora),
    ]


def _worker_counts(trainer: TrainerResources, cluster: Cluster) -> list[int]:
    """Return the most workers that fit on the cluster, if that is not the current number."""
    most = 0
    while most < max(64, trainer.num_workers):
        more = trainer.model_copy(update={"num_workers": most + 1})
        if resources.assign_nodes(resources.of_trainer(more, cluster.gpus), cluster.nodes) is None:
            break
        most += 1
        if not cluster.gpus and most == trainer.num_workers:
            break
    return [most] if most and most != trainer.num_workers else []


def _of_engine(setup: Setup, cluster: Cluster, role: Role) -> list[list[_Option | None]]:
    engine, shape = setup.engine(role), setup.shape(role)
    now = engine.tensor_parallel_size
    shards = [2**power for power in range(cluster.gpus.bit_length())]
    enough = setup.longest_completion + _PROMPT_TOKENS
    shorter = shape is not None and enough < (engine.max_model_len or shape.max_length)
    return [
        _options(
            "tensor_parallel_size",
            [
                (n, abs(n.bit_length() - now.bit_length()))
                for n in shards
                if n != now and resources.on_gpu(engine, cluster.gpus)
            ],
        ),
        _options("max_model_len", [(enough, 2)] if shorter else ()),
        _options("min_replicas", [(1, 1)] if engine.min_replicas > 1 else ()),
        _options("kv_cache_gib", [(None, 1)] if engine.kv_cache_gib is not None else ()),
    ]


def _options(name: str, values: Iterable[tuple[Any, int]]) -> list[_Option | None]:
    """Return the options of one setting from (value, harm), with None first: no change."""
    return [None, *(_Option(name, value, harm) for value, harm in values)]


def _changed(setup: Setup, role: Role, taken: Sequence[_Option]) -> Setup | None:
    """Return the setup with the options; None if they contradict each other."""
    values = {option.name: option.value for option in taken if option.name != "lora"}
    section = setup.resources.trainer if role == "trainer" else setup.engine(role)
    try:
        made: EngineConfig | TrainerResources = type(section).model_validate(
            section.model_dump() | values
        )
    except ValueError:
        return None
    trainings = setup.trainings
    for option in taken:
        if option.name == "lora":
            trainings = tuple(_adapted(config, option.value) for config in trainings)
    sharded = isinstance(made, TrainerResources) and made.zero_stage == 3
    if sharded and any(config.quantizes for config in trainings):
        return None
    changed = setup.resources.model_copy(update={role: made})
    return replace(setup, resources=changed, trainings=trainings)


def _adapted(config: TrainingConfig, lora: LoraConfig) -> TrainingConfig:
    if config.lora is not None:
        lora = config.lora.model_copy(update={"quantize": lora.quantize})
    return config.model_copy(update={"lora": lora})


def _settings(role: Role, taken: Sequence[_Option]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for option in taken:
        if option.name != "lora":
            named[f"resources.{role}.{option.name}"] = option.value
            continue
        shown = option.value.model_dump(exclude_defaults=True)
        named |= {"tune.lora": shown, "refine.lora": shown}
    return named


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shown(each)}" for name, each in value.items()) + "}"
    return str(value)
