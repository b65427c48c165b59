"""Replicas come with the work and go after it, with the weights of the day; and are measured."""

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import ray
from transformers import AutoTokenizer

from sirt_ray.config.resources import EngineConfig, TrainerResources
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ResourceError
from sirt_ray.logs import LogContext, bind_context
from sirt_ray.on_ray import cluster
from sirt_ray.on_ray.engine.protocol import SampleRequest
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.metrics import METRICS, StageMetrics
from sirt_ray.on_ray.sampling.prompts import TokenPrompter
from sirt_ray.on_ray.sampling.sampler import Sampler
from tests.helpers.progress import RecordedProgress
from tests.helpers.sampling import (
    PLAN,
    QUESTIONS,
    grader,
    greedy_reference,
    start_sampler,
)
from tests.helpers.sleeping_engine import wait_until
from tests.helpers.tiny import save_talker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

PROMPTS = [(1, *range(first, first + 20)) for first in (40, 90, 140)]
ENGINE = EngineConfig(
    num_cpus=0.5,
    min_replicas=1,
    max_replicas=2,
    max_num_seqs=8,
    upscale_delay_s=1,
    downscale_delay_s=3,
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save_talker(folder / name, seed) for seed, name in enumerate(("old", "new"))}


@pytest.fixture(scope="module")
def sampler(
    ray_cluster: None, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sampler]:
    pointers = tmp_path_factory.mktemp("pointers")
    policy = Policy("old", str(checkpoints["old"]))
    sampler = start_sampler("student", policy, ENGINE, run="scaling", pointers=pointers)
    yield sampler
    sampler.stop()


@pytest.fixture(scope="module")
def server(sampler: Sampler) -> ModelServer:
    return sampler.server


@contextmanager
def load(server: ModelServer) -> Iterator[None]:
    """Keep more requests under way than one replica should have."""
    request = SampleRequest("", PROMPTS[0], 8, 0, 1.0, 1.0, 200, server.version)
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            server.handle.sample.remote((request,)).result(timeout_s=120)

    threads = [threading.Thread(target=keep_asking) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def replicas(server: ModelServer) -> int:
    return len(server.loads(60))


def one_replica_with(name: str, server: ModelServer, checkpoints: dict[str, Path]) -> None:
    """Wait until one replica is left, and let it have these weights."""
    wait_until(lambda: replicas(server) == 1, 60, "the end of the second replica")
    if server.version != name:
        server.load(Policy(name, str(checkpoints[name])))


def test_weights_change_in_a_moment_and_in_the_same_processes(
    server: ModelServer, checkpoints: dict[str, Path]
) -> None:
    one_replica_with("old", server, checkpoints)
    before = server.handle.facts.remote().result(timeout_s=60).process_ids
    began = time.monotonic()
    server.load(Policy("new", str(checkpoints["new"])))
    assert time.monotonic() - began < 2.0
    assert server.handle.facts.remote().result(timeout_s=60).process_ids == before


def test_a_replica_is_added_under_load_with_the_new_weights_and_goes_afterwards(
    server: ModelServer, checkpoints: dict[str, Path]
) -> None:
    expected = {
        name: [greedy_reference(folder, prompt) for prompt in PROMPTS]
        for name, folder in checkpoints.items()
    }
    assert expected["new"] != expected["old"]
    one_replica_with("new", server, checkpoints)
    with load(server):
        wait_until(lambda: replicas(server) == 2, 120, "the start of a second replica")
        requests = tuple(SampleRequest("", prompt, 1, 0, 0.0, 1.0, 24, "new") for prompt in PROMPTS)
        answers = server.handle.broadcast("sample", requests).results(timeout_s=120)
    assert len(answers) == 2
    for replies in answers:
        chosen = [reply.choices[0].completion_ids for reply in replies]
        assert chosen == expected["new"]
    wait_until(lambda: replicas(server) == 1, 60, "the end of the second replica")


def metrics(place: LogContext) -> dict[str, float]:
    """Our figures about the place on the node's Prometheus port, summed over processes and other
    labels."""
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        labelled, _, value = line.rpartition(" ")
        labels = dict(re.findall(r'(\w+)="(.*?)"', labelled))
        if asdict(place).items() <= labels.items():
            name = labelled.split("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def test_what_is_sampled_is_counted_for_prometheus(
    sampler: Sampler, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    prompter = TokenPrompter(AutoTokenizer.from_pretrained(checkpoints["new"]))
    place = LogContext("scaling", "round_01", "samples")
    with bind_context(place):
        counts = sampler.sample(
            QUESTIONS,
            PLAN,
            prompter,
            grader(),
            out=tmp_path / "samples",
            block_size=4,
            name="round_01/samples",
            progress=RecordedProgress(),
        )
        tell = StageMetrics(place.run).artifact
        tell("finished", "round_01/samples", counts=counts, seconds=12.5)
    usage = counts["usage"]
    assert usage["replica_seconds"] >= usage["seconds"] > 0
    assert usage["gpu_seconds"] == 0
    assert 0 < usage["prefix_hit_share"] < 1
    assert usage["wasted_tokens"] == 0
    wait_until(
        lambda: (
            metrics(place).get("ray_sirt_questions_total", 0) == len(QUESTIONS)
            and "ray_sirt_stage_seconds" in metrics(place)
        ),
        60,
        "the count of all questions and the seconds of the stage",
    )
    found = metrics(place)
    assert found["ray_sirt_completions_total"] == counts["completions"]
    tokens = counts["prompt_tokens"] + counts["completion_tokens"]
    assert found["ray_sirt_tokens_total"] == tokens
    assert found["ray_sirt_stage_seconds"] == 12.5
    assert found["ray_sirt_engine_prefix_tokens_total"] > 0
    known = {metric.exported for metric in METRICS.values()}
    assert {name for name in found if name.startswith("ray_sirt_")} <= known


def test_labels_that_no_node_has_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    engine = EngineConfig(labels={"zone": "moon"})
    with pytest.raises(ResourceError, match="zone"):
        ModelServer.deploy("teacher", Policy("v", "x"), engine, run="none", pointers=tmp_path)


def test_all_that_the_cluster_can_never_give_is_said_at_once(ray_cluster: None) -> None:
    wants = (
        cluster.of_engine("student", EngineConfig(num_cpus=64)),
        cluster.of_trainer(TrainerResources(num_workers=3, cpus_per_worker=2)),
    )
    with pytest.raises(ResourceError) as refused:
        cluster.check_resources(*wants)
    engine, trainer = str(refused.value).splitlines()
    assert "64 CPU on one node" in engine
    assert "missing: 2 CPU" in trainer
