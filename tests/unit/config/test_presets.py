"""The methods to compare: that each resolves, what overrides it, and which weights go where."""

from pathlib import Path
from typing import Any

import pytest

from sirt_ray.artifacts.store import Store
from sirt_ray.config import load as jobfile
from sirt_ray.config.job import JobConfig
from sirt_ray.config.presets import METHODS
from tests.helpers.fakes import FakeStages, run_fake

JOB = """\
name: tiny
method: {method}
data: {{train: [gsm8k], evaluate: [gsm8k]}}
teacher: {{model: teacher}}
student: {{model: student}}
"""
BEFORE = ["questions", "demonstrate", "evaluate teacher", "evaluate baseline"]
TUNED = [*BEFORE, "tune", "evaluate round_00"]


def load(tmp_path: Path, method: str, *overrides: str, more: str = "") -> JobConfig:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(method=method) + more)
    return jobfile.load(path, overrides, ["gsm8k"])


def calls(tmp_path: Path, job: JobConfig, **world: Any) -> list[str]:
    stages = FakeStages(**world)
    run_fake(job, stages, Store(tmp_path / "run"))
    return stages.calls


def preference(round_number: int) -> list[str]:
    before = f"round_{round_number - 1:02d}"
    return [
        f"sample {round_number} from {before}",
        f"pair {round_number}",
        f"reference of {before}",
        f"refine {round_number} from {before}",
        f"evaluate round_{round_number:02d}",
    ]


def imitation_from_base(round_number: int) -> list[str]:
    return [
        f"sample {round_number} from round_{round_number - 1:02d}",
        f"pair {round_number}",
        f"imitate {round_number} from baseline",
        f"evaluate round_{round_number:02d}",
    ]


ROUNDS = {
    "instruction_tuning": [],
    "rft": imitation_from_base(1),
    "star": [*imitation_from_base(1), *imitation_from_base(2), *imitation_from_base(3)],
    "rest_em": [*imitation_from_base(1), *imitation_from_base(2)],
    "iterative_rpo": [*preference(1), *preference(2), *preference(3), *preference(4)],
    "spin": [*preference(1), *preference(2), *preference(3)],
    "dpo_st": [
        call
        for iteration in (1, 3, 5)
        for call in (*preference(iteration), *imitation_from_base(iteration + 1))
    ],
    "self_refine": preference(1),
    "self_refine_rounds": [*preference(1), *preference(2), *preference(3)],
}


@pytest.mark.parametrize("method", METHODS)
def test_what_each_method_does_in_which_order(tmp_path: Path, method: str) -> None:
    assert calls(tmp_path, load(tmp_path, method)) == [*TUNED, *ROUNDS[method]]


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_method_parses_to_itself_and_keeps_its_name(tmp_path: Path, method: str) -> None:
    job = load(tmp_path, method)
    path = tmp_path / "config.yaml"
    path.write_text(jobfile.dump(job))
    assert jobfile.load(path, [], ["gsm8k"]) == job
    assert job.method == method


def test_a_file_overrides_its_method_and_an_override_all(tmp_path: Path) -> None:
    more = "refine: {num_cot: 3, pairs: {max_per_question: 2}}\n"
    refine = load(tmp_path, "rft", more=more).refine
    assert (refine.num_cot, refine.pairs.max_per_question) == (3, 2)
    assert (refine.loss, refine.pairs.rule) == ("rft", "right")
    assert load(tmp_path, "rft", "refine.num_cot=5", more=more).refine.num_cot == 5
    assert load(tmp_path, "rft", "method=spin").refine.pairs.rule == "spin"


def test_self_training_with_dpo_imitates_in_every_second_round(tmp_path: Path) -> None:
    refine = load(tmp_path, "dpo_st").refine
    assert [refine.of_round(r).loss for r in (1, 2, 3, 4)] == ["sigmoid", "rft", "sigmoid", "rft"]
    second = refine.of_round(2)
    assert second.pairs.rule == "right" and second.pairs.with_demonstrations
    assert second.max_steps is None and second.start == "base"


def test_without_tuning_rounds_start_from_the_base(tmp_path: Path) -> None:
    job = load(tmp_path, "self_refine", "tune.skip=true")
    assert calls(tmp_path, job) == [
        *BEFORE,
        "sample 1 from baseline",
        "pair 1",
        "reference of baseline",
        "refine 1 from baseline",
        "evaluate round_01",
    ]


def test_a_rolled_back_round_is_not_what_the_next_one_samples_from(tmp_path: Path) -> None:
    job = load(tmp_path, "star", "refine.roll_back=true")
    made = calls(tmp_path, job, held_out={"round_00": 60, "round_01": 20, "round_02": 61})
    sampled = [call for call in made if call.startswith("sample")]
    assert sampled == ["sample 1 from round_00", "sample 2 from round_00", "sample 3 from round_02"]


def test_methods_share_what_they_have_in_common(tmp_path: Path) -> None:
    calls(tmp_path, load(tmp_path, "instruction_tuning"))
    assert calls(tmp_path, load(tmp_path, "iterative_rpo", "refine.rounds=1")) == preference(1)
