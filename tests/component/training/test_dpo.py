"""Self-refinement in one process with the plain engine: its start, and its reference."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sirt_ray.artifacts import parquet
from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import LoraConfig, RefineConfig
from sirt_ray.core.encoding import TrainingExample, encode_pair
from sirt_ray.errors import StageError
from sirt_ray.training.capabilities import probe
from sirt_ray.training.data import pair_examples, refinement_data, stored_reference
from sirt_ray.training.engine import PlainEngine
from sirt_ray.training.fit import Fit, Settings
from sirt_ray.training.forward import CompletionLogps
from sirt_ray.training.metrics import MEASURED
from sirt_ray.training.model import load_model
from sirt_ray.training.objectives import Refinement
from sirt_ray.training.run import REFERENCE_FILE, run
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source
from sirt_ray.training.workdir import WorkDir, read_lines
from tests.helpers import tiny
from tests.helpers.killed_training import KilledAt, KilledError

CPU = torch.device("cpu")
REFINE = RefineConfig(batch_size=8, epochs=2, learning_rate=1e-3, warmup_steps=0)
RESOURCES = TrainerResources(checkpoint_every_steps=2, max_tokens_per_micro_batch=1000)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_student(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_pairs(tmp_path_factory.mktemp("pairs"), range(16))


@pytest.fixture(scope="module")
def reference(base: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference")
    run(ReferenceTask(out, Source(str(base)), pairs, REFINE, RESOURCES), CPU)
    return out


def refined(out: Path, base: Path, pairs: Path, reference: Path, **changed: Any) -> dict[str, Any]:
    config = REFINE.model_copy(update=changed)
    return run(RefineTask(out, Source(str(base)), pairs, reference, config, RESOURCES, 0), CPU)


def test_reference_is_the_students_log_probability(base: Path, reference: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    rows = parquet.read(reference / REFERENCE_FILE)
    for number, row in enumerate(rows):
        with torch.no_grad():
            logps = tiny.completion_logps(model, encode_pair(tiny.pair(number)).sequences)
        chosen, rejected = logps.tolist()
        assert row["chosen_logp"] == pytest.approx(chosen, abs=1e-4)
        assert row["rejected_logp"] == pytest.approx(rejected, abs=1e-4)


def test_refinement_starts_at_ln_2_and_raises_the_margin(
    tmp_path: Path, base: Path, pairs: Path, reference: Path
) -> None:
    counts = refined(tmp_path, base, pairs, reference)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(lines[0]["margin"]) < 1e-5
    assert lines[-1]["margin"] > 0.1
    assert lines[-1]["accuracy"] == 1.0
    assert counts["held_out"] == 1


def test_lora_refinement_starts_at_ln_2(
    tmp_path: Path, base: Path, pairs: Path, reference: Path
) -> None:
    refined(tmp_path, base, pairs, reference, lora=LoraConfig(rank=4), learning_rate=1e-2)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[-1]["margin"] > 0.01


def test_reference_of_other_weights_or_pairs_is_computed_again(
    tmp_path: Path, base: Path, pairs: Path, reference: Path
) -> None:
    other = tiny.save_student(tmp_path / "other", seed=1)
    fewer = tiny.write_pairs(tmp_path / "fewer", range(15))
    for name, student, of_pairs in (("a", other, pairs), ("b", base, fewer)):
        counts = refined(tmp_path / name, student, of_pairs, reference)
        assert "computed again" in counts["reference"]
        first = read_lines(tmp_path / name / "metrics.jsonl")[0]
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert "reference" not in refined(tmp_path / "c", base, pairs, reference)


def test_pair_above_max_length_has_no_reference_and_is_not_trained_on(
    tmp_path: Path, base: Path, pairs: Path
) -> None:
    lengths = sorted(
        max(len(sequence) for sequence in encode_pair(tiny.pair(number)).sequences)
        for number in range(16)
    )
    config = REFINE.model_copy(update={"max_length": lengths[7]})
    out = tmp_path / "reference"
    counts = run(ReferenceTask(out, Source(str(base)), pairs, config, RESOURCES), CPU)
    missing = [row["chosen_logp"] is None for row in parquet.read(out / REFERENCE_FILE)]
    assert sum(missing) == counts["left_out"]["too_long"] == sum(n > lengths[7] for n in lengths)
    trained = refined(tmp_path / "student", base, pairs, out, max_length=lengths[7])
    assert trained["left_out"]["too_long"] == sum(missing)


def test_wrong_reference_is_caught_before_the_first_update(
    tmp_path: Path, base: Path, pairs: Path, reference: Path
) -> None:
    key = parquet.counts(reference / REFERENCE_FILE)["key"]
    stored = stored_reference(reference, key)
    assert stored is not None and stored_reference(reference, "another") is None
    data = refinement_data(pair_examples(pairs), stored, REFINE, 0)

    def shifted(example: TrainingExample) -> TrainingExample:
        chosen, rejected = example.reference_logps
        return replace(example, reference_logps=(chosen - 0.1, rejected))

    data = replace(data, train=[shifted(example) for example in data.train])
    model = load_model(Source(str(base)), REFINE)
    engine = PlainEngine(CompletionLogps(model, probe(model)), REFINE, CPU)
    settings = Settings(REFINE, RESOURCES, seed=0)
    with pytest.raises(StageError, match="do not belong to these weights"):
        Fit(engine, Refinement(REFINE), data, settings, WorkDir(tmp_path)).run()


def test_lines_and_record_have_held_out_pairs_and_warnings(
    tmp_path: Path, base: Path, pairs: Path, reference: Path
) -> None:
    counts = refined(tmp_path, base, pairs, reference, evaluate_every_steps=2)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert abs(lines[0]["kl"]) < 1e-4
    assert lines[0]["warnings"] == lines[-1]["warnings"] == {"length_drift": 1}
    assert [warning["name"] for warning in counts["warnings"]] == ["length_drift"]
    judged = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in judged] == [2, 4]
    for line in judged:
        assert {"validation_accuracy", "validation_margin", "validation_kl"} <= line.keys()
    assert counts["validation"]["accuracy"] == judged[-1]["validation_accuracy"]
    for line in lines:
        expected = -(line["chosen_reward"] + line["rejected_reward"]) / (2 * REFINE.beta)
        assert line["kl"] == pytest.approx(expected, abs=1e-4)
        assert line["pairs_per_second"] > 0
        # The prompt of a pair goes through the model once.
        assert 0.3 < line["shared_share"] < 0.5 and line["padding_share"] == 0


COLLAPSING: dict[str, Any] = {
    "learning_rate": 1.0,
    "schedule": "constant",
    "epochs": 5,
    "evaluate_every_steps": 2,
    "select_by": "accuracy",
    "validation_fraction": 0.3,
}


def test_warnings_and_choice_are_the_same_after_a_kill(
    tmp_path: Path,
    base: Path,
    pairs: Path,
    reference: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = refined(tmp_path / "whole", base, pairs, reference, **COLLAPSING)
    with monkeypatch.context() as patch:
        patch.setattr("sirt_ray.training.run.WorkDir", lambda out, _: KilledAt(out, 5))
        with pytest.raises(KilledError):
            refined(tmp_path / "killed", base, pairs, reference, **COLLAPSING)
    killed = refined(tmp_path / "killed", base, pairs, reference, **COLLAPSING)

    lines, again = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
    for one, two in zip(lines, again, strict=True):
        assert {k: one[k] for k in one.keys() - MEASURED} == {
            k: two[k] for k in two.keys() - MEASURED
        }
    raised = {warning["name"]: warning["step"] for warning in whole["warnings"]}
    assert raised == lines[-1]["warnings"]
    assert raised["length_drift"] == 1 and 5 < raised["chosen_logp_falls"] <= 10
    for key in ("warnings", "chosen_step", "validation"):
        assert whole[key] == killed[key]
    judged = {
        line["step"]: (-line["validation_accuracy"], line["validation_loss"])
        for line in lines
        if "validation_loss" in line
    }
    assert whole["chosen_step"] == min(judged, key=lambda step: judged[step])
