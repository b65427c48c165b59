"""Training in one process with the plain engine: the equalities that every engine has to keep."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sirt_ray import tables
from sirt_ray.config import LoraConfig, RefineConfig, TuneConfig
from sirt_ray.core.encoding import TokenSequence, TrainingExample, encode_demonstration, encode_pair
from sirt_ray.errors import ArtifactError, DataError, StageError
from sirt_ray.resources import TrainerResources
from sirt_ray.training.data import held_out_questions, refinement_data
from sirt_ray.training.engine import PlainEngine
from sirt_ray.training.fit import Fit, Settings
from sirt_ray.training.forward import completion_logps
from sirt_ray.training.run import REFERENCE_FILE, run
from sirt_ray.training.sft import Tuning
from sirt_ray.training.tasks import ReferenceTask, RefineTask, Source, TuneTask
from sirt_ray.training.workfolder import WorkFolder, read_lines

CPU = torch.device("cpu")
TUNE = TuneConfig(
    batch_size=8,
    epochs=3,
    learning_rate=3e-3,
    evaluate_every_steps=2,
    validation_fraction=0.1,
)
REFINE = RefineConfig(batch_size=8, epochs=2, learning_rate=1e-3, warmup_steps=0)
RESOURCES = TrainerResources(checkpoint_every_steps=2, max_tokens_per_micro_batch=1000)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_student(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_demonstrations(tmp_path_factory.mktemp("demonstrations"), range(24))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_pairs(tmp_path_factory.mktemp("pairs"), range(16))


@pytest.fixture(scope="module")
def reference(base: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference")
    run(ReferenceTask(out, Source(str(base)), pairs, REFINE, RESOURCES), CPU)
    return out


@pytest.fixture
def tune(base: Path, demonstrations: Path) -> Callable[..., dict[str, Any]]:
    def tuned(out: Path, resources: TrainerResources = RESOURCES, **changed: Any) -> dict[str, Any]:
        config = TUNE.model_copy(update=changed)
        task = TuneTask(out, Source(str(base)), demonstrations, config, resources, seed=0)
        return run(task, CPU)

    return tuned


def weights(student: Path) -> dict[str, torch.Tensor]:
    return load_file(student / "model.safetensors")


def logps(model: Any, sequences: list[TokenSequence]) -> torch.Tensor:
    with torch.no_grad():
        return completion_logps(model.eval(), sequences, CPU)


def sequences() -> list[TokenSequence]:
    tokenizer = tiny.byte_tokenizer()
    return [encode_demonstration(tiny.demonstration(n), "cot", tokenizer) for n in range(6)]


def test_tuning_lowers_the_loss_and_exports_a_student(tmp_path: Path, tune: Any) -> None:
    counts = tune(tmp_path)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert counts["examples"] + counts["held_out"] == 24
    assert counts["steps"] == counts["chosen_step"] == 9
    assert json.loads((tmp_path / "training.json").read_text()) == counts


def test_exported_student_gives_the_trainers_loss(tmp_path: Path, tune: Any) -> None:
    counts = tune(tmp_path)
    loss = tiny.validation_loss(tmp_path, range(24), TUNE.validation_fraction, seed=0)
    assert loss == pytest.approx(counts["best_validation_loss"], rel=1e-6)


def test_a_temperature_without_sampling_does_not_stop_the_export(
    tmp_path: Path, demonstrations: Path
) -> None:
    base = tiny.save_student(tmp_path / "base")
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.6}))
    config = TUNE.model_copy(update={"max_steps": 1})
    out = tmp_path / "student"
    run(TuneTask(out, Source(str(base)), demonstrations, config, RESOURCES, seed=0), CPU)
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.6


@pytest.mark.parametrize("max_tokens", [1, 300, 100_000])
def test_micro_batches_do_not_change_the_result(tmp_path: Path, tune: Any, max_tokens: int) -> None:
    tune(tmp_path / "usual")
    tune(
        tmp_path / "other", RESOURCES.model_copy(update={"max_tokens_per_micro_batch": max_tokens})
    )
    usual, other = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("usual", "other"))
    for one, two in zip(usual, other, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_activation_checkpointing_does_not_change_the_result(tmp_path: Path, tune: Any) -> None:
    tune(tmp_path / "usual")
    tune(tmp_path / "other", RESOURCES.model_copy(update={"gradient_checkpointing": True}))
    usual, other = weights(tmp_path / "usual"), weights(tmp_path / "other")
    assert all(torch.equal(usual[name], other[name]) for name in usual)


class KilledError(Exception):
    """In the place of a killed process."""


class KilledAt(WorkFolder):
    """A work folder whose trainer dies when it has done `step`."""

    def __init__(self, out: Path, step: int) -> None:
        super().__init__(out)
        self._step = step

    def append(self, line: Mapping[str, Any]) -> None:
        super().append(line)
        if line["step"] == self._step:
            raise KilledError


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, dropout=0.1)])
@pytest.mark.parametrize("killed_at", [1, 5])
def test_resumed_is_uninterrupted_bit_for_bit(
    tmp_path: Path,
    tune: Any,
    lora: LoraConfig | None,
    killed_at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tune(tmp_path / "whole", lora=lora)
    with monkeypatch.context() as patch:
        patch.setattr("sirt_ray.training.run.WorkFolder", lambda out, _: KilledAt(out, killed_at))
        with pytest.raises(KilledError):
            tune(tmp_path / "killed", lora=lora)
    tune(tmp_path / "killed", lora=lora)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def results(student: Path) -> list[dict[str, float]]:
        lines = read_lines(student / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]

    assert results(tmp_path / "whole") == results(tmp_path / "killed")


def test_worker_that_outlived_its_driver_stops(tmp_path: Path) -> None:
    old = WorkFolder(tmp_path, attempt=WorkFolder(tmp_path).claim(RESOURCES))
    old.append({"step": 1})
    new = WorkFolder(tmp_path, attempt=WorkFolder(tmp_path).claim(RESOURCES))
    with pytest.raises(StageError, match="taken over"):
        old.append({"step": 2})
    new.append({"step": 2})
    assert [line["step"] for line in read_lines(new.metrics)] == [1, 2]


def test_kill_between_training_and_export_only_exports_again(tmp_path: Path, tune: Any) -> None:
    counts = tune(tmp_path)
    before = weights(tmp_path)
    (tmp_path / "training.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    assert tune(tmp_path) == counts
    assert all(torch.equal(before[name], weights(tmp_path)[name]) for name in before)


def test_best_validation_loss_is_chosen(tmp_path: Path, tune: Any) -> None:
    counts = tune(tmp_path, learning_rate=0.3, schedule="constant", warmup_ratio=0.0)
    judged = {
        line["step"]: line["validation_loss"]
        for line in read_lines(tmp_path / "metrics.jsonl")
        if "validation_loss" in line
    }
    assert list(judged) == [2, 4, 6, 8, 9]
    assert counts["chosen_step"] == min(judged, key=lambda step: judged[step])
    assert counts["best_validation_loss"] == min(judged.values())


def test_last_is_chosen_on_request(tmp_path: Path, tune: Any) -> None:
    changed = {"learning_rate": 0.3, "schedule": "constant", "warmup_ratio": 0.0}
    assert tune(tmp_path, choose="last", **changed)["chosen_step"] == 9


def test_merged_student_equals_base_with_adapter(tmp_path: Path, tune: Any, base: Path) -> None:
    tune(tmp_path, lora=LoraConfig(rank=4, alpha=8), learning_rate=1e-2)
    untuned = AutoModelForCausalLM.from_pretrained(base)
    before = logps(untuned, sequences())
    adapted = logps(peft.PeftModel.from_pretrained(untuned, tmp_path / "adapter"), sequences())
    merged = logps(AutoModelForCausalLM.from_pretrained(tmp_path), sequences())
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-4)
    assert (merged - before).abs().max() > 1.0
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(base)


def test_tied_embeddings_stay_tied(tmp_path: Path, demonstrations: Path) -> None:
    base = tiny.save_student(tmp_path / "base", tied=True)
    out = tmp_path / "student"
    run(TuneTask(out, Source(str(base)), demonstrations, TUNE, RESOURCES, seed=0), CPU)
    student = AutoModelForCausalLM.from_pretrained(out)
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()
    assert not torch.equal(
        student.lm_head.weight, AutoModelForCausalLM.from_pretrained(base).lm_head.weight
    )


def test_too_long_demonstrations_are_left_out_and_counted(tmp_path: Path, tune: Any) -> None:
    lengths = sorted(len(sequence) for sequence in sequences())
    counts = tune(tmp_path / "some", max_length=lengths[0] + 8)
    assert counts["left_out"]["too_long"] > 0
    assert counts["examples"] + counts["held_out"] + counts["left_out"]["too_long"] == 24
    with pytest.raises(DataError, match="24 too_long"):
        tune(tmp_path / "none", max_length=10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_loss_that_is_not_finite_names_the_step(tmp_path: Path, tune: Any) -> None:
    with pytest.raises(StageError, match="optimizer step 2"):
        tune(tmp_path, learning_rate=1e30, warmup_ratio=0.0, evaluate_every_steps=50)


def refined(out: Path, base: Path, pairs: Path, reference: Path, **changed: Any) -> dict[str, Any]:
    config = REFINE.model_copy(update=changed)
    return run(RefineTask(out, Source(str(base)), pairs, reference, config, RESOURCES, 0), CPU)


def test_reference_is_the_students_own_log_probability(base: Path, reference: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = tables.read(reference / REFERENCE_FILE)
    for number, row in enumerate(rows):
        chosen, rejected = logps(model, list(encode_pair(tiny.pair(number)).sequences)).tolist()
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


def test_reference_of_other_weights_or_pairs_is_refused(
    tmp_path: Path, base: Path, pairs: Path, reference: Path
) -> None:
    other = tiny.save_student(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactError, match="other weights"):
        refined(tmp_path / "a", other, pairs, reference)
    fewer = tiny.write_pairs(tmp_path / "fewer", range(15))
    with pytest.raises(ArtifactError, match="other pairs"):
        refined(tmp_path / "b", base, fewer, reference)


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
    missing = [row["chosen_logp"] is None for row in tables.read(out / REFERENCE_FILE)]
    assert sum(missing) == counts["left_out"]["too_long"] == sum(n > lengths[7] for n in lengths)
    trained = refined(tmp_path / "student", base, pairs, out, max_length=lengths[7])
    assert trained["left_out"]["too_long"] == sum(missing)


def test_wrong_reference_is_caught_before_the_first_update(
    tmp_path: Path, base: Path, pairs: Path, reference: Path
) -> None:
    from sirt_ray.training.dpo import Refinement

    data = refinement_data(pairs, reference, REFINE, 0, lambda _: stored_key(reference))

    def shifted(example: TrainingExample) -> TrainingExample:
        chosen, rejected = example.reference_logps
        return replace(example, reference_logps=(chosen - 0.1, rejected))

    data = replace(data, train=[shifted(example) for example in data.train])
    model = AutoModelForCausalLM.from_pretrained(base)
    engine = PlainEngine(model, REFINE, CPU)
    settings = Settings(REFINE, RESOURCES, seed=0)
    with pytest.raises(StageError, match="do not belong to these weights"):
        Fit(engine, Refinement(REFINE), data, settings, WorkFolder(tmp_path)).run()


def stored_key(reference: Path) -> str:
    return tables.counts(reference / REFERENCE_FILE)["key"]


def test_held_out_questions_are_few_whole_and_stable() -> None:
    ids = [f"q/{number // 2}" for number in range(40)]
    apart = held_out_questions(ids, 0.1, seed=0)
    assert len(apart) == 2
    assert apart == held_out_questions(reversed(ids), 0.1, seed=0)
    assert apart != held_out_questions(ids, 0.1, seed=1)
    assert held_out_questions(ids, 0.0, seed=0) == frozenset()
    assert held_out_questions(["q/1", "q/1"], 0.5, seed=0) == frozenset()
    assert len(held_out_questions(["q/1", "q/2"], 0.01, seed=0)) == 1
    assert len(held_out_questions(["q/1", "q/2"], 0.99, seed=0)) == 1


def test_tuning_has_one_denominator_for_the_whole_batch() -> None:
    examples = [TrainingExample("q", (sequence,)) for sequence in sequences()]
    expected = sum(len(sequence.completion_ids) for sequence in sequences())
    assert Tuning().denominator(examples) == expected
