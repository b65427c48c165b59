"""A run in object storage: killed on one machine, continued on two others that share nothing with
it or with each other but an S3 server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from ray.cluster_utils import Cluster

from sirt_ray.quickstart import tasks
from tests.helpers.paths import JOBS
from tests.helpers.s3_server import KEY, SECRET, environment, file_system, s3_server

JOB = JOBS / "quickstart.yaml"
SETTINGS = {
    "data.train": "[word_problems]",
    "data.evaluate": "[word_problems]",
    "data.num_train": 24,
    "data.num_validation": 8,
    "data.num_test": 8,
    "evaluation.prompts": "[cot]",
    "tune.epochs": 6,
    "refine.rounds": 1,
    "refine.epochs": 1,
    "resources.block_size": 8,
    "resources.trainer.checkpoint_every_steps": 1,
    "resources.trainer.num_workers": 2,
    "resources.trainer.cpus_per_worker": 1,
}
RUN = "bucket/runs/quickstart"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


class Bucket:
    def __init__(self, endpoint: str) -> None:
        self._store = file_system(endpoint)
        self._store.create_dir("bucket")

    def files(self, folder: str = "") -> dict[str, Any]:
        """Name below a folder of the run -> when it was written."""
        at = f"{RUN}/{folder}".rstrip("/")
        found = self._store.get_file_info(fs.FileSelector(at, recursive=True, allow_not_found=True))
        return {os.path.relpath(one.path, at): one.mtime_ns for one in found if one.is_file}

    def read(self, name: str) -> bytes:
        with self._store.open_input_stream(f"{RUN}/{name}") as stream:
            return stream.read()

    def events(self, kind: str) -> list[str]:
        lines = [json.loads(line) for line in self.read("events.jsonl").splitlines()]
        return [line["artifact"] for line in lines if line["event"] == kind and "artifact" in line]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def bucket(endpoint: str) -> Bucket:
    return Bucket(endpoint)


def machine(endpoint: str, disk: Path) -> Mapping[str, str]:
    """The environment of a machine with a disk of its own."""
    return {**os.environ, **environment(endpoint), "SIRT_CACHE": str(disk), "HOME": str(disk)}


def command(*more: str, **settings: object) -> list[str]:
    line = [sys.executable, "-m", "sirt_ray", "run", str(JOB), "--set", "output=s3://bucket/runs"]
    for name, value in {**SETTINGS, **settings}.items():
        line += ["--set", f"{name}={value}"]
    return [*line, *more]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """In the place of a teacher, whose engine would have to start."""
    path = tmp_path / "answers.jsonl"
    rows = tasks.rows("word_problems", "train", 60, 0)
    texts = {row["question"]: str(row["answer"]) for row in rows}
    lines = [
        {"question": asked, "completion": " " + text.replace("\n#### ", " The answer is ") + "."}
        for asked, text in texts.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def wait_until(
    holds: Callable[[], bool], driver: "subprocess.Popen[str]", seconds: float = 240
) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()
        time.sleep(0.1)


def test_a_run_that_was_killed_is_continued_on_other_machines_without_its_disk(
    endpoint: str, bucket: Bucket, tmp_path: Path, answers: Path
) -> None:
    teacher = f"{{demonstrations: {{path: {answers}}}}}"
    first, head, worker = (tmp_path / name for name in ("first", "head", "worker"))
    for disk in (first, head, worker):
        disk.mkdir()

    def trains() -> bool:
        names = bucket.files("round_00/student/.work/checkpoints")
        return "step_000002/state.json" in names

    with subprocess.Popen(
        command(teacher=teacher),
        env=machine(endpoint, first),
        cwd=first,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as driver:
        wait_until(trains, driver)
        os.killpg(driver.pid, signal.SIGKILL)
    finished = bucket.events("finished")
    assert finished == ["questions", "demonstrations", "baseline/evaluation"]
    before = {name: bucket.files(name) for name in finished}

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "resources": {"apart": 1},
            "env_vars": dict(machine(endpoint, head)),
        },
    )
    try:
        cluster.add_node(
            num_cpus=4, resources={"apart": 1}, env_vars=dict(machine(endpoint, worker))
        )
        done = subprocess.run(
            command(
                "--address",
                cluster.address,
                teacher=teacher,
                **{"resources.trainer.custom_resources": "{apart: 1}"},
            ),
            env=machine(endpoint, head),
            cwd=head,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        cluster.shutdown()

    # What was finished was only read, and the training went on at its checkpoint, whose halves two
    # workers of one machine had written, with one worker on each of two.
    assert {name: bucket.files(name) for name in finished} == before
    assert all(bucket.events("finished").count(name) == 1 for name in finished)
    lines = bucket.read("round_00/student/metrics.jsonl").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, steps[-1] + 1))
    record = json.loads(bucket.read("round_00/student/record.json"))
    assert record["counts"]["steps"] == steps[-1]
    assert (worker / "storage").exists()
    assert not [name for name in bucket.files() if Path(name).name.startswith(".driver")]
    assert not [name for name in bucket.files() if ".work" in name or ".asked" in name]
    assert set(json.loads(bucket.read("scores.json"))) == {"baseline", "round_00", "round_01"}
    assert "The refined student is s3://bucket/runs/quickstart/round_0" in done.stdout

    at = "s3://bucket/runs/quickstart"
    for line in (["report", at, "--format", "text"], ["watch", at], ["export", at, "OUT"]):
        looked = subprocess.run(
            [sys.executable, "-m", "sirt_ray", *line],
            env=machine(endpoint, tmp_path / "desk"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert looked.returncode == 0, looked.stderr
        assert "round_0" in looked.stdout
    assert (tmp_path / "OUT/model.safetensors").exists()

    for name in bucket.files():
        assert not any(secret.encode() in bucket.read(name) for secret in (KEY, SECRET)), name
    for log in first.rglob("*.log"):
        assert not any(secret in log.read_text() for secret in (KEY, SECRET)), log
