"""Runs on a cluster, through Ray's Jobs API.

    cluster = Cluster.at("http://head:8265")
    submission = cluster.submit(run, folder, command, driver)
    for text in follow(cluster, submission.id, report): ...
    cluster.stop(submission, folder, report)

The submissions of a run have the ids `sirt-<run id>-01`, `-02` and so on. Ray accepts an id once,
and the next number is used only when the submission before it has ended. So a run never has two
drivers at once, whoever submits it.
"""

import shutil
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import yaml
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_placement_groups

import sirt_ray
from sirt_ray.config import load
from sirt_ray.config.resources import DriverResources
from sirt_ray.errors import ConfigError, ResourceError, StageError
from sirt_ray.on_ray import _compat, serve_apps
from sirt_ray.on_ray.submit.logs import RateLimited, Report
from sirt_ray.on_ray.submit.submissions import Submission, SubmittedRun, explained, submission_id
from sirt_ray.storage.writing import write

_CONNECTION_SECONDS = 10.0
_POLL_SECONDS = 1.0
_STOP_SECONDS = 120
"""Time for a stopped driver to clean up on the cluster before Ray kills it."""
_COLUMNS = 120
"""Terminal width for the driver's output."""
_MAX_GROUPS = 10_000
"""Placement groups to list at most."""


def pack(folder: Path, job: Path | None, with_package: bool, code: Sequence[Path] = ()) -> None:
    """Copy what a job needs into `folder`: the job file (merged with its base files), the code
    files that it names, and this package. Raises ConfigError if a code file is not in the job's
    folder or below it."""
    if job is not None:
        if load.base_files(job):
            text = yaml.safe_dump(load.parsed(job)[0], sort_keys=False)
            write(folder / job.name, text)
        else:
            shutil.copyfile(job, folder / job.name)
        for file in dict.fromkeys(code):
            if not file.resolve().is_relative_to(job.parent.resolve()):
                raise ConfigError(
                    f"{file} cannot be sent: it is outside of {job.parent.resolve()}, the folder"
                    f" of the job. Put it next to {job.name}"
                )
            to = folder / file.resolve().relative_to(job.parent.resolve())
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
    if with_package:
        package = Path(sirt_ray.__file__).parent
        unneeded = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(package, folder / package.name, ignore=unneeded)


class Cluster:
    """A Ray cluster that runs are submitted to."""

    def __init__(self, client: JobSubmissionClient) -> None:
        self._client = client
        self.address = client.get_address()

    @classmethod
    def at(cls, address: str | None) -> "Cluster":
        """Connect to the cluster at the address of its dashboard. As with `ray job`,
        RAY_API_SERVER_ADDRESS and RAY_ADDRESS take precedence over `address`; without any of them a
        cluster on this machine is used. Raises ResourceError if the cluster does not answer,
        rejects the token, or runs another version of Ray."""
        with explained(address):
            url = _compat.dashboard_url(address)
        with explained(url):
            _check_reachable(url)
            # The client resolves the address itself, with the same precedence.
            client = JobSubmissionClient(address)
        theirs = _compat.cluster_ray_version(client)
        if theirs != ray.__version__:
            raise ResourceError(
                f"the cluster at {url} runs Ray {theirs}, and this sirt-ray needs Ray"
                f" {ray.__version__}: its driver could not join. Use an image with"
                f" ray=={ray.__version__} on the cluster"
            )
        return cls(client)

    def submissions(self) -> list[Submission]:
        """Return all submissions of all runs, the oldest first."""
        with explained(self.address):
            jobs = self._client.list_jobs()
        found = [s for job in jobs if (s := Submission.read(job)) is not None]
        return sorted(found, key=lambda submission: (submission.started, submission.number))

    def latest(self, run: SubmittedRun) -> Submission | None:
        """Return a run's last submission."""
        found = [s for s in self.submissions() if s.run.id == run.id]
        return max(found, key=lambda submission: submission.number, default=None)

    def submission(self, submission_id: str) -> Submission:
        """Return the current state of a submission. Raises StageError if the cluster does not know
        it, ResourceError if the cluster does not answer."""
        with explained(self.address):
            try:
                found = Submission.read(self._client.get_job_info(submission_id))
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
                found = None
        if found is None:
            raise StageError(
                f"the cluster at {self.address} does not know {submission_id}: its head was"
                " restarted since. `sirt submit` resumes the run from what is stored"
            )
        return found

    def log(self, submission_id: str) -> str:
        """Return the driver's whole log; nothing if its node is gone."""
        with explained(self.address):
            try:
                return self._client.get_job_logs(submission_id) or ""
            except RuntimeError:
                return ""

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """Yield the log from its beginning, and what is written to it until the job ends."""
        return self._client.tail_job_logs(submission_id)

    def submit(
        self, run: SubmittedRun, folder: Path, command: str, driver: DriverResources
    ) -> Submission:
        """Start `command` on a node with the resources that `driver` requires, in a copy of
        `folder`. If a submission of the run has not ended, return that one instead."""
        before = self.latest(run)
        if before is not None and not before.is_over:
            return before
        new = submission_id(run, 1 if before is None else before.number + 1)
        with explained(self.address):
            try:
                self._client.submit_job(
                    # `exec` replaces the shell, so that the job's signals reach the driver.
                    entrypoint=f"exec {command}",
                    submission_id=new,
                    runtime_env=_runtime_env(folder),
                    metadata=run.metadata,
                    entrypoint_num_cpus=driver.num_cpus or None,
                    entrypoint_resources=driver.custom_resources or None,
                    entrypoint_label_selector=driver.labels or None,
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
        return self.submission(new)

    def stop(self, submission: Submission, folder: Path, report: Report) -> list[str]:
        """Stop a run's driver and clean up what the run has on the cluster.

        The driver gets SIGTERM first, and deletes its engines itself. What remains, also of a
        driver that was killed, is deleted by a job on the head node, in a copy of `folder`. Return
        the names of the Serve applications that this job deleted. Raises StageError if some could
        not be deleted.
        """
        with explained(self.address):
            self._client.stop_job(submission.id)
        self._wait_until_over(submission.id, report)
        left = self.leftover_apps(submission.run)
        if not left:
            return []
        report(f"Deleting what the driver has left: {', '.join(left)}")
        cleanup = f"sirt-cleanup-{submission.run.id}-{time.time_ns():x}"
        with explained(self.address):
            self._client.submit_job(
                entrypoint=f"exec python -m {serve_apps.__name__} {' '.join(submission.run.runs)}",
                submission_id=cleanup,
                runtime_env=_runtime_env(folder),
            )
        self._wait_until_over(cleanup, report)
        remaining = self.leftover_apps(submission.run)
        if remaining:
            raise StageError(
                f"{', '.join(remaining)} could not be deleted from {self.address}:"
                f" {self.log(cleanup).strip()[-500:]}. Delete them there with `serve.delete`"
            )
        return left

    def leftover_apps(self, run: SubmittedRun) -> list[str]:
        """Return the run's Serve applications that are deployed on the cluster or still have a
        placement group there."""
        wanted = serve_apps.app_names(run.runs)
        with explained(self.address):
            details = _compat.serve_details(self.address)
            # Ray does not declare the type of the elements.
            groups: list[Any] = list_placement_groups(self.address, limit=_MAX_GROUPS)
        held = [group.name for group in groups if group.state != "REMOVED"]
        placed = {app for app in wanted for name in held if f"::{app}#" in name}
        return sorted(placed | (wanted & set(details["applications"])))

    def _wait_until_over(self, job_id: str, report: Report) -> None:
        wait = RateLimited(report)
        while True:
            with explained(self.address):
                if self._client.get_job_status(job_id).is_terminal():
                    return
            if wait.waited > 2 * _STOP_SECONDS:
                raise StageError(
                    f"{job_id} has not ended after {wait.waited:.0f} s. Look at its log on"
                    f" {self.address}"
                )
            wait(f"waiting for the end of {job_id}")
            time.sleep(_POLL_SECONDS)


def _runtime_env(folder: Path) -> dict[str, Any]:
    return {
        "working_dir": str(folder),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS), "COLUMNS": str(_COLUMNS)},
    }


def _check_reachable(url: str) -> None:
    """Raise OSError if nothing listens at the URL; Ray's client would wait for minutes."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), _CONNECTION_SECONDS).close()
