"""The Ray that a run uses: the cluster at an address, or one of its own on this machine."""

import importlib.util
import logging
import math
import os
import platform
import signal
import socket
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray.data import DataContext

from sirt_ray.config.resources import ResourcesConfig
from sirt_ray.errors import ResourceError
from sirt_ray.logs import as_json
from sirt_ray.on_ray import needs
from sirt_ray.planning.resources import DATA_CPUS, runs_at_once

_CONNECTION_SECONDS = 10.0
_MOST_SIGNALS = 4096


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
    with noise_to(logs / "stderr.log"), _joined(address, resources, logs / "ray.log", at_once):
        yield ray.get_runtime_context().gcs_address


@contextmanager
def _joined(
    address: str | None, resources: ResourcesConfig, log: Path, at_once: int
) -> Generator[None]:
    _log_to(log)
    if address is None:
        _check_engine_installed()
    else:
        _check_reachable(address)
    # The lines of the job's workers, which stay in Ray's session folder.
    worker_logs = ray.LoggingConfig(encoding="JSON") if as_json() else None
    try:
        with _stops_heard():
            if address is None:
                # Each of Serve's processes writes its metrics ten times a second otherwise, which
                # takes CPU from the engines; Prometheus looks every few seconds.
                os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "1000")
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
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_joined(address, error) from error
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
def _stops_heard() -> Generator[None]:
    """While Ray starts: raise KeyboardInterrupt at the end where SIGTERM or Ctrl-C came meanwhile.

    Ray puts handlers of its own in front of ours (2.60), which raise SystemExit; later the process
    would be aborted by them before engines and Serve are stopped. Whatever a handler raises while
    Python forks, as for each of Ray's processes, is ignored: the stop would be lost.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    heard, told = socket.socketpair()
    with heard, told:
        heard.setblocking(False)
        told.setblocking(False)
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            if on_sigterm is not None:
                signal.signal(signal.SIGTERM, on_sigterm)
            signal.set_wakeup_fd(before)
            with suppress(BlockingIOError):
                if {signal.SIGINT, signal.SIGTERM}.intersection(heard.recv(_MOST_SIGNALS)):
                    raise KeyboardInterrupt from None


def _check_engine_installed() -> None:
    """Raise ResourceError before seconds of a start that leads nowhere."""
    if importlib.util.find_spec("vllm") is None:
        raise ResourceError(
            "vLLM is not installed, and no model can answer without it: pip install"
            " 'sirt-ray[cpu]', or 'sirt-ray[gpu]' where there is a GPU. Then `sirt doctor` shows"
            " whether all fits together"
        )


def _check_reachable(address: str) -> None:
    """Raise ResourceError where nobody listens: Ray would try for minutes, and then end the process
    itself."""
    scheme, _, place = address.rpartition("://")
    if scheme in ("http", "https"):
        raise ResourceError(
            f"{address} is the address of a cluster's dashboard, and a driver joins elsewhere. Hand"
            " the job to the cluster with `sirt submit`, or give the head node's own address, as in"
            " --address HEAD:6379"
        )
    host, _, port = place.rpartition(":")
    if not (host and port.isdigit()):  # `auto`, or something that Ray refuses by itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTION_SECONDS).close()
    except OSError as error:
        raise _not_joined(address, error) from error


def _not_joined(address: str | None, error: Exception) -> ResourceError:
    """Why there is no connection to Ray, in the words of whoever found out."""
    said = " ".join(str(error).split())
    if "AF_UNIX" in said:
        return ResourceError(
            "Ray cannot be started on this machine: the names of its sockets would be too long:"
            f" {said}. Set RAY_TMPDIR to a folder with a short name, such as /tmp"
        )
    if address is None:
        return ResourceError(
            f"Ray cannot be started on this machine: {said}. `sirt doctor` looks for the cause"
        )
    if "Version mismatch" in said:
        return ResourceError(
            f"the cluster at {address} runs another Ray or Python, and this process cannot join it:"
            f" {said.removeprefix('Version mismatch: ')}. Use the same versions on both sides: the"
            f" cluster's image needs ray=={ray.__version__} and Python {platform.python_version()}"
        )
    return ResourceError(
        f"cannot reach the cluster at {address}: {said}. Give --address the head node and its port,"
        " as in HEAD:6379 (`ray status` there shows whether Ray runs), and check that this machine"
        " may connect to it"
    )


def largest(each: Iterable[ResourcesConfig]) -> ResourcesConfig:
    """Of several jobs that use one Ray, what the largest of them needs."""
    return max(each, key=_needed_cpus)


def runs_that_fit(address: str | None, resources: ResourcesConfig, logs: Path) -> int:
    """Runs of such resources that find room at the same time for all that each of them starts, so
    that none waits for what another holds; 1 at least."""
    if address is None:
        gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
        there = {"CPU": float(os.cpu_count() or 1), "GPU": float(gpus)}
        return runs_at_once(resources, there)
    with connected(address, resources, logs):
        return runs_at_once(resources, needs.most() or ray.cluster_resources())


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
