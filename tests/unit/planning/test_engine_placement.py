"""Engines: sharding of replicas, assignment to nodes, and colocation with the trainer."""

import math
from dataclasses import replace

import pytest

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.planning import memory, resources
from sirt_ray.planning.clusters import Node, described
from sirt_ray.planning.models import shape_of
from sirt_ray.planning.placement import Role

TEACHER = "meta-llama/Llama-2-70b-chat-hf"


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_more_shards_need_less_of_each_gpu_and_hold_more(role: Role) -> None:
    shape = shape_of(TEACHER)
    assert shape is not None
    held = [
        memory.of_engine(shape, EngineConfig(tensor_parallel_size=n), True, 80e9) for n in (2, 4, 8)
    ]
    assert [one.weights for one in held] == sorted((one.weights for one in held), reverse=True)
    assert [one.kv_cache for one in held] == sorted(one.kv_cache for one in held)


def test_a_replica_is_spread_over_nodes_with_its_labels_only() -> None:
    nodes = [Node({"CPU": 8.0, "GPU": 2.0}, {"zone": zone}) for zone in "abb"]
    engine = EngineConfig(tensor_parallel_size=4, labels={"zone": "b"})
    need = resources.of_engine("teacher", engine, 6)
    assert resources.assign_nodes(need, nodes) == [1, 1, 2, 2]
    assert resources.assign_nodes(replace(need, labels={"zone": "a"}), nodes) is None
    assert (
        resources.assign_nodes(resources.of_engine("teacher", engine, 6, replicas=2), nodes) is None
    )


def test_a_replica_is_cut_over_nodes_only_where_no_node_has_room_for_it() -> None:
    nodes = [Node({"CPU": 8.0, "GPU": 6.0})] * 2
    engine = EngineConfig(tensor_parallel_size=4)
    two, three = (resources.of_engine("teacher", engine, 12, replicas=n) for n in (2, 3))
    assert resources.assign_nodes(two, nodes) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert resources.assign_nodes(three, nodes) == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1]
    workers = resources.of_trainer(TrainerResources(num_workers=5), 12)
    assert resources.assign_nodes(workers, [Node({"CPU": 8.0, "GPU": 2.0}), *nodes]) == [1] * 5


def test_enough_in_all_but_in_the_wrong_pieces_is_refused() -> None:
    nodes = [Node({"CPU": 3.0})] * 2
    three = resources.of_trainer(TrainerResources(num_workers=3, cpus_per_worker=2), 0)
    reason = resources.infeasible_reason(three, nodes)
    assert reason is not None and "3 times 2 CPU" in reason and "3 CPU; 3 CPU" in reason
    assert (
        resources.infeasible_reason(three, nodes, {"CPU": 6.0}) is None
    )  # an autoscaler may bring other nodes
    two = resources.of_trainer(TrainerResources(num_workers=2, cpus_per_worker=2), 0)
    assert resources.infeasible_reason(two, nodes) is None


def test_engines_that_are_described_without_cpus_have_enough() -> None:
    reason = resources.infeasible_reason(
        resources.of_trainer(TrainerResources(num_workers=9), 8), described("8x80GB").nodes
    )
    assert reason is not None and "the cluster has 8 GPU; missing: 1 GPU" in reason


@pytest.mark.parametrize(
    ("min_replicas", "gpus", "colocates"), [(1, 5.0, True), (1, 3.0, False), (0, 8.0, False)]
)
def test_the_students_engine_is_colocated_with_a_trainer_that_fits(
    min_replicas: int, gpus: float, colocates: bool
) -> None:
    student = EngineConfig(min_replicas=min_replicas)
    trainer = resources.of_trainer(TrainerResources(num_workers=4), 8)
    free = {"CPU": math.inf, "GPU": gpus}
    assert resources.can_colocate(student, trainer, free) is colocates
