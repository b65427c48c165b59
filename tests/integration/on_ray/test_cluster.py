"""`sirt plan --address`: what is read from a running Ray."""

import pytest
import ray

from sirt_ray.config.resources import EngineConfig, ResourcesConfig
from sirt_ray.errors import ResourceError
from sirt_ray.on_ray import cluster as live_cluster
from sirt_ray.planning.placement import Setup, plan_placement, problem


def test_the_nodes_that_are_there_are_planned_on(ray_cluster: None) -> None:
    cluster = live_cluster.read("auto")
    assert [node.resources["CPU"] for node in cluster.nodes] == [4.0]
    assert cluster.gpus == 0 and cluster.assumed == []
    large = ResourcesConfig(student=EngineConfig(num_cpus=2, max_replicas=9))
    placed = plan_placement(Setup(None, "none", {"none": None}, large, (), 1), cluster)
    assert placed.parts["student"].count == 2
    assert problem(Setup(None, "none", {"none": None}, large, (), 1), cluster, "student") is None


def test_the_plan_and_the_run_refuse_with_the_same_words(ray_cluster: None) -> None:
    resources = ResourcesConfig(student=EngineConfig(num_cpus=64))
    setup = Setup(None, "none", {"none": None}, resources, (), 1)
    planned = problem(setup, live_cluster.read("auto"), "student")
    with pytest.raises(ResourceError) as refused:
        live_cluster.check_resources(live_cluster.of_engine("student", resources.student))
    assert str(refused.value) == planned


def test_a_node_that_cannot_say_what_its_gpus_are_is_no_error(ray_cluster: None) -> None:
    """There is no nvidia-smi here; a task looks for it on the node itself."""
    (node,) = ray.nodes()
    assert live_cluster.devices_of(node | {"Resources": {"GPU": 2.0}}) == []
    assert live_cluster.devices_of(node) == []
