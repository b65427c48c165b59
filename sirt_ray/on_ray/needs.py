"""What the parts of a run need of the cluster that is there, and the refusal of what it can never
give. The rules are `planning.needs`'s."""

import json

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state as cluster_state
from ray.autoscaler._private.util import format_readonly_node_type
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental import internal_kv

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.errors import ResourceError
from sirt_ray.planning import resources
from sirt_ray.planning.clusters import Node
from sirt_ray.planning.resources import Need, Resources


def cluster_gpus() -> float:
    return ray.cluster_resources().get("GPU", 0.0)


def on_gpu(engine: EngineConfig) -> bool:
    return resources.on_gpu(engine, _gpus_for(engine))


def of_engine(role: str, engine: EngineConfig) -> Need:
    """The replicas that are always there, and one at least."""
    return resources.of_engine(role, engine, _gpus_for(engine))


def of_trainer(trainer: TrainerResources) -> Need:
    return resources.of_trainer(trainer, _gpus_for_workers(trainer))


def gpus_per_worker(trainer: TrainerResources) -> float:
    return resources.gpus_per_worker(trainer, _gpus_for_workers(trainer))


def _gpus_for(engine: EngineConfig) -> float:
    """Ray is asked only where the settings leave it open: what Serve reads in a file is built
    before there is a connection."""
    return cluster_gpus() if engine.device == "auto" else 0.0


def _gpus_for_workers(trainer: TrainerResources) -> float:
    return cluster_gpus() if trainer.gpus_per_worker is None else 0.0


def nodes() -> list[Node]:
    """Those that are alive."""
    return [Node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]


def may_grow() -> bool:
    """Whether an autoscaler is there that may add nodes.

    The second version of Ray's is there only where a cluster has one. The first reports on every
    cluster, and calls nodes `node_<id>` where it only watches them."""
    if is_autoscaler_v2(fetch_from_server=True):
        return True
    told = internal_kv._internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = (json.loads(told) if told else {}).get("autoscaler_report") or {}
    kinds = (report.get("node_type_mapping") or {}).items()
    return any(kind != format_readonly_node_type(node) for node, kind in kinds)


def most() -> Resources | None:
    """What an autoscaler that says so may bring the cluster to."""
    return cluster_state.get_max_resources_from_cluster_config()


def check_resources(*wanted: Need) -> None:
    """Raise one ResourceError for all needs that the cluster can never meet, each for itself: parts
    that are not needed at the same time may use the same resources."""
    limit = most()
    if limit is None and may_grow():
        return
    there = nodes()
    problems = [
        text for need in wanted if (text := resources.unmet(need, there, limit)) is not None
    ]
    if problems:
        raise ResourceError("\n".join(problems))
