"""Records of the runs that were submitted to a cluster, and the errors of Ray's client."""

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
    """A job or a study, as it is named on a cluster.

    Example::

        SubmittedRun("quickstart", "/shared/runs/quickstart", "9d0c", ("quickstart-3f9a1c07",))
    """

    name: str
    folder: str
    settings: str
    """Digest of all settings."""
    runs: tuple[str, ...]
    """Run ids of the job, or of the study's trials."""

    @property
    def id(self) -> str:
        """Id of the run, the same in all its submissions."""
        return serve_apps.run_id(self.folder)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata that the cluster stores with each submission."""
        return {
            "sirt_name": self.name,
            "sirt_folder": self.folder,
            "sirt_settings": self.settings,
            "sirt_runs": " ".join(self.runs),
        }


@dataclass(frozen=True, slots=True)
class Submission:
    """One submission of a run: a Ray job."""

    id: str
    """Ray's submission id: `sirt-<run id>-<number>`."""
    number: int
    """1 for the run's first submission."""
    run: SubmittedRun
    state: JobStatus
    started: float
    """Start time, in seconds since the epoch; 0 before the start."""
    message: str
    """Ray's description of the state."""
    exit_code: int | None
    """Exit code of the driver, once it has ended."""
    node_lost: bool
    """Whether the job ended because the driver's node, or Ray's supervisor process, was lost."""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.state.is_terminal()

    @classmethod
    def read(cls, job: JobDetails) -> "Submission | None":
        """Return the submission of a Ray job; None for a job that is not a run of sirt-ray."""
        found = re.fullmatch(r"sirt-.+-(\d+)", job.submission_id or "")
        metadata = job.metadata or {}
        if found is None or "sirt_folder" not in metadata:
            return None
        run = SubmittedRun(
            metadata["sirt_name"],
            metadata["sirt_folder"],
            metadata["sirt_settings"],
            tuple(metadata["sirt_runs"].split()),
        )
        return cls(
            id=found.group(0),
            number=int(found.group(1)),
            run=run,
            state=job.status,
            started=(job.start_time or 0) / 1000,
            message=job.message or "",
            exit_code=job.driver_exit_code,
            node_lost=job.error_type in _NODE_LOST,
        )


def submission_id(run: SubmittedRun, number: int) -> str:
    """Return Ray's submission id for the run's submission of this number."""
    return f"sirt-{run.id}-{number:02d}"


@contextmanager
def explained(address: str | None) -> Generator[None]:
    """Convert the errors of Ray's client: to ResourceError if the cluster cannot be reached or
    rejects the token, to StageError if it refuses the request for another reason."""
    where = f"the cluster at {address}" if address else "a Ray cluster"
    try:
        yield
    except AuthenticationError as error:
        raise ResourceError(
            f"{where} rejects our token: {str(error).splitlines()[0]}. Set RAY_AUTH_MODE=token,"
            " and the cluster's token in RAY_AUTH_TOKEN, in a file named by RAY_AUTH_TOKEN_PATH, or"
            " in ~/.ray/auth_token, where Ray itself writes it"
        ) from error
    except OSError as error:
        raise ResourceError(
            f"cannot reach {where}: {error}. Give --address the URL of its dashboard, for example"
            " http://HEAD:8265, and check that this machine may connect to it"
        ) from error
    except RuntimeError as error:
        if isinstance(error, ResourceError | StageError):
            raise
        raise StageError(f"{where} refused: {str(error).strip().splitlines()[-1]}") from error
