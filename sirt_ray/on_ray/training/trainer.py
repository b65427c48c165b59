"""Training as a Ray Train job: start the workers, watch their metrics, return their result.

What a worker does is in `training/run.py`. A task fills its folder `out`; its working files are in
`out/.work`, and after a kill the same task resumes from there. Checkpoints are the trainer's own,
so a Ray Train run is only one attempt, with a new name each time: Ray Train would resume a run
under a name that it knows.
"""

import logging
import math
import os
from typing import Any

from sirt_ray import errors
from sirt_ray.config.resources import TrainerResources
from sirt_ray.core.interfaces import Counts, Progress
from sirt_ray.errors import ResourceError, SirtError, StageError, StorageError
from sirt_ray.logs import LogContext, bind_context, current_context, log_event
from sirt_ray.on_ray import _compat
from sirt_ray.on_ray.training.monitor import watched
from sirt_ray.on_ray.training.task_paths import fetch_inputs, localize, to_uris
from sirt_ray.storage import object_store
from sirt_ray.training.tasks import Task
from sirt_ray.training.workdir import WorkDir

_START_ATTEMPT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_ATTEMPT_SECONDS = 60.0
"""How long one start attempt of Ray Train waits for resources; then it makes a new one."""


def run(task: Task, name: str, progress: Progress) -> Counts:
    """Run the workers to the end of the task, or return the result of an earlier call. `name`: of
    the artifact that is built."""
    work = WorkDir(task.out)
    result = work.result()
    if result is None:
        attempt = work.acquire(task.resources)
        with watched(work, task.resources, name, progress):
            _fit(task, work, attempt, name)
        result = work.result()
        assert result is not None, "the workers ended without a result"
    work.remove()
    return result


def _fit(task: Task, work: WorkDir, attempt: str, name: str) -> None:
    """One Ray Train run. Raises the SirtError that a worker met, StageError where workers died."""
    import ray
    from ray.train import (
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer

    from sirt_ray.on_ray.cluster import gpus_per_worker

    # By default Ray looks every two seconds whether workers are done: small trainings take less.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        # Nothing is drained from a single machine; the watcher would be one more process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    resources = task.resources
    gpus = gpus_per_worker(resources)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "task": task,
            "paths": to_uris(task),
            "attempt": attempt,
            "context": current_context(),
        },
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=gpus > 0,
            resources_per_worker={
                "CPU": resources.cpus_per_worker,
                **({"GPU": gpus} if gpus else {}),
                **resources.custom_resources,
            },
        ),
        run_config=RunConfig(
            name=f"{name.replace('/', '-')}-{attempt}",
            storage_path=object_store.address(work.path / "ray"),
            failure_config=FailureConfig(
                max_failures=resources.max_failures,
                controller_failure_limit=_start_attempts(resources) - 1,
            ),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _worker_error(work) or _failed(error, resources) from error
    worker_error = _worker_error(work)
    if worker_error is not None:
        raise worker_error


def _worker(config: dict[str, Any]) -> None:
    """The training function that Ray Train runs in each worker.

    An error that every further attempt would repeat is written into the work folder. It is raised,
    so that Ray Train ends the other workers, and the attempt that follows returns at once.
    """
    context: LogContext = config["context"]
    with bind_context(context):
        _work(localize(config["task"], config["paths"]), config["attempt"])


def _work(task: Task, attempt: str) -> None:
    work = WorkDir(task.out, attempt)
    if work.failure() is not None:
        return
    device = _device(task.resources)
    log_event(
        logging.INFO, f"a training worker begins on {device}", "worker_began", attempt=attempt
    )
    from sirt_ray.training.run import run as run_task

    try:
        run_task(fetch_inputs(task), device, attempt)
    except StorageError:
        raise  # The next attempt may reach the storage.
    except SirtError as error:
        work.fail(type(error).__name__, str(error))
        raise
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        message = (
            f"A training worker ran out of memory: {str(error).rstrip('.')}. Lower"
            " resources.trainer.max_tokens_per_micro_batch, set gradient_checkpointing, raise"
            " zero_stage, set offload, or train with LoRA; none but LoRA changes the result"
        )
        work.fail(StageError.__name__, message)
        raise StageError(message) from error


def _device(resources: TrainerResources) -> Any:
    """Return the worker's device; on a CPU, use as many threads as the worker has CPUs."""
    import ray
    import ray.train.torch
    import torch

    if not ray.get_gpu_ids():
        torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
        return torch.device("cpu")
    return ray.train.torch.get_device()


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an exception class for GPU memory; for host memory only the message says so."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(
        error
    )


def _worker_error(work: WorkDir) -> SirtError | None:
    failure = work.failure()
    if failure is None:
        return None
    kind: type[SirtError] = getattr(errors, failure["kind"])
    return kind(failure["message"])


def _start_attempts(resources: TrainerResources) -> int:
    attempt_s = float(os.environ.get(_START_ATTEMPT, _START_ATTEMPT_SECONDS))
    return max(1, math.ceil(resources.start_timeout_s / attempt_s))


def _failed(error: Exception, resources: TrainerResources) -> SirtError:
    if _compat.is_startup_timeout(error):
        return ResourceError(
            f"the {resources.num_workers} training workers got no resources in"
            f" {resources.start_timeout_s:g} s. Free resources or add nodes, or raise"
            " resources.trainer.start_timeout_s; the same command continues"
        )
    return StageError(_crash_message(error, resources))


def _crash_message(error: Exception, resources: TrainerResources) -> str:
    lines = str(error).strip().splitlines()
    memory = (
        " Memory seems to have run out: lower resources.trainer.max_tokens_per_micro_batch."
        if "OutOfMemory" in str(error) or "SIGKILL" in str(error)
        else ""
    )
    return (
        f"The training workers failed more than {resources.max_failures} times:"
        f" {lines[-1] if lines else error!r}.{memory} The same command continues from the last"
        " checkpoint"
    )
