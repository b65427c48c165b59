"""What `sirt evaluate` decides before anything starts: which model is evaluated with which
settings."""

import argparse
from pathlib import Path

import pytest

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli import evaluate
from sirt_ray.cli.main import main
from sirt_ray.config import load
from sirt_ray.config.job import ScoringConfig
from sirt_ray.core import steps
from sirt_ray.errors import ConfigError
from sirt_ray.on_ray.serve.resolve import find_run
from tests.helpers.paths import JOBS

JOB = JOBS / "quickstart.yaml"


def config(*options: str) -> ScoringConfig:
    parser = argparse.ArgumentParser()
    evaluate.add_to(parser.add_subparsers())
    arguments = parser.parse_args(["evaluate", *options])
    return evaluate._config(arguments, find_run(arguments.model))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that has trained nothing yet."""
    job = load.load(JOB, ["seed=3", "resources.student.max_num_seqs=7"], REGISTRY)
    (tmp_path / "config.yaml").write_text(load.dump(job))
    return tmp_path


def test_a_run_is_evaluated_with_its_own_settings(run_dir: Path) -> None:
    job = load.load(JOB, (), REGISTRY)
    found = config(str(run_dir))
    assert found.benchmarks == job.data.evaluate and found.num == 300 and found.seed == 3
    assert found.evaluation.sampling == job.evaluation.sampling
    assert found.engine.max_num_seqs == 7 and found.engine.max_model_len == 256


def test_arguments_win_over_the_run(run_dir: Path) -> None:
    options = ["--benchmarks", "gsm8k,mmlu", "--root", "rows", "--num", "5", "--prompts", "plain"]
    options += [
        "--seed",
        "1",
        "--set",
        "engine.max_num_seqs=9",
        "--set",
        "sampling.temperature=0.5",
    ]
    found = config(str(run_dir), *options)
    assert found.benchmarks == ["gsm8k", "mmlu"] and found.prompts == ["plain"]
    assert (found.root, found.num, found.seed) == ("rows", 5, 1)
    assert found.engine.max_num_seqs == 9 and found.engine.max_model_len == 256
    assert found.sampling.temperature == 0.5 and found.sampling.max_tokens == 96
    assert found.data.train == [] and found.data.evaluate == ["gsm8k", "mmlu"]


def test_where_it_runs_is_no_part_of_what_scores_are(run_dir: Path) -> None:
    one = config(str(run_dir), "--benchmarks", "gsm8k", "--root", "rows")
    other = config(
        str(run_dir), "--benchmarks", "gsm8k", "--root", "there", "--set", "engine.num_cpus=2"
    )
    assert steps.questions(one, {}).inputs == steps.questions(other, {}).inputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "benchmarks: is required"),
        (("--benchmarks", "gsm9k"), "--benchmarks: benchmarks: names no known benchmark: gsm9k"),
        (("--benchmarks", "gsm8k,gsm8k"), "names a benchmark twice"),
        (("--benchmarks", "gsm8k", "--prompts", "cat"), "--prompts: prompts.0"),
        (("--benchmarks", "gsm8k", "--num", "0"), "--num: num"),
        (("--benchmarks", "gsm8k", "--set", "engine.gpus=1"), "engine.gpus: no such setting"),
    ],
)
def test_impossible_settings_are_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config("quickstart:student", *options)
    assert message in str(caught.value)


def test_a_bad_model_or_bad_rows_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "scores"), "--benchmarks", "gsm8k"]
    assert main(["evaluate", "./nowhere", *out]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["evaluate", "quickstart:student", *out, "--root", str(tmp_path / "rows")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "scores").exists()


def test_a_run_without_a_student_is_refused(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_dir)]) == 2
    assert "no finished student" in capsys.readouterr().err
