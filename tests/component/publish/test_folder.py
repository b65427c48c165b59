"""What leaves a run: a folder that others load."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import load
from sirt_ray.errors import DataError, ModelError
from sirt_ray.publish.card import UNLICENSED, public_job
from sirt_ray.publish.folder import export_student
from sirt_ray.publish.students import find_student
from tests.helpers.fakes import job
from tests.helpers.trained_runs import TESTS, TrainedStages, export, write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("full"), TrainedStages())


def test_a_whole_model_leaves_as_it_was_evaluated(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(run, out) == 0
    student = run / "round_01" / "student"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (student / name).read_bytes()
    assert not {"record.json", "metrics.jsonl", "adapter", "data"} & {
        path.name for path in out.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_card_has_the_scores_of_the_run(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "--license", "apache-2.0")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.base_model == "me/base"
    assert card.data["base_model_relation"] == "finetune"
    assert card.data.datasets == [REGISTRY["gsm8k"].source.dataset]
    scores = json.loads((run / "scores.json").read_text())["round_01"]
    said = {
        (result.dataset_name, result.metric_args["prompt"]): (
            result.metric_value,
            result.metric_args["stderr"],
            result.metric_args["n"],
        )
        for result in card.data.eval_results
    }
    assert said == {
        (name, kind): (round(score["accuracy"], 4), round(score["stderr"], 4), score["n"])
        for name, kinds in scores.items()
        for kind, score in kinds.items()
    }
    record = json.loads((run / "round_01/student/record.json").read_text())
    assert record["fingerprint"] in card.content
    assert "| round_01 | 75.0 ± 21.7 (n = 4) | 66.7 ± 27.2 (n = 3) |" in card.content


def test_a_missing_licence_is_to_be_filled_in(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.license_name) == (UNLICENSED, "fill-in")


def test_the_address_of_a_teacher_is_not_published(tmp_path: Path) -> None:
    endpoint = {"url": "http://10.9.8.7/v1", "model": "large", "api_key_env": "OUR_KEY"}
    text = public_job(job(teacher={"endpoint": endpoint}))
    assert "10.9.8.7" not in text and "OUR_KEY" not in text
    (tmp_path / "job.yaml").write_text(text)
    theirs = load.load(tmp_path / "job.yaml", (), REGISTRY).teacher.endpoint
    assert theirs is not None and theirs.model == "large"


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "note").write_text("mine")
    assert export(run, tmp_path) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    (tmp_path / "empty").mkdir()
    assert export(run, tmp_path / "empty") == 0


def test_what_fails_half_way_leaves_nothing(run: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(run, tmp_path / "run")
    (broken / "round_01/student/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="no complete weights"):
        export_student(find_student(broken), tmp_path / "out", False, False, UNLICENSED)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "name", ["round_01/student/notes.txt", "demonstrations/demonstrations.parquet"]
)
def test_what_a_link_leads_to_is_not_published(run: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    secret = tmp_path / "id_rsa"
    secret.write_text("private")
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(secret)
    with pytest.raises(DataError, match=r"symbolic links.*id_rsa"):
        export_student(find_student(copy), tmp_path / "out", False, True, UNLICENSED)
    assert not (tmp_path / "out").exists()


def test_a_student_that_was_rolled_back_or_is_not_finished_is_refused(tmp_path: Path) -> None:
    worse = TrainedStages(held_out={"round_00": 80, "round_01": 20})
    run_dir = write(tmp_path, worse)
    assert find_student(run_dir).version == "round_00"
    with pytest.raises(ModelError, match=r"round_01 .* was rolled back.*--stage round_00"):
        find_student(run_dir, "round_01")
    with pytest.raises(ModelError, match=r"no student round_07.*round_00, round_01"):
        find_student(run_dir, "round_07")
    shutil.rmtree(run_dir / "round_00" / "evaluation")
    with pytest.raises(ModelError, match=r"round_00/evaluation is missing"):
        find_student(run_dir, "round_00")
    with pytest.raises(DataError, match="not the folder of a run"):
        find_student(tmp_path)


def test_custom_tasks_are_exported_with_their_code(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def coins(split): ...\n")
    data = {
        "train": ["gsm8k", "coins"],
        "evaluate": ["gsm8k", "coins"],
        "benchmarks": {"coins": {"rows": f"{tmp_path}/own.py:coins"}},
    }
    tests = {stage: {"gsm8k": "1", "coins": "10"} for stage in TESTS}
    run_dir = write(tmp_path, TrainedStages(tests=tests), data=data)
    assert export(run_dir, tmp_path / "out") == 0
    assert (tmp_path / "out/code/own.py").read_bytes() == (tmp_path / "own.py").read_bytes()
    assert str(tmp_path) not in (tmp_path / "out/job.yaml").read_text()
    theirs = load.load(tmp_path / "out/job.yaml", (), REGISTRY)
    assert theirs.code == [f"{tmp_path}/out/code/own.py:coins"]
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.datasets == [REGISTRY["gsm8k"].source.dataset]
    assert "coins" in {result.dataset_name for result in card.data.eval_results}
    assert "--allow-code" in card.content


def test_data_leaves_with_its_entries_for_llama_factory(run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export(run, tmp_path / "out", "--data")
    folder = tmp_path / "out" / "data"
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(info) == {"demonstrations", "pairs_round_01"}
    assert info["pairs_round_01"]["ranking"] is True
    for entry in info.values():
        columns = pq.read_schema(folder / entry["file_name"]).names
        assert set(entry["columns"].values()) <= set(columns)
    for name, ours in (
        ("demonstrations", run / "demonstrations/demonstrations.parquet"),
        ("pairs_round_01", run / "round_01/pairs/pairs.parquet"),
    ):
        assert (folder / f"{name}.parquet").read_bytes() == ours.read_bytes()


def test_the_metadata_is_yaml_of_plain_values(run: Path, tmp_path: Path) -> None:
    """As the hub reads it: between two lines of dashes, and nothing that only Python knows."""
    export(run, tmp_path / "out")
    front = (tmp_path / "out/README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["model-index"][0]["results"]
