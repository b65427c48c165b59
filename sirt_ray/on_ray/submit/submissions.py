"""What a cluster knows of the runs that were submitted to it, and what its refusals mean."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus

from sirt_ray.errors import ResourceError, StageError
from sirt_ray.on_ray import serve_apps

_NODE_LOST = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")


@dataclass(frozen=True, slots=True)
class SubmittedRun:
    """A job, or a study.

    Example::

        SubmittedRun("quickstart", "/shared/runs/quickstart", "9d0c", ("quickstart-3f9a1c07",))
    """

    name: str
    folder: str
    settings: str
    """A digest of all settings."""
    runs: tuple[str, ...]
    """Run ids of the job, or of the study's cells."""

    @property
    def id(self) -> str:
        return serve_apps.run_id(self.folder)

    @property
    def metadata(self) -> dict[str, str]:
        """What the cluster keeps of it."""
        return {
            "sirt_name": self.name,
            "sirt_folder": self.folder,
            "sirt_settings": self.settings,
            "sirt_runs": " ".join(self.runs),
        }


@dataclass(frozen=True, slots=True)
class Submission:
    """One submission of a run."""

    id: str
    number: int
    run: SubmittedRun
    state: JobStatus
    began: float
    """Seconds since the epoch."""
    message: str
    exit_code: int | None
    """The driver's."""
    node_lost: bool
    """Whether it ended because the driver's node, or the process that watches it, was lost."""

    @property
    def is_over(self) -> bool:
        return self.state.is_terminal()

    @classmethod
    def read(cls, job: JobDetails) -> "Submission | None":
        """None for a job that is none of ours."""
        found = re.fullmatch(r"sirt-.+-(\d+)", job.submission_id or "")
        said = job.metadata or {}
        if found is None or "sirt_folder" not in said:
            return None
        run = SubmittedRun(
            said["sirt_name"],
            said["sirt_folder"],
            said["sirt_settings"],
            tuple(said["sirt_runs"].split()),
        )
        return cls(
            id=found.group(0),
            number=int(found.group(1)),
            run=run,
            state=job.status,
            began=(job.start_time or 0) / 1000,
            message=job.message or "",
            exit_code=job.driver_exit_code,
            node_lost=job.error_type in _NODE_LOST,
        )


def submission_id(run: SubmittedRun, number: int) -> str:
    return f"sirt-{run.id}-{number:02d}"


@contextmanager
def explained(address: str | None) -> Generator[None]:
    """The errors of Ray's client, in words for its user: ResourceError where nobody answers or the
    token is not taken, StageError for any other refusal."""
    where = f"the cluster at {address}" if address else "a Ray cluster"
    try:
        yield
    except AuthenticationError as error:
        raise ResourceError(
            f"{where} does not let us in: {str(error).splitlines()[0]}. Set RAY_AUTH_MODE=token,"
            " and the cluster's token in RAY_AUTH_TOKEN, in a file named by RAY_AUTH_TOKEN_PATH, or"
            " in ~/.ray/auth_token, where Ray itself puts it"
        ) from error
    except OSError as error:
        raise ResourceError(
            f"cannot reach {where}: {error}. Give --address the URL of its dashboard, as in"
            " http://HEAD:8265, and check that this machine may connect to it"
        ) from error
    except RuntimeError as error:
        if isinstance(error, ResourceError | StageError):
            raise
        raise StageError(f"{where} refused: {str(error).strip().splitlines()[-1]}") from error
