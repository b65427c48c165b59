"""What `sirt` says to bad input: exit code 2, one message to act on, no run folder."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.cli.main import main
from sirt_ray.quickstart import assets
from tests.helpers import tiny

JOB = """\
name: mine
output: {output}
data:
  train: [gsm8k]
  evaluate: [gsm8k]
  root: {root}
  num_validation: 1
teacher: {{model: "quickstart:teacher"}}
student: {{model: "quickstart:student"}}
"""
ROW = {"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of good rows."""
    for split in ("train", "test"):
        path = tmp_path / "rows" / "gsm8k" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([ROW] * 4), path)
    return tmp_path / "rows"


def job(tmp_path: Path, rows: Path, extra: str = "") -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(output=tmp_path / "runs", root=rows) + extra)
    return path


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one message of a `sirt run` that must not start."""
    assert main(["run", *map(str, arguments)]) == 2
    assert not (tmp_path / "runs").exists()
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "Traceback" not in told
    return told


def test_a_good_job_is_planned_and_leaves_nothing(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(job(tmp_path, rows)), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "round_01/student" in shown and "to build" in shown
    assert not (tmp_path / "runs").exists()
    assert main(["plan", str(job(tmp_path, rows))]) == 0
    assert "learning_rate: 2.0e-05" in capsys.readouterr().out


def test_a_job_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in refused(tmp_path, capsys, tmp_path / "nowhere.yaml")


def test_settings_that_do_not_exist(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job(tmp_path, rows, "refine: {betta: 1}\ntune: {epochs: none}\n")
    told = refused(tmp_path, capsys, path)
    assert "refine.betta" in told and "tune.epochs" in told and "2 problems" in told


def test_an_override_without_a_value(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(tmp_path, capsys, job(tmp_path, rows), "--set", "refine.rounds")
    assert "--set refine.rounds" in told


def test_a_benchmark_that_does_not_exist(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(tmp_path, capsys, job(tmp_path, rows), "--set", "data.train=[gsm9k]")
    assert "gsm9k" in told and "commonsense_qa" in told


def test_a_folder_of_rows_that_is_not_there(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(tmp_path, capsys, job(tmp_path, tmp_path / "elsewhere"))
    assert "elsewhere" in told and "data.root" in told


def test_a_split_that_is_not_there(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows / "gsm8k" / "test.parquet").unlink()
    told = refused(tmp_path, capsys, job(tmp_path, rows))
    assert "gsm8k" in told and "test" in told


def test_a_column_that_is_missing(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.Table.from_pylist([{"question": "What is 2 + 2?"}])
    pq.write_table(table, rows / "gsm8k" / "train.parquet")
    told = refused(tmp_path, capsys, job(tmp_path, rows))
    assert "answer" in told and "train" in told


def test_a_file_that_is_no_table(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows / "gsm8k" / "train.parquet").write_text("not a table")
    assert "train.parquet" in refused(tmp_path, capsys, job(tmp_path, rows))


def test_a_split_without_rows(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows / "gsm8k" / "train.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    told = refused(tmp_path, capsys, job(tmp_path, rows))
    assert "gsm8k, split train" in told and "has no rows" in told


def test_a_model_that_is_not_there(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(tmp_path, capsys, job(tmp_path, rows), "--set", "student.model=./nowhere")
    assert "student.model" in told and "nowhere" in told


def test_a_tokenizer_that_cannot_end(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(assets.resolve("quickstart:student"), model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["eos_token"] = None
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    told = refused(tmp_path, capsys, job(tmp_path, rows), "--set", f"student.model={model}")
    assert "end-of-sequence" in told


def test_a_chat_template_that_changes_prompts(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only of the student: a teacher learns nothing behind its prompts."""
    model = tmp_path / "model"
    shutil.copytree(assets.resolve("quickstart:student"), model)
    thinking = tiny.CHAT_TEMPLATE.replace("|>\n{% endif", "|>\n<think>{% endif")
    (model / "chat_template.jinja").write_text(thinking)
    told = refused(tmp_path, capsys, job(tmp_path, rows), "--set", f"student.model={model}")
    assert "student.model" in told and "changes a prompt once it is answered" in told
    teacher = ["--set", f"teacher.model={model}"]
    assert main(["run", str(job(tmp_path, rows)), "--dry-run", *teacher]) == 0


def test_weights_that_are_cut_off_or_not_there(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(assets.resolve("quickstart:student"), model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    told = refused(tmp_path, capsys, job(tmp_path, rows), "--set", f"teacher.model={model}")
    assert "teacher.model" in told and "model.safetensors" in told
    weights.unlink()
    told = refused(tmp_path, capsys, job(tmp_path, rows), "--set", f"teacher.model={model}")
    assert "no weights" in told


def test_rows_and_models_are_complained_about_together(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows / "gsm8k" / "train.parquet").write_text("not a table")
    told = refused(tmp_path, capsys, job(tmp_path, rows), "--set", "teacher.model=./nowhere")
    assert "train.parquet" in told and "teacher.model" in told


def with_teacher(path: Path, teacher: str) -> Path:
    path.write_text(path.read_text().replace('{model: "quickstart:teacher"}', teacher))
    return path


def test_an_endpoint_without_its_key(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens there: planning asks nothing."""
    monkeypatch.delenv("MY_KEY", raising=False)
    endpoint = '{endpoint: {url: "http://127.0.0.1:9/v1", model: m, api_key_env: MY_KEY}}'
    path = with_teacher(job(tmp_path, rows), endpoint)
    told = refused(tmp_path, capsys, path, "--set", "student.model=./nowhere")
    assert "MY_KEY" in told and "student.model" in told
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    assert main(["plan", str(path)]) == 0
    assert "sk-very-secret" not in capsys.readouterr().out


def test_a_file_of_demonstrations(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    path = with_teacher(job(tmp_path, rows), f'{{demonstrations: {{path: "{answers}"}}}}')
    told = refused(tmp_path, capsys, path, "--set", "data.root=./elsewhere")
    assert "teacher.demonstrations.path" in told and "elsewhere" in told
    answers.write_text(json.dumps({"question": ROW["question"], "response": "4"}))
    assert "completion_column" in refused(tmp_path, capsys, path)
    column = "teacher.demonstrations.completion_column=response"
    assert main(["plan", str(path), "--set", column]) == 0
    assert "teacher/evaluation" not in capsys.readouterr().out


def test_unknown_commands_and_missing_arguments_exit_with_2() -> None:
    for arguments in (["fly"], ["run"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
