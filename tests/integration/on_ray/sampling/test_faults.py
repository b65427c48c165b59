"""Sampling goes on when parts of it fail, and ends with exactly the rows of an undisturbed one.

Most faults are caused in an engine that sleeps (`tests/helpers/sleeping_engine.py` describes it),
behind real Serve. The last tests, twenty runs that are not part of `make test`, kill real engines,
replicas and drivers; `test_sampling.py` kills one.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from sirt_ray.artifacts import parquet
from sirt_ray.benchmarks.registry import grade
from sirt_ray.config.job import SamplingConfig
from sirt_ray.config.resources import EngineConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import StageError
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.sampling.prompts import TextPrompter
from sirt_ray.on_ray.sampling.worker import SamplingPlan
from sirt_ray.types import Judgement, Question
from tests.helpers import full_disk, sleeping_engine
from tests.helpers.full_disk import fsync_without_room
from tests.helpers.sampling import BLOCK, Sampling, engine_process, start_sampler
from tests.helpers.sleeping_engine import SleepingEngine, apple_questions, wait_until
from tests.helpers.tiny import save_talker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

for module in (sleeping_engine, full_disk):
    ray.cloudpickle.register_pickle_by_value(module)

SILENT_SECONDS = 8
"""Less than after what Ray gives a node up."""


@pytest.fixture(scope="module")
def hangs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines that start while this file is there answer nothing."""
    return tmp_path_factory.mktemp("asleep") / "hangs"


@pytest.fixture(scope="module")
def asleep(ray_cluster: None, hangs: Path) -> Iterator[Sampling]:
    """Two replicas that need about six seconds for all questions."""
    sampler = start_sampler(
        "student",
        Policy("v", "nowhere"),
        EngineConfig(
            num_cpus=0.1, min_replicas=2, max_replicas=2, max_num_seqs=4, request_timeout_s=3
        ),
        run="faults",
        pointers=hangs.parent,
        samples_per_question=2,
        serving=SleepingEngine(4, 0.3, 0.7, hangs=str(hangs)),
    )
    plan = SamplingPlan({"cot": 2}, SamplingConfig(temperature=1.0), 3)
    yield Sampling(sampler, plan, TextPrompter("chat"), list(apple_questions(96)), grade)
    sampler.stop()


@pytest.fixture(scope="module")
def undisturbed(asleep: Sampling, tmp_path_factory: pytest.TempPathFactory) -> list[parquet.Row]:
    out = tmp_path_factory.mktemp("undisturbed") / "samples"
    assert asleep.into(out)["retries"] == 0
    return parquet.read(out)


def replicas(server: ModelServer) -> list[int]:
    """Process ids of the running replicas; none while one of them is found to be dead."""
    try:
        facts = server.handle.broadcast("facts").results(timeout_s=60)
    except ray.exceptions.RayError:
        return []
    return [one.process_ids[0] for one in facts]


def test_a_killed_replica_costs_nothing_but_time(
    asleep: Sampling, undisturbed: list[parquet.Row], tmp_path: Path
) -> None:
    wait_until(lambda: len(replicas(asleep.server)) == 2, 60, "the start of both replicas")
    victim = replicas(asleep.server)[0]
    counts = asleep.disturbed(tmp_path / "out", 0.3, lambda: os.kill(victim, signal.SIGKILL))
    assert parquet.read(tmp_path / "out") == undisturbed
    assert counts["retries"] > 0
    assert counts["dropped"] == {}


def test_a_killed_sampling_actor_costs_nothing_but_time(
    asleep: Sampling, undisturbed: list[parquet.Row], tmp_path: Path
) -> None:
    (actor,) = asleep.sampler.actors
    counts = asleep.disturbed(tmp_path / "out", 0.3, lambda: ray.kill(actor, no_restart=False))
    assert parquet.read(tmp_path / "out") == undisturbed
    assert counts["retries"] > 0
    assert counts["dropped"] == {}


def test_a_sampling_actor_is_waited_for_while_its_node_is_silent(
    asleep: Sampling, undisturbed: list[parquet.Row], tmp_path: Path
) -> None:
    """A node that is lost is missed only after a while, in which calls of its actors fail."""
    (actor,) = asleep.sampler.actors
    process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))
    raylet = process.parent()
    assert raylet and raylet.name() == "raylet"

    def silence() -> None:
        raylet.suspend()
        try:
            process.kill()
            time.sleep(SILENT_SECONDS)
        finally:
            raylet.resume()

    counts = asleep.disturbed(tmp_path / "out", 0.3, silence)
    assert parquet.read(tmp_path / "out") == undisturbed
    assert counts["retries"] > 0
    assert counts["dropped"] == {}


def test_a_replica_that_hangs_is_replaced(
    asleep: Sampling, hangs: Path, undisturbed: list[parquet.Row], tmp_path: Path
) -> None:
    """The replica that takes the place of a killed one answers nothing, until the next does."""
    wait_until(lambda: len(replicas(asleep.server)) == 2, 60, "the start of a second replica")
    hangs.touch()
    victims = replicas(asleep.server)
    os.kill(victims[0], signal.SIGKILL)
    wait_until(lambda: len(set(replicas(asleep.server)) - set(victims)) == 1, 60, "another replica")
    hangs.unlink()
    (hanging,) = set(replicas(asleep.server)) - set(victims)
    counts = asleep.into(tmp_path / "out")
    assert parquet.read(tmp_path / "out") == undisturbed
    assert counts["retries"] > 0
    wait_until(lambda: not psutil.pid_exists(hanging), 90, "the end of the hanging replica")


def test_questions_that_break_the_engine_are_given_up_and_said(
    asleep: Sampling, undisturbed: list[parquet.Row], tmp_path: Path
) -> None:
    bad = {
        "poison": Question("word_problems/train/p", "word_problems", "poison", (), "1"),
        "forbidden": Question("word_problems/train/f", "word_problems", "forbidden", (), "1"),
    }
    questions = [*asleep.questions[:10], *bad.values(), *asleep.questions[10:]]
    counts = asleep.into(tmp_path / "out", questions)
    assert counts["dropped"] == {"engine_failed": 1, "refused_by_engine": 1}
    assert parquet.read(tmp_path / "out") == undisturbed
    parts = [parquet.counts(part) for part in parquet.files(tmp_path / "out")]
    said = {drop["id"]: drop["message"] for part in parts for drop in part["dropped"]}
    assert "swallowed poison" in said[bad["poison"].id]
    assert "not answered" in said[bad["forbidden"].id]


def test_a_full_disk_ends_the_stage_and_the_rest_is_sampled_later(
    asleep: Sampling, undisturbed: list[parquet.Row], tmp_path: Path
) -> None:
    out, full = tmp_path / "out", tmp_path / "full"
    full.touch()

    def grade_on_a_full_disk(text: str, question: Question) -> Judgement:
        """Grade in an actor whose disk has no room for the last part."""
        if os.fsync.__name__ != "without_room":
            os.fsync = fsync_without_room("part-0000088", while_there=full)
        return grade(text, question)

    filled = Sampling(
        asleep.sampler, asleep.plan, asleep.prompter, asleep.questions, grade_on_a_full_disk
    )

    with pytest.raises(StageError, match=r"part-0000088\.parquet.*No space left.*Free some"):
        filled.into(out)
    full.unlink()
    finished = {part: part.stat().st_mtime_ns for part in parquet.files(out)}
    assert finished
    asleep.into(out)
    assert {part: part.stat().st_mtime_ns for part in finished} == finished
    assert parquet.read(out) == undisturbed


def kill_engine(server: ModelServer) -> None:
    os.kill(engine_process(server), signal.SIGKILL)


def kill_replica(server: ModelServer) -> None:
    os.kill(replicas(server)[0], signal.SIGKILL)


def stop_engine(server: ModelServer) -> None:
    """It neither ends nor answers."""
    os.kill(engine_process(server), signal.SIGSTOP)


FAULTS = {"engine": kill_engine, "replica": kill_replica, "hang": stop_engine}
ENGINE = EngineConfig(num_cpus=0.5, max_num_seqs=16, request_timeout_s=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("awake") / "model", seed=7)


@pytest.fixture(scope="module")
def awake(
    ray_cluster: None, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sampling]:
    sampler = start_sampler(
        "teacher",
        Policy("one", str(model)),
        ENGINE,
        run="faults",
        pointers=model.parent,
        samples_per_question=4,
    )
    yield Sampling.of(sampler, model)
    sampler.stop()


@pytest.fixture(scope="module")
def expected(awake: Sampling, tmp_path_factory: pytest.TempPathFactory) -> list[parquet.Row]:
    out = tmp_path_factory.mktemp("expected") / "samples"
    awake.into(out)
    return parquet.read(out)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_real_engines_are_lost_at_random_points(
    awake: Sampling, expected: list[parquet.Row], tmp_path: Path
) -> None:
    moment = random.Random(0)
    for at, fault in enumerate([*FAULTS] * 5):
        out = tmp_path / str(at)
        awake.disturbed(out, moment.random(), lambda name=fault: FAULTS[name](awake.server))
        assert parquet.read(out) == expected, f"run {at}, fault {fault}"
        awake.server.wait_until_ready()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_drivers_are_lost_at_random_points(
    model: Path, expected: list[parquet.Row], tmp_path: Path
) -> None:
    moment = random.Random(0)
    for at in range(5):
        out = tmp_path / str(at) / "samples"
        out.parent.mkdir()
        command = [sys.executable, "-m", "tests.helpers.sampling_driver", str(model), str(out)]
        parts = moment.randrange(len(expected) // (4 * BLOCK))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as driver:
            wait_until(lambda: len(parquet.files(out)) >= parts, 300, f"part {parts}")  # noqa: B023
            time.sleep(moment.random())
            driver.kill()
        finished = {part: part.stat().st_mtime_ns for part in parquet.files(out)}
        subprocess.run(command, stderr=subprocess.DEVNULL, check=True, timeout=300)
        assert {part: part.stat().st_mtime_ns for part in finished} == finished
        assert parquet.read(out) == expected, f"run {at}"
