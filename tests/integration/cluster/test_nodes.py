"""Runs that are submitted to a cluster of several nodes, which may be lost.

All nodes are on this machine (`tests/helpers/nodes.py`), and so is the disk that they share. This
is `make test-cluster`, and no part of `make test`.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.training.workdir import read_lines
from tests.helpers.nodes import Nodes
from tests.helpers.run_folders import content
from tests.helpers.sleeping_engine import wait_until
from tests.helpers.small_run import JOBS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

BLOCK = 12
CHECKPOINT = 4
NOTICE_SECONDS = 20
GONE = ("reconnecting", "cannot reach")
"""What is said, every half minute, of a cluster that answers no more."""
SETTINGS = {
    "data.num_train": 40,
    "data.num_validation": 16,
    "data.num_test": 24,
    "data.evaluate": "[word_problems, letter_choices]",
    "tune.max_demonstrations": 32,
    "tune.epochs": 20,
    "refine.rounds": 1,
    "refine.num_cot": 6,
    "refine.num_plain": 1,
    "refine.pairs.rule": "both",
    "refine.epochs": 4,
    "resources.block_size": BLOCK,
    # So few at once that less than a block is under way.
    "resources.teacher.max_num_seqs": 2,
    "resources.student.max_num_seqs": 16,
    "resources.teacher.custom_resources": "{work: 0.1}",
    "resources.student.custom_resources": "{work: 0.1}",
    "resources.trainer.custom_resources": "{work: 0.1}",
    "resources.trainer.checkpoint_every_steps": CHECKPOINT,
    "resources.driver.custom_resources": "{driver: 0.1}",
}
"""The quickstart, smaller. The driver has a node of its own; engines and trainers share two."""
WORKER = {"num_cpus": 3, "resources": {"work": 1}}
STAGES = (
    "questions",
    "demonstrations",
    "teacher/evaluation",
    "baseline/evaluation",
    "round_00/student",
    "round_00/evaluation",
    "round_01/samples",
    "round_01/pairs",
    "round_01/reference",
    "round_01/student",
    "round_01/evaluation",
)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    log = tmp_path_factory.mktemp("nodes") / "log"
    cluster = Nodes.start(log)
    try:
        cluster.add("driver", num_cpus=1, resources={"driver": 1})
        cluster.add("a", **WORKER)
        yield cluster
    finally:
        cluster.stop()


def submission(output: Path, *options: str, **settings: object) -> list[str]:
    line = ["submit", str(JOBS / "quickstart.yaml"), "--set", f"output={output}", *options]
    for name, value in (SETTINGS | settings).items():
        line += ["--set", f"{name}={value}"]
    return line


def done(process: "subprocess.Popen[str]", code: int = 0, timeout: float = 800) -> str:
    told, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, told
    return told


def record(run_dir: Path, stage: str) -> dict[str, Any]:
    return json.loads((run_dir / stage / "record.json").read_text())


def assert_finished(nodes: Nodes, run_dir: Path) -> None:
    """All is scored and reported, and nothing is left on the cluster."""
    scores = json.loads((run_dir / "scores.json").read_text())
    assert list(scores) == ["teacher", "baseline", "round_00", "round_01"]
    report = run_dir.parent / "report.md"
    command = [sys.executable, "-m", "sirt_ray", "report", run_dir, "--format", "markdown"]
    subprocess.run([*command, "--out", report], check=True, timeout=120)
    assert "round_01" in report.read_text()
    wait_until(lambda: not nodes.hosts("ServeReplica"), 60, "the end of the engines")


def test_a_run_is_submitted_seen_and_stopped(nodes: Nodes, tmp_path: Path) -> None:
    refused = done(nodes.sirt("status", RAY_AUTH_TOKEN="wrong"), 1)
    assert "RAY_AUTH_TOKEN" in refused
    told = done(nodes.sirt(*submission(tmp_path, "--detach")))
    assert "sirt stop quickstart" in told
    attached = nodes.sirt(*submission(tmp_path))
    wait_until(lambda: bool(nodes.hosts("ServeReplica")), 120, "the start of an engine")
    other = done(nodes.sirt(*submission(tmp_path, "--detach", seed=3)), 2)
    assert "other settings" in other
    attached.send_signal(signal.SIGINT)
    left = done(attached, 130)
    assert "runs already" in left and "continues on the cluster" in left
    assert "nothing of it is left" in done(nodes.sirt("stop", "quickstart"))
    assert not nodes.hosts("ServeReplica")
    assert "STOPPED" in done(nodes.sirt("status"))
    assert "▸ demonstrations" in done(nodes.sirt("logs", "quickstart"))


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    nodes.add("b", **WORKER)
    output = tmp_path_factory.mktemp("undisturbed")
    done(nodes.sirt(*submission(output)))
    return output / "quickstart"


def test_the_quickstart_ends_right(nodes: Nodes, undisturbed: Path) -> None:
    assert_finished(nodes, undisturbed)
    finished = done(nodes.sirt(*submission(undisturbed.parent)))
    assert "is finished" in finished
    assert "round_01" in finished


def run_up_to(stage: str, undisturbed: Path, output: Path) -> Path:
    """A run's folder in which `stage` and all behind it are still to do."""
    run_dir = shutil.copytree(undisturbed, output / "quickstart", symlinks=True)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(run_dir / later)
    return run_dir


def lose_host(nodes: Nodes, actor: str, ready: Any) -> None:
    """Kill the node of `actor` as soon as `ready()`, and bring another one."""
    wait_until(lambda: bool(nodes.hosts(actor)), 300, f"the start of {actor}")
    (victim,) = nodes.hosts(actor)
    wait_until(ready, 300, "the moment to kill")
    nodes.kill(victim)
    nodes.add(victim, **WORKER)


@pytest.mark.parametrize(
    ("stage", "actor", "parts"),
    [
        ("demonstrations", "-teacher", "completions/part-*.parquet"),
        ("round_01/samples", "-student", "part-*.parquet"),
    ],
)
def test_a_node_is_lost_while_it_samples(
    nodes: Nodes, undisturbed: Path, tmp_path: Path, stage: str, actor: str, parts: str
) -> None:
    run_dir = run_up_to(stage, undisturbed, tmp_path)
    partial = (run_dir / stage).with_name(f".{Path(stage).name}.partial")
    run = nodes.sirt(*submission(tmp_path))
    lose_host(nodes, f"{actor}:", lambda: len(list(partial.glob(parts))) >= 2)
    done(run)
    assert content(run_dir) == content(undisturbed)
    assert_finished(nodes, run_dir)
    counts = record(run_dir, stage)["counts"]
    again = counts.get("sampling", counts)["retries"]
    sys.stdout.write(f"{stage}: {again} questions asked again, a block has {BLOCK}\n")
    assert again <= BLOCK


def preempted(nodes: Nodes, victim: str, run: "subprocess.Popen[str]") -> None:
    nodes.drain(victim, NOTICE_SECONDS)
    time.sleep(NOTICE_SECONDS)
    nodes.kill(victim)
    nodes.add(victim, **WORKER)


def cut_off(nodes: Nodes, victim: str, run: "subprocess.Popen[str]") -> None:
    """Its processes go on to exist, and so do its connections, but nothing comes through."""
    nodes.freeze(victim)
    wait_until(lambda: victim not in nodes.hosts(""), 300, "that the node is missed")
    nodes.kill(victim)
    nodes.add(victim, **WORKER)


def slowed(nodes: Nodes, victim: str, run: "subprocess.Popen[str]") -> None:
    """A tenth as fast as it was, to the end."""
    while run.poll() is None:
        nodes.freeze(victim)
        time.sleep(0.9)
        nodes.thaw(victim)
        time.sleep(0.1)


@pytest.mark.parametrize("trouble", [preempted, cut_off, slowed])
def test_the_node_of_an_engine_is_in_trouble(
    nodes: Nodes,
    undisturbed: Path,
    tmp_path: Path,
    trouble: Callable[[Nodes, str, "subprocess.Popen[str]"], None],
) -> None:
    run_dir = run_up_to("round_01/samples", undisturbed, tmp_path)
    partial = run_dir / "round_01" / ".samples.partial"
    run = nodes.sirt(*submission(tmp_path))
    wait_until(lambda: len(list(partial.glob("part-*.parquet"))) >= 1, 300, "the first block")
    (victim,) = nodes.hosts("-student:")
    trouble(nodes, victim, run)
    done(run)
    assert content(run_dir) == content(undisturbed)
    counts = record(run_dir, "round_01/samples")["counts"]
    sys.stdout.write(f"{trouble.__name__}: {counts['retries']} questions asked again\n")
    assert counts["retries"] <= BLOCK


@pytest.mark.parametrize("stage", ["round_00/student", "round_01/student"])
def test_a_node_is_lost_while_it_trains(
    nodes: Nodes, undisturbed: Path, tmp_path: Path, stage: str
) -> None:
    run_dir = run_up_to(stage, undisturbed, tmp_path)
    metrics = run_dir / stage.replace("/student", "/.student.partial/.work/metrics.jsonl")
    run = nodes.sirt(*submission(tmp_path))
    lose_host(nodes, "RayTrainWorker", lambda: len(read_lines(metrics)) >= 2 * CHECKPOINT)
    done(run)
    assert content(run_dir) == content(undisturbed)
    assert_finished(nodes, run_dir)
    again = record(run_dir, stage)["counts"]["repeated"]["steps"]
    sys.stdout.write(f"{stage}: {again} steps done again, a checkpoint every {CHECKPOINT}\n")
    assert again <= CHECKPOINT


def test_two_runs_at_once_do_not_disturb_each_other(
    nodes: Nodes, undisturbed: Path, tmp_path: Path
) -> None:
    """Of one name, in two folders."""
    outputs = [tmp_path / name for name in ("one", "other")]
    runs = [nodes.sirt(*submission(output)) for output in outputs]
    for run, output in zip(runs, outputs, strict=True):
        done(run)
        assert content(output / "quickstart") == content(undisturbed)
    assert_finished(nodes, outputs[0] / "quickstart")


def test_a_killed_driver_leaves_nothing_to_its_next_one(
    nodes: Nodes, undisturbed: Path, tmp_path: Path
) -> None:
    """The node of the driver is lost; its engines are not. `sirt submit` submits it again."""
    run_dir = run_up_to("round_01/samples", undisturbed, tmp_path)
    run = nodes.sirt(*submission(tmp_path))
    wait_until(lambda: bool(nodes.hosts("ServeReplica")), 400, "the start of an engine")
    nodes.kill("driver")
    nodes.add("driver", num_cpus=1, resources={"driver": 1})
    assert "submitting it again" in done(run)
    assert content(run_dir) == content(undisturbed)
    assert_finished(nodes, run_dir)


def test_a_run_goes_on_in_a_cluster_that_is_made_again(
    nodes: Nodes, undisturbed: Path, tmp_path: Path
) -> None:
    """The head is lost, and with it all that Ray knew. What was finished is on the disk."""
    run_dir = run_up_to("round_01/samples", undisturbed, tmp_path)
    partial = run_dir / "round_01" / ".samples.partial"
    for lost in (True, False):
        cluster = Nodes.start(tmp_path / f"log-{lost}")
        try:
            cluster.add("driver", num_cpus=1, resources={"driver": 1})
            cluster.add("a", **WORKER)
            run = cluster.sirt(*submission(tmp_path))
            if lost:
                wait_until(lambda: bool(list(partial.glob("part-*.parquet"))), 300, "a block")
                cluster.lose_head()
                assert run.stdout and any(gone in line for line in run.stdout for gone in GONE)
                run.send_signal(signal.SIGINT)
                assert "goes on" in done(run, 130)
            else:
                done(run)
                assert_finished(cluster, run_dir)
        finally:
            cluster.stop()
    assert content(run_dir) == content(undisturbed)
