"""`sirt plan --cluster`: what it prints for every job, without a network, and what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.artifacts.store import ArtifactStatus
from sirt_ray.cli.main import main
from sirt_ray.driver import plan as cluster_plan
from sirt_ray.driver import plan as hours
from sirt_ray.planning.clusters import described
from sirt_ray.planning.placement import plan_placement
from tests.helpers.fakes import job
from tests.helpers.paths import JOB_FILES, JOBS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.stem)
def test_every_job_is_placed_on_one_node_without_a_network(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(path), "--cluster", "8x80GB"]) == 0
    shown = capsys.readouterr().out
    assert "Time for what is still to be made" in shown and "Assumed, not measured" in shown
    assert "trainer x" in shown and "In turns:" in shown
    assert "unknown" not in shown


def figures(shown: str) -> dict[str, tuple[float, float, float]]:
    """kind -> (million tokens, hours, GPU-hours)"""
    rows = re.findall(r"^ (\S[\w ]*?) +[\d,]+ +([\d.,]+) +([\d.,]+) +([\d.,]+)", shown, re.M)
    return {
        kind: (float(t.replace(",", "")), float(h.replace(",", "")), float(g.replace(",", "")))
        for kind, t, h, g in rows
    }


def test_the_papers_study_has_hours_that_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, dict[str, tuple[float, float, float]]] = {}
    for cluster in ("4x48GB", "8x80GB"):
        assert main(["plan", str(JOBS / "paper/in_family.yaml"), "--cluster", cluster]) == 0
        shown = capsys.readouterr().out
        assert "36 trials" in shown
        told[cluster] = figures(shown.partition("Time for")[2])
    for found in told.values():
        total = found.pop("all of it")
        assert set(found) == {"demonstrations", "evaluation", "student", "samples", "reference"}
        for column in range(3):
            assert total[column] == pytest.approx(
                sum(row[column] for row in found.values()), abs=0.3
            )
        # Every part of this study sits on four GPUs.
        for _, wall, of_gpus in found.values():
            assert of_gpus == pytest.approx(4 * wall, abs=0.25)
    for kind in told["4x48GB"]:
        slow, fast = told["4x48GB"][kind], told["8x80GB"][kind]
        assert slow[0] == fast[0] and slow[1] > fast[1]


def test_one_gpu_of_24_gb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(JOBS / "paper/in_family.yaml"), "--cluster", "1x24GB"]) == 1
    captured = capsys.readouterr()
    assert "the cluster cannot hold the teacher engine" in captured.err
    assert "missing: 3 GPU" in captured.err and "smallest cluster" in captured.err
    assert "num_workers: 1" in captured.err
    assert "Time for" not in captured.out and "inf" not in captured.err


def test_a_description_that_is_none_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(JOBS / "quickstart.yaml"), "--cluster", "many"]) == 2
    assert "2x8x80GB" in capsys.readouterr().err


def test_without_gpus_there_are_no_gpu_hours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(JOBS / "quickstart.yaml"), "--cluster", "4CPU"]) == 0
    shown = capsys.readouterr().out
    assert "There is no GPU: no GPU-hours" in shown and "not known" in shown
    assert "4 CPU" not in shown and "GB of one process" in shown


def test_a_model_that_nobody_knows_is_said_and_not_guessed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = ["--set", "student.model=nobody/knows"]
    assert main(["plan", str(JOBS / "quickstart.yaml"), "--cluster", "2x80GB", *changed]) == 0
    shown = capsys.readouterr().out
    assert "nobody/knows: its size is unknown: give the model as a folder" in shown
    assert re.search(r"trainer x 1 +\?", shown) and "not known" in shown


def test_an_endpoint_takes_as_long_as_its_pace(tmp_path: Path) -> None:
    """440 questions at 30 a minute; no GPU."""
    endpoint = {"url": "http://x/v1", "model": "m", "requests_per_minute": 30}
    config = job(
        data={"train": ["gsm8k"], "evaluate": ["gsm8k"], "num_train": 440, "num_test": 10},
        teacher={"endpoint": endpoint},
        student={"model": "quickstart:student"},
    )
    setup = cluster_plan.setup_of([config])
    assert setup.roles == ("student", "trainer")
    state = ArtifactStatus("demonstrations", "missing", tmp_path)
    (found,) = estimates(config, [state])
    assert found.seconds == 440 / 30 * 60 and found.gpu_seconds == 0


def estimates(config: Any, states: list[ArtifactStatus]) -> list[Any]:
    setup = cluster_plan.setup_of([config])
    placed = (setup, plan_placement(setup, described("2x80GB")))
    return hours.estimates([(config, state) for state in states], [placed] * len(states))


def test_what_is_finished_says_how_long_the_rest_takes(tmp_path: Path) -> None:
    config = job(
        data={"train": ["gsm8k"], "evaluate": ["gsm8k"], "num_train": 100, "num_test": 10},
        teacher={"model": "quickstart:teacher"},
        student={"model": "quickstart:student"},
        tune={"validation_fraction": 0, "batch_size": 10, "epochs": 1},
        refine={"rounds": 2, "num_cot": 4, "num_plain": 1},
    )
    counts = {
        "round_01/samples": {
            "completions": 250,
            "completion_tokens": 5000,
            "usage": {"seconds": 50.0},
        },
        "round_00/student": {"seconds": 30.0, "steps": 10, "tokens": 999},
    }
    states: list[ArtifactStatus] = []
    for name, found in counts.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"seconds": 1.0, "counts": found}))
        states.append(ArtifactStatus(name, "finished", folder))
    states.append(ArtifactStatus("round_02/samples", "missing", tmp_path / "none"))
    states.append(ArtifactStatus("round_01/student", "missing", tmp_path / "none"))
    samples, student = estimates(config, states)
    # 100 questions x 5 completions at 5 a second; 20 tokens each.
    assert (samples.seconds, samples.tokens, samples.measured) == (100.0, 10_000, 1)
    # Refining is 100 pairs in one step of 128 at most, at 3 seconds a step.
    assert (student.seconds, student.measured) == (3.0, 1)
