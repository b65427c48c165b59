"""Which engines run beside which, and go on from one job of a study to the next, with servers that
only note."""

from pathlib import Path
from typing import Any

import pytest

from sirt_ray.config.job import JobConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.on_ray.sampling import pool
from sirt_ray.on_ray.sampling.pool import Engines
from tests.helpers.fakes import job


class Server:
    """A sampler and its server, without engines and actors."""

    def __init__(self, role: str, policy: Policy) -> None:
        self.server, self.policy = self, policy
        self.told = [f"start {role} {policy.path}"]

    def wait_until_ready(self) -> None: ...

    def load(self, policy: Policy) -> None:
        self.policy = policy
        self.told.append(f"load {policy.path}")

    def stop(self) -> None:
        self.told.append("stop")


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    started: list[Server] = []

    def deploy(role: str, policy: Policy, *given: Any, **more: Any) -> Server:
        started.append(Server(role, policy))
        return started[-1]

    monkeypatch.setattr(pool.Sampler, "deploy", deploy)
    return started


def follow(tmp_path: Path, first: JobConfig, second: JobConfig) -> None:
    """Both jobs serve a student of the same round, from folders of their own."""
    up = Engines(first, tmp_path / "first")
    up.serve("student", Policy("round_01", "first/round_01"))
    after = up.hand_over(Engines(second, tmp_path / "second"))
    after.serve("student", Policy("round_01", "second/round_01"))
    after.close()


def test_the_next_jobs_student_is_loaded_into_the_running_engine(
    tmp_path: Path, servers: list[Server]
) -> None:
    follow(tmp_path, job(), job(refine={"rounds": 3, "num_cot": 1, "sampling": {}}))
    told = ["start student first/round_01", "load second/round_01", "stop"]
    assert [server.told for server in servers] == [told]


@pytest.mark.parametrize(
    "second",
    [
        {"student": {"model": "another"}},
        {"resources": {"student": {"max_model_len": 640}}},
        {"tune": {"lora": {"rank": 4}}},
        {"refine": {"even_rounds": {"lora": {"rank": 4}}}},
    ],
)
def test_an_engine_of_another_kind_is_started_anew(
    tmp_path: Path, servers: list[Server], second: dict[str, Any]
) -> None:
    follow(tmp_path, job(), job(**second))
    assert [server.told for server in servers] == [
        ["start student first/round_01", "stop"],
        ["start student second/round_01", "stop"],
    ]


def test_more_replicas_are_started_by_the_samples_of_each_call(
    tmp_path: Path, servers: list[Server]
) -> None:
    many = {"resources": {"student": {"max_replicas": 4}}}
    follow(tmp_path, job(**many), job(**many))
    assert len(servers) == 1
    follow(tmp_path, job(**many), job(**many, refine={"num_cot": 32}))
    assert len(servers) == 3


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the cluster has; all of it stays free for Ray, whose actors start only after a while."""
    there = {"CPU": 64.0, "GPU": 0.0}
    monkeypatch.setattr(pool.ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(pool.ray, "available_resources", lambda: there)
    return there


TEACHER, STUDENT = Policy("teacher", "big"), Policy("baseline", "small")
CUT_IN_FOUR = {"resources": {"teacher": {"tensor_parallel_size": 4}}}


@pytest.mark.parametrize(
    ("there", "started"),
    [(4, ["start teacher big"]), (8, ["start teacher big", "start student small"])],
)
def test_the_student_starts_beside_the_teacher_where_both_have_room(
    tmp_path: Path, servers: list[Server], gpus: dict[str, float], there: int, started: list[str]
) -> None:
    """On four GPUs a student that had taken one would keep the teacher waiting for it forever."""
    gpus["GPU"] = there
    Engines(job(**CUT_IN_FOUR), tmp_path).start(TEACHER, STUDENT)
    assert [server.told[0] for server in servers] == started


@pytest.mark.parametrize(("free", "told"), [(3, True), (4, False)])
def test_a_student_that_an_earlier_job_left_makes_room_for_a_teacher(
    tmp_path: Path, servers: list[Server], gpus: dict[str, float], free: int, told: bool
) -> None:
    gpus["GPU"] = free
    up = Engines(job(**CUT_IN_FOUR), tmp_path)
    up.serve("student", STUDENT)
    up.serve("teacher", TEACHER)
    assert ("stop" in servers[0].told) is told
