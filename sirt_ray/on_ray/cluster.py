"""The Ray that a run uses: the cluster at an address, or one of its own on this machine; and what
its nodes have and may get."""

import importlib.util
import logging
import math
import os
import platform
import signal
import socket
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext
from ray.exceptions import RayError
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sirt_ray.config.resources import EngineConfig, ResourcesConfig, TrainerResources
from sirt_ray.errors import ResourceError
from sirt_ray.logs import as_json
from sirt_ray.on_ray import _compat
from sirt_ray.planning import gpus, resources
from sirt_ray.planning.clusters import Cluster, Node
from sirt_ray.planning.gpus import Device, Gpu
from sirt_ray.planning.resources import (
    DATA_CPUS,
    ResourceRequest,
    Resources,
    describe,
    runs_at_once,
)

_CONNECTION_SECONDS = 10.0
_QUERY_SECONDS = 60
_MAX_SIGNALS = 4096
_TYPE_LABEL = "ray.io/accelerator-type"
_TYPE_RESOURCE = "accelerator_type:"


# Connecting to Ray


@contextmanager
def connected(
    address: str | None, resources: ResourcesConfig, logs: Path, at_once: int = 1
) -> Generator[str]:
    """Connect to Ray for the time of a run, or of `at_once` runs of such resources. Yields the
    address at which other processes of this machine reach the same Ray.

    `address` None: start a Ray on this machine and stop it at the end; its ports belong to Ray and
    require the token that Ray makes. Otherwise join that cluster and leave it running. Ray's own
    log lines of this process go to `logs/ray.log` and what it writes to standard error to
    `logs/stderr.log`; those of its workers stay in Ray's session folder. Raises ResourceError where
    there is no connection.
    """
    with stderr_to(logs / "stderr.log"), _joined(address, resources, logs / "ray.log", at_once):
        yield ray.get_runtime_context().gcs_address


@contextmanager
def stderr_to(log: Path) -> Generator[None]:
    """Send what this process's libraries write to standard error, also from C++, to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _joined(
    address: str | None, resources: ResourcesConfig, log: Path, at_once: int
) -> Generator[None]:
    _log_to(log)
    if address is None:
        _check_engine_installed()
        _check_loopback()
        _check_temporary_folder()
    else:
        _check_reachable(address)
    # For the lines of the job's workers, which stay in Ray's session folder.
    worker_logs = ray.LoggingConfig(encoding="JSON") if as_json() else None
    try:
        with _stop_signals_deferred():
            if address is None:
                # By default each of Serve's processes writes its metrics ten times a second, which
                # takes CPU from the engines; Prometheus scrapes every few seconds.
                os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "1000")
                # Trainer, engines and Ray share this machine's cores. OpenMP threads that spin at
                # barriers take a core from the thread that they wait for, which made small matrix
                # products ten times slower.
                os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
                ray.init(
                    address="local",
                    num_cpus=_local_cpus(resources, at_once),
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    logging_config=worker_logs,
                )
            else:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    configure_logging=False,
                    logging_config=worker_logs,
                )
    except Exception as error:
        # Untrusted edge: among others, Ray raises a plain Exception where a node does not start.
        raise _connection_error(address, error) from error
    if worker_logs is not None:  # It has applied to this process, too.
        _log_to(log)
    node = ray.get_runtime_context().get_node_id()
    logging.getLogger("ray").info("joined %s from node %s", address or "a local Ray", node)
    data = DataContext.get_current()
    data.enable_progress_bars = False
    data.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _stop_signals_deferred() -> Generator[None]:
    """Restore the handler of SIGTERM after Ray has started, and then raise KeyboardInterrupt where
    SIGTERM or Ctrl-C came meanwhile.

    Ray replaces the handlers by its own (2.60, https://github.com/ray-project/ray/issues/17308),
    which raise SystemExit; later they would abort the process before engines and Serve are stopped.
    Whatever a handler raises while Python forks, as for each of Ray's processes, is ignored: the
    stop would be lost.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            if on_sigterm is not None:
                signal.signal(signal.SIGTERM, on_sigterm)
            signal.set_wakeup_fd(before)
            with suppress(BlockingIOError):
                if {signal.SIGINT, signal.SIGTERM}.intersection(receiver.recv(_MAX_SIGNALS)):
                    raise KeyboardInterrupt from None


def _check_engine_installed() -> None:
    """Raise ResourceError before seconds of a start that cannot succeed."""
    if importlib.util.find_spec("vllm") is None:
        raise ResourceError(
            "vLLM is not installed, and no model can answer without it: pip install"
            " 'sirt-ray[cpu]', or 'sirt-ray[gpu]' where there is a GPU. Then `sirt doctor` shows"
            " whether all fits together"
        )


def _check_loopback() -> None:
    """Raise ResourceError if processes of this machine cannot reach each other at 127.0.0.1: Ray
    would try for minutes."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), _CONNECTION_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            "Ray cannot be started on this machine: its processes reach each other at 127.0.0.1,"
            f" which does not work ({error.strerror or error}). Bring the loopback interface up"
            " (`ip link set lo up` as root), or start the container with a network"
        ) from error


def _check_temporary_folder() -> None:
    """Raise ResourceError for a folder in which Ray's processes would fail after a while."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if variable is not None and not os.environ[variable].isascii():
        raise ResourceError(
            f"Ray cannot be started on this machine: it keeps its files in {os.environ[variable]}"
            f" ({variable}), and can only use a path of ASCII characters. Set RAY_TMPDIR to another"
            " folder, such as /tmp"
        )


def _check_reachable(address: str) -> None:
    """Raise ResourceError where no process listens: Ray would try for minutes, and then end the
    process itself."""
    scheme, _, host_and_port = address.rpartition("://")
    if scheme in ("http", "https"):
        raise ResourceError(
            f"{address} is the address of a cluster's dashboard, and a driver joins at another."
            " Hand the job to the cluster with `sirt submit`, or give the head node's own address,"
            " as in --address HEAD:6379"
        )
    host, _, port = host_and_port.rpartition(":")
    if not (host and port.isdigit()):  # `auto`, or an address that Ray refuses by itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTION_SECONDS).close()
    except OSError as error:
        raise _connection_error(address, error) from error


def _connection_error(address: str | None, error: Exception) -> ResourceError:
    """Return why there is no connection to Ray, with the reason that was found."""
    reason = " ".join(str(error).split())
    if "AF_UNIX" in reason:
        return ResourceError(
            "Ray cannot be started on this machine: the names of its sockets would be too long:"
            f" {reason}. Set RAY_TMPDIR to a folder with a short name, such as /tmp"
        )
    if isinstance(error, UnicodeEncodeError):
        return ResourceError(
            f"Ray cannot use the folder {error.object}: it has other characters than ASCII in its"
            " name. Start Ray's nodes with RAY_TMPDIR set to another folder, such as /tmp"
        )
    if address is None:
        return ResourceError(
            f"Ray cannot be started on this machine: {reason}. `sirt doctor` looks for the cause"
        )
    if "Version mismatch" in reason:
        return ResourceError(
            f"the cluster at {address} runs another Ray or Python, and this process cannot join it:"
            f" {reason.removeprefix('Version mismatch: ')}. Use the same versions on both sides:"
            f" the cluster's image needs ray=={ray.__version__} and Python"
            f" {platform.python_version()}"
        )
    return ResourceError(
        f"cannot reach the cluster at {address}: {reason}. Give --address the head node and its"
        " port, as in HEAD:6379 (`ray status` there shows whether Ray runs), and check that this"
        " machine may connect to it"
    )


def _local_cpus(resources: ResourcesConfig, at_once: int) -> int:
    """Return the logical CPUs of a Ray on this machine: enough for everything that is up at the
    same time, since engines wait while the trainer works and the other way round."""
    if resources.local_cpus is not None:
        return resources.local_cpus * at_once
    return max(os.cpu_count() or 1, math.ceil(_required_cpus(resources) * at_once))


def _required_cpus(resources: ResourcesConfig) -> float:
    engines = (resources.teacher, resources.student)
    return (
        sum(engine.num_cpus * engine.max_replicas for engine in engines)
        + resources.trainer.num_workers * resources.trainer.cpus_per_worker
        + DATA_CPUS
    )


def _log_to(file: Path) -> None:
    """Send what Ray's libraries log in this process to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("ray", "ray.data", "ray.serve", "ray.train", "ray.tune"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)


# Several runs on one Ray


def largest(each: Iterable[ResourcesConfig]) -> ResourcesConfig:
    """Return the largest resources of several jobs that use one Ray."""
    return max(each, key=_required_cpus)


def runs_that_fit(address: str | None, resources: ResourcesConfig, logs: Path) -> int:
    """Return how many runs of such resources can have all that each of them starts at the same
    time, so that none waits for what another holds; 1 at least."""
    if address is None:
        gpus = _compat.count_local_gpus()
        there = {"CPU": float(os.cpu_count() or 1), "GPU": float(gpus)}
        return runs_at_once(resources, there)
    with connected(address, resources, logs):
        return runs_at_once(resources, _compat.max_cluster_resources() or ray.cluster_resources())


# What the parts of a run request, and the refusal of what the cluster can never provide. The rules
# are those of `planning.resources`.


def cluster_gpus() -> float:
    """Return the GPUs of the cluster."""
    return ray.cluster_resources().get("GPU", 0.0)


def on_gpu(engine: EngineConfig) -> bool:
    """Return whether the engine's replicas run on GPUs."""
    return resources.on_gpu(engine, _gpus_for(engine))


def of_engine(role: str, engine: EngineConfig) -> ResourceRequest:
    """Return the request of the replicas that are always up, and of one at least."""
    return resources.of_engine(role, engine, _gpus_for(engine))


def of_trainer(trainer: TrainerResources) -> ResourceRequest:
    """Return the request of the training workers."""
    return resources.of_trainer(trainer, _gpus_for_workers(trainer))


def gpus_per_worker(trainer: TrainerResources) -> float:
    """Return the GPUs of one training worker."""
    return resources.gpus_per_worker(trainer, _gpus_for_workers(trainer))


def _gpus_for(engine: EngineConfig) -> float:
    """Query Ray only where the settings leave it open: what Serve reads in a file is built before
    there is a connection."""
    return cluster_gpus() if engine.device == "auto" else 0.0


def _gpus_for_workers(trainer: TrainerResources) -> float:
    return cluster_gpus() if trainer.gpus_per_worker is None else 0.0


def nodes() -> list[Node]:
    """Return the nodes that are alive."""
    return [Node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]


def check_resources(*requests: ResourceRequest) -> None:
    """Raise one ResourceError for all requests that the cluster can never fulfil, each by itself:
    parts that are not needed at the same time may use the same resources."""
    limit = _compat.max_cluster_resources()
    if limit is None and _compat.has_autoscaler():
        return
    there = nodes()
    problems = [
        text
        for request in requests
        if (text := resources.infeasible_reason(request, there, limit)) is not None
    ]
    if problems:
        raise ResourceError("\n".join(problems))


# Pending placement groups


def describe_pending(wanted: Sequence[Resources]) -> str:
    """Return what is requested, free and reserved.

    Example::

        it needs 2 x (1 CPU, 1 GPU); free now: 1 CPU; reserved: 1 GPU by sirt-mine-student
    """
    held = allocated_by_owner(placement_group_table().values())
    reserved = "; ".join(f"{describe(amounts)} by {owner}" for owner, amounts in held.items())
    free = describe(ray.available_resources())
    return f"it needs {counted(wanted)}; free now: {free}" + f"; reserved: {reserved}" * bool(held)


def has_pending() -> bool:
    """Return whether any placement group of the cluster still waits for its resources."""
    return any(group["state"] == "PENDING" for group in placement_group_table().values())


def counted(bundles: Sequence[Resources]) -> str:
    """Return a text with equal bundles once, with their number."""
    numbers: dict[str, int] = {}
    for bundle in bundles:
        text = describe(bundle)
        numbers[text] = numbers.get(text, 0) + 1
    return " and ".join(text if n == 1 else f"{n} x ({text})" for text, n in numbers.items())


def allocated_by_owner(groups: Any) -> Mapping[str, Resources]:
    """Return what the placement groups of Ray's table have: Serve's by application, others together
    as `other groups`."""
    held: dict[str, dict[str, float]] = {}
    for group in groups:
        if group["state"] != "CREATED":
            continue
        amounts = held.setdefault(_owner(group["name"]), {})
        for bundle in group["bundles"].values():
            for name, amount in bundle.items():
                amounts[name] = amounts.get(name, 0.0) + amount
    return held


def _owner(name: str) -> str:
    """Return the owner of a group. Serve names that of a replica
    `SERVE_REPLICA::<application>#<deployment>#<id>`."""
    prefix, _, replica = name.partition("::")
    return replica.split("#")[0] if prefix == "SERVE_REPLICA" and replica else "other groups"


# The cluster's nodes and the memory of their GPUs, for plans


def read(address: str) -> Cluster:
    """Return the nodes that are alive on the Ray that this process is connected to. The GPUs of
    each node are queried by a task that reserves none of them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    found = [devices_of(node) for node in alive]
    cluster = from_nodes(address, alive, found)
    if _compat.max_cluster_resources() is None and not _compat.has_autoscaler():
        return cluster
    text = "nodes that the autoscaler may add are not looked at"
    return replace(cluster, assumed=[*cluster.assumed, text])


def from_nodes(
    address: str, alive: Sequence[Mapping[str, Any]], devices: Sequence[Sequence[Device]]
) -> Cluster:
    """Return Ray's nodes, with the GPUs of each as far as they were found."""
    nodes: list[Node] = []
    assumed: list[str] = []
    for number, (node, there) in enumerate(zip(alive, devices, strict=True), start=1):
        made = Node(node["Resources"], node["Labels"])
        if made.gpus:
            kind = _named(made) if not there else _smallest(there)
            if kind is None:
                assumed.append(f"node {number}: what its GPUs hold is not known")
            elif not there:
                assumed.append(f"node {number}: its GPUs hold what an {kind.name} does")
            made = replace(made, gpu=kind)
        nodes.append(made)
    return Cluster(f"the cluster at {address}", nodes, assumed, described=False)


def _named(node: Node) -> Gpu | None:
    """Return the GPU that Ray's label or resource of the node names."""
    label = node.labels.get(_TYPE_LABEL)
    names = [name for name in node.resources if name.startswith(_TYPE_RESOURCE)]
    for name in [label, *(name.removeprefix(_TYPE_RESOURCE) for name in names)]:
        if name and (kind := gpus.by_name(name)) is not None:
            return kind
    return None


def _smallest(there: Sequence[Device]) -> Gpu:
    smallest = min(there, key=lambda device: device.total_mib)
    kind = gpus.by_device(smallest.name) or Gpu(smallest.name, 0.0, 0.0, 0.0)
    return replace(kind, memory_gb=round(smallest.total_mib * 2**20 / gpus.GB, 1))


def devices_of(node: Mapping[str, Any]) -> list[Device]:
    """Return the GPUs of a node; none where they cannot be queried."""
    if not node["Resources"].get("GPU"):
        return []
    task = ray.remote(gpus.query_devices).options(
        num_cpus=0,
        max_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    )
    try:
        found = ray.get(task.remote(), timeout=_QUERY_SECONDS)
    except RayError:  # an image without nvidia-smi, a node that has just gone: its label may do
        return []
    # Without a size there is nothing to plan with.
    return found if all(device.total_mib for device in found) else []
