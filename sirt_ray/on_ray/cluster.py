"""The Ray that a run uses: the cluster at an address, or one of its own on this machine."""

import logging
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray._private.state import state as cluster_state
from ray.data import DataContext

from sirt_ray.errors import ResourceError
from sirt_ray.on_ray.needs import of_trainer
from sirt_ray.on_ray.placement import bundles
from sirt_ray.resources import ResourcesConfig

_DATA_CPUS = 1
"""What Ray Data's tasks need beside engines and trainers."""


@contextmanager
def noise_to(log: Path) -> Generator[None]:
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
def connected(
    address: str | None, resources: ResourcesConfig, logs: Path, at_once: int = 1
) -> Generator[str]:
    """A connection to Ray for the time of a run, or of `at_once` runs of such resources. Yields the
    address at which other processes of this machine reach the same Ray.

    `address` None: start a Ray of our own on this machine and stop it at the end; its ports belong
    to Ray and want the token that Ray makes. Otherwise join that cluster and leave it running.
    Ray's own log lines of this process go to `logs/ray.log` and what it writes to standard error to
    `logs/stderr.log`; those of its workers stay in Ray's session folder.
    """
    _log_to(logs / "ray.log")
    with noise_to(logs / "stderr.log"), _joined(address, resources, at_once):
        yield ray.get_runtime_context().gcs_address


@contextmanager
def _joined(address: str | None, resources: ResourcesConfig, at_once: int) -> Generator[None]:
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            # Each of Serve's processes writes its metrics ten times a second otherwise, which takes
            # CPU from the engines; Prometheus looks every few seconds.
            os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "1000")
            ray.init(
                address="local",
                num_cpus=_local_cpus(resources, at_once),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        else:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except SystemExit:
        # What Ray makes of SIGTERM while it starts; for our callers that is a stop like any other.
        raise KeyboardInterrupt from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the cluster at {address}" if address else "Ray on this machine"
        raise ResourceError(
            f"cannot reach {where}: {error}. Check the address and that Ray's version is the same"
            " on both sides"
        ) from error
    # Ray puts a handler of its own in front of ours (2.60), and the process is aborted before
    # engines and Serve are stopped.
    if on_sigterm is not None:
        signal.signal(signal.SIGTERM, on_sigterm)
    node = ray.get_runtime_context().get_node_id()
    logging.getLogger("ray").info("joined %s from node %s", address or "a local Ray", node)
    data = DataContext.get_current()
    data.enable_progress_bars = False
    data.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def largest(each: Iterable[ResourcesConfig]) -> ResourcesConfig:
    """Of several jobs that use one Ray, what the largest of them needs."""
    return max(each, key=_needed_cpus)


def runs_that_fit(address: str | None, resources: ResourcesConfig, logs: Path) -> int:
    """Runs of such resources that find room at the same time for all that each of them starts, so
    that none waits for what another holds; 1 at least."""
    if address is None:
        gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
        return _times({"CPU": float(os.cpu_count() or 1), "GPU": float(gpus)}, resources)
    with connected(address, resources, logs):
        return _times(
            cluster_state.get_max_resources_from_cluster_config() or ray.cluster_resources(),
            resources,
        )


def _times(there: Mapping[str, float], resources: ResourcesConfig) -> int:
    gpus = there.get("GPU", 0.0) > 0
    wanted = Counter({"CPU": float(_DATA_CPUS)})
    for engine in (resources.teacher, resources.student):
        on_gpu = gpus if engine.device == "auto" else engine.device == "gpu"
        for bundle in bundles(engine, on_gpu) * engine.max_replicas:
            wanted.update(bundle)
    for bundle in of_trainer(resources.trainer, gpus).bundles:
        wanted.update(bundle)
    return max(1, min(int(there.get(name, 0.0) // amount) for name, amount in wanted.items()))


def _local_cpus(resources: ResourcesConfig, at_once: int) -> int:
    """Logical CPUs of the Ray that we start: enough for everything that lives at the same time,
    since engines wait while the trainer works and the other way round."""
    if resources.local_cpus is not None:
        return resources.local_cpus * at_once
    return max(os.cpu_count() or 1, math.ceil(_needed_cpus(resources) * at_once))


def _needed_cpus(resources: ResourcesConfig) -> float:
    engines = (resources.teacher, resources.student)
    return (
        sum(engine.num_cpus * engine.max_replicas for engine in engines)
        + resources.trainer.num_workers * resources.trainer.cpus_per_worker
        + _DATA_CPUS
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
