"""The whole method as a user runs it: `sirt run` in processes of its own, killed and continued."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

from sirt_ray.publish.card import UNLICENSED
from sirt_ray.publish.folder import export_student
from sirt_ray.publish.students import find_student
from sirt_ray.training import metrics
from sirt_ray.training.workdir import read_lines
from tests.helpers.event_files import curves
from tests.helpers.run_folders import content, events
from tests.helpers.small_run import SMALL, command, run

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
SAMPLING = "round_01/samples"

pytestmark = pytest.mark.ray


def stamps(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of the finished artifacts."""
    finished = {record.parent for record in run_dir.rglob("record.json")}
    files = [file for folder in finished for file in folder.rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def test_every_stage_is_scored_and_the_run_folder_is_as_promised(finished_run: Path) -> None:
    scores = json.loads((finished_run / "scores.json").read_text())
    assert list(scores) == ["teacher", "baseline", "round_00", "round_01"]
    for stage in scores.values():
        assert set(stage) == {"word_problems", "letter_choices"}
        for kinds in stage.values():
            assert set(kinds) == {"cot", "plain"}
            for score in kinds.values():
                assert set(score) == {"accuracy", "stderr", "n"}
                assert score["n"] == 24 and 0 <= score["accuracy"] <= 1
    for name in ("config.yaml", "events.jsonl", "demonstrations", "round_00/student"):
        assert (finished_run / name).exists()
    for name in ("samples", "pairs", "student"):
        assert (finished_run / "round_01" / name).is_dir()
    assert not list(finished_run.rglob("*.partial"))


def test_nothing_is_dropped_without_a_reason(finished_run: Path) -> None:
    counts = json.loads((finished_run / "demonstrations/record.json").read_text())["counts"]
    fates = [n for fate, n in counts.items() if fate == "kept" or fate.startswith("dropped_")]
    assert sum(fates) == counts["questions"] == 80
    samples = json.loads((finished_run / "round_01/samples/record.json").read_text())["counts"]
    rows = [
        row
        for f in (finished_run / "round_01/samples").glob("*.parquet")
        for row in pq.read_table(f).to_pylist()
    ]
    assert samples["completions"] == len(rows) == samples["questions"] * 7
    assert samples["right"] + samples["wrong"] + samples["unparseable"] == len(rows)
    keys = {(row["question_id"], row["prompt_kind"], row["sample_index"]) for row in rows}
    assert len(keys) == len(rows)
    assert {row["model_version"] for row in rows} == {"round_00"}


def test_pairs_carry_the_samplers_own_tokens(finished_run: Path) -> None:
    sampled = {
        (row["question_id"], row["prompt_kind"], row["sample_index"]): row
        for file in (finished_run / "round_01/samples").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    }
    tokenizer = AutoTokenizer.from_pretrained(finished_run / "round_00/student")
    pairs = pq.read_table(finished_run / "round_01/pairs/pairs.parquet").to_pylist()
    assert pairs
    for pair in pairs:
        assert pair["chosen_verdict"] == "right" and pair["chosen_stop_reason"] == "stop"
        for side in ("chosen", "rejected"):
            index = pair[f"{side}_sample_index"]
            row = sampled[pair["question_id"], pair[f"{side}_prompt_kind"], index]
            assert row["completion_ids"] == pair[f"{side}_ids"]
            assert row["completion"] == pair[side]
            *ids, last = row["completion_ids"]
            assert last == tokenizer.eos_token_id
            assert tokenizer.decode(ids) == pair[side]


def test_the_ecosystem_reads_what_was_written(finished_run: Path) -> None:
    pairs = datasets.load_dataset(
        "parquet", data_files=str(finished_run / "round_01/pairs/*.parquet"), split="train"
    )
    assert {"prompt", "chosen", "rejected"} <= set(pairs.column_names)
    demonstrations = datasets.load_dataset(
        "parquet",
        data_files=str(finished_run / "demonstrations/demonstrations.parquet"),
        split="train",
    )
    assert {"prompt", "completion"} <= set(demonstrations.column_names)
    for version in ("round_00", "round_01"):
        AutoModelForCausalLM.from_pretrained(finished_run / version / "student")


@pytest.mark.parametrize(
    ("trainer", "config", "files"),
    [
        (trl.SFTTrainer, trl.SFTConfig, "demonstrations/demonstrations.parquet"),
        (trl.DPOTrainer, trl.DPOConfig, "round_01/pairs/pairs.parquet"),
    ],
)
def test_trl_trains_on_the_files_as_they_are(
    finished_run: Path, tmp_path: Path, trainer: Any, config: Any, files: str
) -> None:
    data = datasets.load_dataset("parquet", data_files=str(finished_run / files), split="train")
    settings = config(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    student = str(finished_run / "round_00/student")
    trained = trainer(model=student, args=settings, train_dataset=data)
    # What it makes of our texts are the sampler's own tokens.
    made, ours = trained.train_dataset[0], data[0]
    if "chosen" in ours:
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert made[name] == ours[name]
    else:
        assert made["input_ids"] == ours["prompt_ids"] + ours["completion_ids"]
    trained.train()
    losses = [line["loss"] for line in trained.state.log_history if "loss" in line]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)


def test_the_exported_model_writes_what_the_evaluation_has(
    finished_run: Path, tmp_path: Path
) -> None:
    """vLLM wrote it there; here `transformers` does, from the exported folder."""
    export_student(find_student(finished_run), tmp_path / "out", False, False, UNLICENSED)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    version = find_student(finished_run).version
    rows = [
        row
        for file in sorted((finished_run / version / "evaluation").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    for row in rows[::8]:
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        assert prompt["input_ids"][0].tolist() == row["prompt_ids"]
        written = model.generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            max_new_tokens=96,
            do_sample=False,
        )[0, len(row["prompt_ids"]) :]
        said = tokenizer.decode(written, skip_special_tokens=True)
        assert (row["question_id"], said) == (row["question_id"], row["completion"])


def test_tensorboard_has_every_step_of_the_trainings(finished_run: Path) -> None:
    for name in ("round_00/student", "round_01/student"):
        lines = read_lines(finished_run / name / "metrics.jsonl")
        loss = curves(finished_run / "tensorboard" / name)["loss"]
        assert loss == {line["step"]: pytest.approx(line["loss"]) for line in lines}


def test_the_first_dpo_loss_is_ln_2_and_the_margin_0(finished_run: Path) -> None:
    lines = (finished_run / "round_01/student/metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["margin"] == pytest.approx(0.0, abs=1e-4)


def test_the_same_command_again_touches_nothing(finished_run: Path) -> None:
    before, told = stamps(finished_run), len(events(finished_run))
    run(finished_run.parent, **SMALL)
    assert stamps(finished_run) == before
    said = {event["event"] for event in events(finished_run)[told:]}
    assert said - set(metrics.WARNINGS) == {"reused", "finished"}


def test_a_changed_setting_is_refused(finished_run: Path) -> None:
    before = stamps(finished_run)
    done = subprocess.run(
        command(finished_run.parent, **SMALL | {"refine.beta": 0.5}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "refine.beta: 0.1 -> 0.5" in done.stderr
    assert stamps(finished_run) == before


def test_a_run_killed_while_it_samples_ends_as_an_undisturbed_one(
    finished_run: Path, tmp_path: Path
) -> None:
    """From the finished run's folder without what comes after; `test_trainer.py` kills in
    training."""
    run_dir = shutil.copytree(finished_run, tmp_path / "quickstart")
    for later in STAGES[STAGES.index(SAMPLING) :]:
        shutil.rmtree(run_dir / later)
    kill_and_continue(finished_run, run_dir, (SAMPLING,))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_in_every_stage_ends_as_an_undisturbed_one(
    finished_run: Path, tmp_path: Path
) -> None:
    kill_and_continue(finished_run, tmp_path / "quickstart", STAGES)


def kill_and_continue(finished_run: Path, run_dir: Path, stages: Sequence[str]) -> None:
    moment = random.Random(0)
    for stage in stages:
        if (run_dir / stage / "record.json").exists():
            continue  # The kill before came late, and this stage was a short one.
        before = stamps(run_dir)
        took = json.loads((finished_run / stage / "record.json").read_text())["seconds"]
        kill_in(stage, run_dir, moment.uniform(0.0, took))
        after = stamps(run_dir)
        assert {file: after[file] for file in before} == before
    before = stamps(run_dir)
    run(run_dir.parent, **SMALL)
    after = stamps(run_dir)
    assert {file: after[file] for file in before} == before
    assert content(run_dir) == content(finished_run)


def kill_in(stage: str, run_dir: Path, seconds: float) -> None:
    """Run until `stage` begins and `seconds` more, then `kill -9` the driver."""
    seen = len(events(run_dir))
    log = (run_dir.parent / "log").open("a")
    driver = subprocess.Popen(
        command(run_dir.parent, **SMALL), stdout=log, stderr=log, start_new_session=True
    )
    begun = {"event": "started", "artifact": stage}
    deadline = time.monotonic() + 240
    while not any(begun.items() <= event.items() for event in events(run_dir)[seen:]):
        assert driver.poll() is None, (run_dir.parent / "log").read_text()
        assert time.monotonic() < deadline, f"{stage} did not begin"
        time.sleep(0.1)
    time.sleep(seconds)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


@pytest.mark.timeout(580)
def test_real_rows_go_through_every_stage(assets: Path, tmp_path: Path) -> None:
    run(tmp_path, "gsm8k_cpu.yaml", **{"data.root": assets / "data", "data.num_test": 16})
    run_dir = tmp_path / "gsm8k_cpu"
    scores = json.loads((run_dir / "scores.json").read_text())
    assert list(scores) == ["teacher", "baseline", "round_00", "round_01"]
    questions = json.loads((run_dir / "questions/record.json").read_text())["counts"]
    assert questions
    assert (run_dir / "round_01/student/model.safetensors").exists()
