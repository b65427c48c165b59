"""What is sent to a cluster, and what is refused before.

The fake replaces Ray's dashboard, which is not ours.
"""

import os
from argparse import Namespace
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus
from rich.console import Console

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli import submit as submit_command
from sirt_ray.cli.main import main
from sirt_ray.config import load
from sirt_ray.errors import ResourceError, StageError
from sirt_ray.on_ray.serve_apps import app_names, run_id
from sirt_ray.on_ray.submit.client import Cluster, pack
from sirt_ray.on_ray.submit.submissions import Submission, explained
from sirt_ray.report.journal import RunJournal, after_last_stage, last_stage
from sirt_ray.storage import object_store
from sirt_ray.training.workdir import WorkDir
from tests.helpers.submissions import RUN, details, submission

JOB = """\
name: mine
output: {output}
data: {{train: [word_problems], evaluate: [word_problems], num_train: 4, root: {root}}}
teacher: {{model: {teacher}}}
student: {{model: "quickstart:student"}}
"""


def test_runs_of_one_name_in_two_folders_are_two() -> None:
    folders = ("/a/mine", "/b/mine", "s3://bucket/mine")
    names = [run_id(folder) for folder in folders]
    assert len(set(names)) == 3
    assert all(name.startswith("mine-") for name in names)
    assert run_id("/a/mine/") == names[0]
    assert not app_names([names[0]]) & app_names([names[1]])


def test_a_submission_is_read_from_the_clusters_metadata() -> None:
    found = submission(JobStatus.FAILED, 12, driver_exit_code=2)
    assert (found.number, found.run, found.exit_code) == (12, RUN, 2)
    assert found.is_over and not found.node_lost
    assert submission(JobStatus.FAILED, error_type="JOB_SUPERVISOR_ACTOR_DIED").node_lost
    foreign = details(1, JobStatus.RUNNING).model_copy(update={"metadata": None})
    assert Submission.read(foreign) is None


def test_a_job_brings_its_file_and_this_package_and_no_more(tmp_path: Path) -> None:
    job = tmp_path / "mine.yaml"
    job.write_text("name: mine")
    sent = tmp_path / "sent"
    sent.mkdir()
    pack(sent, job, with_package=True)
    names = {path.relative_to(sent).as_posix() for path in sent.rglob("*") if path.is_file()}
    assert {"mine.yaml", "sirt_ray/cli/main.py", "sirt_ray/py.typed"} <= names
    assert "sirt_ray/quickstart/assets/student/model.safetensors" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    assert sum((sent / name).stat().st_size for name in names) < 20 << 20


def test_a_job_with_a_base_is_sent_as_one_file(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "sent").mkdir()
    common = JOB.format(output="/shared/runs", root="null", teacher="quickstart:teacher")
    (tmp_path / "common" / "base.yaml").write_text(common)
    job = tmp_path / "mine" / "job.yaml"
    job.write_text("base: ../common/base.yaml\nname: other\nrefine: {learning_rate: 2.0e-6}\n")
    pack(tmp_path / "sent", job, with_package=False)
    assert [path.name for path in (tmp_path / "sent").iterdir()] == ["job.yaml"]
    sent = load.load(tmp_path / "sent" / "job.yaml", [], REGISTRY)
    assert sent == load.load(job, [], REGISTRY)
    assert sent.refine.learning_rate == 2e-6


def test_all_that_a_cluster_cannot_see_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(output="runs", root="rows", teacher="./large"))
    assert main(["submit", str(job), "--address", "http://127.0.0.1:1"]) == 2
    output = capsys.readouterr().err
    for setting in ("output: runs", "data.root: rows", "teacher.model: ./large"):
        assert setting in output


def test_a_folder_that_only_the_cluster_has_is_left_to_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(output="/shared/runs", root="null", teacher="/shared/models/large"))
    assert main(["submit", str(job), "--address", "http://127.0.0.1:1"]) == 1
    output = capsys.readouterr()
    assert "/shared/models/large is not on this machine" in output.out.replace("\n", " ")
    assert "cannot reach the cluster at http://127.0.0.1:1" in output.err


def test_an_output_in_object_storage_is_a_path_that_all_nodes_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(output="runs", root="null", teacher="quickstart:teacher"))
    submit = ["submit", str(job), "--address", "http://127.0.0.1:1", "--set"]
    assert main([*submit, "output=s3://bucket/runs"]) == 1
    output = capsys.readouterr()
    assert "cannot reach the cluster at http://127.0.0.1:1" in output.err
    assert "not checked" not in output.out


@pytest.mark.parametrize("output", ["s3://bucket/runs", "s3://bucket/runs/"])
def test_its_driver_calls_a_run_in_storage_as_who_submits_it(output: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(output=output, root="null", teacher="quickstart:teacher"))
    [found], run = submit_command._read(Namespace(job=job, overrides=[]))
    assert run.folder == "s3://bucket/runs/mine"
    assert run.runs == (run_id(object_store.to_uri(found.run_dir)),) == (run_id(run.folder),)


def test_the_last_stage_of_a_log_is_found_and_what_is_behind_it(tmp_path: Path) -> None:
    out = StringIO()
    console = Console(file=out, width=40)
    journal = RunJournal(tmp_path, console)
    assert last_stage(out.getvalue()) is None
    journal.artifact("started", "round_01/pairs")
    assert last_stage(out.getvalue()) == "round_01/pairs"
    counts = {"pairs": 4, "questions": 9, "questions_paired": 3, "completions": 20}
    journal.artifact("finished", "round_01/pairs", counts=counts, seconds=1.0)
    console.print("the scores")
    assert last_stage(out.getvalue()) == "round_01/pairs"
    assert after_last_stage(out.getvalue()) == "the scores\n"


class FakeClient:
    """Knows the submissions that were made."""

    def __init__(self, *jobs: JobDetails) -> None:
        self.jobs = {job.submission_id: job for job in jobs}

    def get_address(self) -> str:
        return "http://head:8265"

    def list_jobs(self) -> list[JobDetails]:
        return list(self.jobs.values())

    def get_job_info(self, submission_id: str) -> JobDetails:
        return self.jobs[submission_id]

    def submit_job(
        self, *, submission_id: str, metadata: dict[str, str], **options: object
    ) -> None:
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        number = int(submission_id[-2:])
        self.jobs[submission_id] = details(number, JobStatus.PENDING)


@pytest.mark.parametrize(
    ("before", "number"),
    [([], 1), ([JobStatus.RUNNING], 1), ([JobStatus.FAILED], 2), ([JobStatus.STOPPED] * 9, 10)],
)
def test_a_run_is_driven_once(tmp_path: Path, before: list[JobStatus], number: int) -> None:
    client = FakeClient(*[details(at, status) for at, status in enumerate(before, start=1)])
    sent = Cluster(client).submit(RUN, tmp_path, "true", _driver())  # type: ignore[arg-type]
    assert sent.number == number
    assert sum(not s.is_over for s in Cluster(client).submissions()) == 1  # type: ignore[arg-type]


def test_who_submits_at_the_same_moment_gets_the_others_submission(tmp_path: Path) -> None:
    client = FakeClient()
    theirs = Cluster(client)  # type: ignore[arg-type]
    list_jobs, client.list_jobs = client.list_jobs, lambda: []
    theirs.submit(RUN, tmp_path, "true", _driver())
    assert theirs.submit(RUN, tmp_path, "true", _driver()).number == 1
    assert len(list_jobs()) == 1


def _driver():
    from sirt_ray.config.resources import DriverResources

    return DriverResources()


def test_errors_of_rays_client_come_with_what_to_do() -> None:
    with pytest.raises(ResourceError, match="RAY_AUTH_TOKEN"), explained("http://head:8265"):
        raise AuthenticationError("Authentication failed: Forbidden")
    unreachable = pytest.raises(ResourceError, match=r"http://head:8265.*--address")
    with unreachable, explained("http://head:8265"):
        raise ConnectionError("refused")
    with pytest.raises(StageError, match="does not exist"), explained("http://head:8265"):
        raise RuntimeError("Request failed: Job x does not exist.")


def test_steps_that_are_done_again_are_counted(tmp_path: Path) -> None:
    work = WorkDir(tmp_path)
    work.truncate(0)
    for step in (1, 2, 3, 4, 5):
        work.append({"step": step})
    work.truncate(4)
    work.truncate(4)
    assert work.repeated()["steps"] == 1
    work.truncate(2)
    assert work.repeated()["steps"] == 3


def test_a_finished_submission_is_not_over_before_ray_reports_it() -> None:
    running = submission(JobStatus.RUNNING)
    assert not running.is_over
    assert replace(running, state=JobStatus.STOPPED).is_over


class FakeCluster:
    """Records what is stopped."""

    address = "http://head:8265"

    def __init__(self) -> None:
        self.stopped: list[str] = []

    def stop(self, submission: Submission, folder: Path, report: object) -> list[str]:
        assert (folder / "sirt_ray").is_dir()
        self.stopped.append(submission.id)
        return []


@pytest.mark.parametrize(("answer", "stopped"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_ctrl_c_prompts_whether_to_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, answer: str, stopped: bool
) -> None:
    keyboard, terminal = os.openpty()
    cluster, out = FakeCluster(), StringIO()
    running = submission(JobStatus.RUNNING)
    with os.fdopen(terminal, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        os.write(keyboard, answer.encode())
        submit_command._prompt_to_stop(cluster, running, Console(file=out, width=200))  # type: ignore[arg-type]
    os.close(keyboard)
    assert cluster.stopped == ([running.id] if stopped else [])
    assert ("continues on the cluster" in out.getvalue()) != stopped
    assert ("sirt stop mine --address http://head:8265" in out.getvalue()) != stopped
