"""Earlier names of settings and flags work, with a note."""

import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from sirt_ray.cli.main import _parser
from sirt_ray.config import load as jobfile
from sirt_ray.config import renamed, study
from sirt_ray.config.job import JobConfig
from sirt_ray.config.training import RefineConfig, TuneConfig
from sirt_ray.errors import ConfigError

JOB = """\
name: mine
data: {train: [gsm8k], evaluate: [gsm8k]}
teacher: {model: big}
student: {model: small}
tune:
  choose: last
refine:
  loss: kto
  choose: accuracy
  even_rounds: {choose: last}
"""
STUDY = """\
study: two
job:
  data: {train: [gsm8k], evaluate: [gsm8k]}
  teacher: {model: big}
  student: {model: small}
  tune: {select_by: best}
grid:
  tune.choose: [last]
"""


@pytest.fixture(autouse=True)
def _noted_nothing_yet() -> None:
    renamed.note_renamed.cache_clear()


def load(path: Path, text: str = JOB, *overrides: str) -> JobConfig:
    path.write_text(text)
    return jobfile.load(path, overrides, {"gsm8k"})


def test_an_earlier_name_is_the_setting_and_is_noted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "job.yaml"
    with caplog.at_level(logging.WARNING, "sirt_ray"):
        job = load(path)
        load(path)
    assert (job.tune.select_by, job.refine.select_by) == ("last", "accuracy")
    assert (job.refine.of_round(1).select_by, job.refine.of_round(2).select_by) == (
        "accuracy",
        "last",
    )
    notes = [record.getMessage() for record in caplog.records]
    assert notes == [
        f"{path}:6: tune.choose is now called select_by; the earlier name still works",
        f"{path}:9: refine.choose is now called select_by; the earlier name still works",
        f"{path}:10: refine.even_rounds.choose is now called select_by; the earlier name still"
        " works",
    ]


def test_the_config_of_an_earlier_run_is_read_without_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "sirt_ray"):
        assert load(tmp_path / "config.yaml").tune.select_by == "last"
    assert not caplog.records


@pytest.mark.parametrize(
    ("written", "override"),
    [("choose", "select_by"), ("select_by", "choose"), ("choose", "choose")],
)
def test_an_override_wins_by_either_name(tmp_path: Path, written: str, override: str) -> None:
    text = JOB.replace("choose: last", f"{written}: last", 1)
    job = load(tmp_path / "job.yaml", text, f"tune.{override}=best")
    assert job.tune.select_by == "best"
    assert load(tmp_path / "job.yaml", text, "tune={choose: best}").tune.select_by == "best"


def test_a_base_file_and_an_axis_may_have_the_earlier_name(tmp_path: Path) -> None:
    load(tmp_path / "base.yaml")
    job = load(tmp_path / "job.yaml", "base: base.yaml\ntune: {select_by: best}\n")
    assert job.tune.select_by == "best"

    (tmp_path / "study.yaml").write_text(STUDY)
    (cell,) = study.load(tmp_path / "study.yaml", [], {"gsm8k"}).trials
    assert (cell.name, cell.job.tune.select_by) == ("chooselast", "last")


def test_both_names_in_one_section_are_refused(tmp_path: Path) -> None:
    text = JOB.replace("  choose: last", "  choose: last\n  select_by: best", 1)
    with pytest.raises(ConfigError, match=r"both are set\. Remove choose"):
        load(tmp_path / "job.yaml", text)


def test_a_problem_has_the_line_of_the_earlier_name(tmp_path: Path) -> None:
    text = JOB.replace("choose: last", "choose: lats", 1)
    with pytest.raises(ConfigError, match=r"job\.yaml:6: tune\.select_by: "):
        load(tmp_path / "job.yaml", text)


def test_python_may_use_the_earlier_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sirt_ray"):
        assert TuneConfig.model_validate({"choose": "last"}).select_by == "last"
    assert "TuneConfig: choose is now called select_by" in caplog.text
    with pytest.raises(ValidationError, match="both are set"):
        RefineConfig.model_validate({"choose": "last", "select_by": "best"})


@pytest.mark.parametrize(
    "command",
    [
        ["run", "job.yaml"],
        ["submit", "job.yaml"],
        ["evaluate", "model", "--benchmarks", "gsm8k"],
        ["train", "sft"],
    ],
)
def test_redo_is_an_earlier_name_of_force(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = _parser()
    assert not parser.parse_args(command).force
    assert parser.parse_args([*command, "--force"]).force
    assert capsys.readouterr().err == ""
    assert parser.parse_args([*command, "--redo"]).force
    assert capsys.readouterr().err == "--redo is now called --force; the earlier name still works\n"
