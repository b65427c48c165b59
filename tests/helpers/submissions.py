"""Submissions as Ray's dashboard reports them."""

from ray.job_submission import JobDetails, JobStatus

from sirt_ray.on_ray.serve_apps import run_id
from sirt_ray.on_ray.submit.submissions import Submission, SubmittedRun, submission_id

RUN = SubmittedRun("mine", "/shared/runs/mine", "9d0c", (run_id("/shared/runs/mine"),))


def details(number: int, status: JobStatus, **fields: object) -> JobDetails:
    return JobDetails(
        type="SUBMISSION",
        submission_id=submission_id(RUN, number),
        status=status,
        entrypoint="",
        metadata=RUN.metadata,
        start_time=1000 * number,
        **fields,
    )


def submission(status: JobStatus, number: int = 1, **fields: object) -> Submission:
    found = Submission.read(details(number, status, **fields))
    assert found is not None
    return found
