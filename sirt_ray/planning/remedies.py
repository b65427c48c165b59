"""The smallest change that makes a part fit, found by trying changes in the order of their harm.

Harm is counted in points and added up; of equal sums the fewer changes win. What costs time or
messages alone comes first, then what costs much time, last what changes the method:

    1   gradient checkpointing (a third more computing); half the micro-batch, each time; ZeRO-2;
        more workers; an engine over twice, or half, as many GPUs; fewer replicas at the start; a KV
        cache of vLLM's own size
    2   fewer workers; shorter sequences, down to what the job asks for
    3   ZeRO-3
    4   the optimizer in the machine's memory
    6   the parameters, too
  100   LoRA in place of full fine-tuning
  101   QLoRA
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.config.training import LoraConfig, TrainingConfig
from sirt_ray.planning import resources as needs
from sirt_ray.planning.clusters import Cluster, of_size
from sirt_ray.planning.gpus import GPUS
from sirt_ray.planning.placement import Role, Setup, problem

_PROMPT_ROOM = 512
"""Tokens that an engine must take beside the longest completion."""
_METHOD = 100
"""Harm from which on a change is one of the method."""
_NODES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8))
"""Nodes and GPUs of each that are looked at for a larger cluster."""


@dataclass(frozen=True, slots=True)
class Change:
    """Settings of a job file, dotted, and their new values."""

    settings: Mapping[str, Any]
    harm: int
    setup: Setup
    """With the change."""

    def __str__(self) -> str:
        return ", ".join(f"{name}: {_shown(value)}" for name, value in self.settings.items())


@dataclass(frozen=True, slots=True)
class _Option:
    """One value of one setting."""

    name: str
    value: Any
    harm: int


def smallest_change(setup: Setup, cluster: Cluster, role: Role) -> Change | None:
    """The least harmful settings with which the role fits the cluster; None where none do."""
    for change in _changes(setup, cluster, role):
        if change.settings and problem(change.setup, cluster, role) is None:
            return change
    return None


def smallest_cluster(setup: Setup, cluster: Cluster) -> tuple[Cluster, Change] | None:
    """The cluster with the least memory in all that holds every part, and the change, perhaps none,
    that the job still takes, but none of the method: more GPUs of the kind that there is, or larger
    ones."""
    own = cluster.gpu
    if own is None:
        return None
    larger = {gpu.memory_gb: gpu for gpu in GPUS if gpu.memory_gb > own.memory_gb}
    shapes = [
        (nodes, each, gpu)
        for gpu in [own, *larger.values()]
        for nodes, each in _NODES
        if nodes * each * gpu.memory_gb > cluster.gpus * own.memory_gb
    ]
    for nodes, each, gpu in sorted(shapes, key=lambda s: (s[0] * s[1] * s[2].memory_gb, s[:2])):
        tried = of_size(gpu, nodes, each)
        change = _for_all_parts(setup, tried)
        if change is not None:
            return tried, change
    return None


def _for_all_parts(setup: Setup, cluster: Cluster) -> Change | None:
    """The smallest change, perhaps none, with which every part fits, but none of the method."""
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
    """Every combination, least harm first; settings that contradict each other are left out."""
    trains = role == "trainer"
    options = _of_trainer(setup, cluster) if trains else _of_engine(setup, cluster, role)
    combined = [[one for one in taken if one is not None] for taken in product(*options)]
    for taken in sorted(combined, key=lambda each: (sum(o.harm for o in each), len(each))):
        changed = _changed(setup, role, taken)
        if changed is not None:
            yield Change(_named(setup, role, taken), sum(o.harm for o in taken), changed)


def _of_trainer(setup: Setup, cluster: Cluster) -> list[list[_Option | None]]:
    trainer = setup.resources.trainer
    options: list[list[_Option | None]] = [[None] for _ in range(6)]
    if not trainer.gradient_checkpointing:
        options[0].append(_Option("gradient_checkpointing", True, 1))
    tokens = trainer.max_tokens_per_micro_batch
    options[1] += [
        _Option("max_tokens_per_micro_batch", tokens >> halved, halved)
        for halved in (1, 2, 3)
        if tokens >> halved >= 512
    ]
    options[2] += [
        _Option("zero_stage", stage, harm)
        for stage, harm in ((2, 1), (3, 3))
        if stage > trainer.zero_stage
    ]
    options[3] += [
        _Option("num_workers", n, 2 if n < trainer.num_workers else 1)
        for n in _worker_counts(trainer, cluster)
    ]
    kinds = ("none", "optimizer", "parameters")
    options[4] += [
        _Option("offload", kind, harm)
        for kind, harm in (("optimizer", 4), ("parameters", 6))
        if kinds.index(kind) > kinds.index(trainer.offload)
    ]
    if not all(config.lora for config in setup.trainings):
        options[5].append(_Option("lora", LoraConfig(), _METHOD))
    if cluster.gpus and not all(config.quantizes for config in setup.trainings):
        options[5].append(_Option("lora", LoraConfig(quantize="nf4"), _METHOD + 1))
    return options


def _worker_counts(trainer: TrainerResources, cluster: Cluster) -> list[int]:
    """The most that the cluster has places for, if that is another number."""
    most = 0
    while most < max(64, trainer.num_workers):
        more = trainer.model_copy(update={"num_workers": most + 1})
        if needs.assign_nodes(needs.of_trainer(more, cluster.gpus), cluster.nodes) is None:
            break
        most += 1
        if not cluster.gpus and most == trainer.num_workers:
            break
    return [most] if most and most != trainer.num_workers else []


def _of_engine(setup: Setup, cluster: Cluster, role: Role) -> list[list[_Option | None]]:
    engine, shape = setup.engine(role), setup.shape(role)
    options: list[list[_Option | None]] = [[None] for _ in range(4)]
    shards, harm = 1, {}
    while shards <= cluster.gpus:
        harm[shards] = abs(shards.bit_length() - engine.tensor_parallel_size.bit_length())
        shards *= 2
    options[0] += [
        _Option("tensor_parallel_size", n, points)
        for n, points in harm.items()
        if n != engine.tensor_parallel_size and needs.on_gpu(engine, cluster.gpus)
    ]
    enough = setup.longest_completion + _PROMPT_ROOM
    if shape is not None and enough < (engine.max_model_len or shape.max_length):
        options[1].append(_Option("max_model_len", enough, 2))
    if engine.min_replicas > 1:
        options[2].append(_Option("min_replicas", 1, 1))
    if engine.kv_cache_gib is not None:
        options[3].append(_Option("kv_cache_gib", None, 1))
    return options


def _changed(setup: Setup, role: Role, taken: Sequence[_Option]) -> Setup | None:
    """The setup with the options; None where they contradict each other."""
    own = {option.name: option.value for option in taken if option.name != "lora"}
    section = setup.resources.trainer if role == "trainer" else setup.engine(role)
    try:
        made: EngineConfig | TrainerResources = type(section).model_validate(
            section.model_dump() | own
        )
    except ValueError:
        return None
    trainings = setup.trainings
    for option in taken:
        if option.name == "lora":
            trainings = tuple(_adapted(config, option.value) for config in trainings)
    cut = isinstance(made, TrainerResources) and made.zero_stage == 3
    if cut and any(config.quantizes for config in trainings):
        return None
    resources = setup.resources.model_copy(update={role: made})
    return replace(setup, resources=resources, trainings=trainings)


def _adapted(config: TrainingConfig, lora: LoraConfig) -> TrainingConfig:
    if config.lora is not None:
        lora = config.lora.model_copy(update={"quantize": lora.quantize})
    return config.model_copy(update={"lora": lora})


def _named(setup: Setup, role: Role, taken: Sequence[_Option]) -> dict[str, Any]:
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
