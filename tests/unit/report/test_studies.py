"""`sirt report` on a study's folder of small written trials, with numbers by hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fakes import Killed
from tests.helpers.written_runs import WrittenStages, write_run
from tests.unit.report.test_runs import refused, reported, sections

DATA = {"train": ["gsm8k", "multiarith"], "evaluate": ["piqa", "gsm8k", "multiarith"]}
REFERENCES = {
    "teacher": {"gsm8k": "11111111", "multiarith": "1111", "piqa": "1111"},
    "baseline": {"gsm8k": "00000000", "multiarith": "0000", "piqa": "0000"},
}
TUNED = (
    {"gsm8k": "11000000", "multiarith": "1100", "piqa": "1110"},
    {"gsm8k": "11110000", "multiarith": "1100", "piqa": "1100"},
)
OURS = (
    {"gsm8k": "11110000", "multiarith": "1110", "piqa": "1100"},
    {"gsm8k": "11111100", "multiarith": "1110", "piqa": "1000"},
)
TUNING: Mapping[str, Any] = {"method": "instruction_tuning", "refine": {"rounds": 0}}
REFINING: Mapping[str, Any] = {"method": "self_refine", "refine": {"rounds": 1}}
Cells = dict[str, tuple[dict[str, str], str]]
"""Name -> labels, state."""


def write_cell(folder: Path, seed: int, job: Mapping[str, Any], **stages: Any) -> Path:
    """`stages`: what WrittenStages takes, and `models` for the job's sections."""
    tests = REFERENCES | {"round_00": TUNED[seed], "round_01": OURS[seed]}
    models = stages.pop("models", {})
    written = WrittenStages(tests, **stages)
    return write_run(folder, written, **{"data": DATA, "seed": seed, **job, **models})


def write_states(folder: Path, cells: Cells, error: str | None = None) -> Path:
    axes: dict[str, list[str]] = {}
    for labels, _ in cells.values():
        for axis, label in labels.items():
            known = axes.setdefault(axis, [])
            known += [label] if label not in known else []
    told = {
        name: {"labels": labels, "state": state, "student": None, "error": error}
        for name, (labels, state) in cells.items()
    }
    folder.mkdir(exist_ok=True)
    written = {"study": folder.name, "axes": axes, "cells": told}
    (folder / "study.json").write_text(json.dumps(written))
    return folder


def cell(method: str, seed: int, state: str = "finished", **labels: str) -> Cells:
    name = "-".join([*labels.values(), method, f"seed{seed}"])
    return {name: ({**labels, "method": method, "seed": f"seed{seed}"}, state)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods under two seeds, all finished. Read it; write in a copy."""
    folder = tmp_path_factory.mktemp("studies") / "mine"
    cells: Cells = {}
    for seed in (0, 1):
        write_cell(folder / f"instruction_tuning-seed{seed}", seed, TUNING)
        write_cell(folder / f"self_refine-seed{seed}", seed, REFINING)
        cells |= cell("instruction_tuning", seed) | cell("self_refine", seed)
    return write_states(folder, cells)


def test_methods_are_pooled_over_seeds_and_compared_with_tuning(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = reported(capsys, study, "--format", "markdown")
    assert text.startswith("# Report of the study mine\n")
    assert "4 of 4 trials are finished (2 of method x 2 of seed)." in text
    found = sections(text)
    scores = found["Accuracy, % right ± standard error, CoT prompts"]
    assert scores["method"] == ["seeds", "gsm8k", "multiarith", "piqa", "mean"]
    assert "|  |  | in-domain | in-domain | out-domain | in-domain |" in text
    assert list(scores)[1:] == ["teacher", "baseline", "instruction_tuning", "self_refine"]
    assert scores["teacher"] == ["2", *["100.0 ± 0.0"] * 4]
    # Each seed's mean over tasks is 37.5 and 50.
    tuned = scores["instruction_tuning"]
    assert tuned == ["2", "37.5 ± 12.5", "50.0 ± 0.0", "62.5 ± 12.5", "43.8 ± 6.2"]
    points = found["Difference to instruction_tuning, points, CoT prompts"]
    assert list(points)[1:] == ["teacher", "baseline", "self_refine"]
    rise, fall = "+25.0 ± 0.0 [+25.0, +25.0]", "-25.0 ± 0.0 [-25.0, -25.0]"
    assert points["self_refine"] == ["2", rise, rise, fall, rise]
    plain = found["Accuracy, % right ± standard error, plain prompts"]
    assert plain["self_refine"] == ["2", *["0.0 ± 0.0"] * 4]
    prompts = [title.split(", ")[-1] for title in found]
    assert prompts[:4] == ["CoT prompts", "CoT prompts", "plain prompts", "plain prompts"]


def test_orderings_are_decided_by_their_intervals(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claims = sections(reported(capsys, study, "--format", "markdown"))[
        "Orderings that the paper claims"
    ]
    # 43.75 ± 12.706 * 6.25 has 0 in it.
    assert claims["baseline < instruction_tuning (4.1, Figures 2, 3)"] == [
        *("2", "undecided +43.8 [-35.7, +123.2]", "not claimed"),
    ]
    assert claims["instruction_tuning < self_refine (4.2, 4.3, Table 1)"] == [
        *("2", "reproduced +25.0 [+25.0, +25.0]", "not reproduced -25.0 [-25.0, -25.0]"),
    ]


def test_a_terminal_of_80_columns_shows_all_of_it(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = reported(capsys, study, "--format", "text")
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "43.8 ± 6.2" in text and "[+25.0, +25.0]" in text and "not reproduced" in text


def test_every_cell_that_is_not_finished_is_named_with_its_state(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(study, folder)
    shutil.rmtree(folder / "self_refine-seed1")
    with pytest.raises(Killed):
        write_cell(folder / "self_refine-seed1", 1, REFINING, kill_in="refine 1 from round_00")
    (folder / "spin-seed0").mkdir()
    (folder / "spin-seed0/config.yaml").write_text("name: [")
    cells = cell("instruction_tuning", 0) | cell("instruction_tuning", 1)
    cells |= cell("self_refine", 0) | cell("self_refine", 1, "missing")
    cells |= cell("star", 0, "failed") | cell("rft", 0, "failed") | cell("rft", 1, "missing")
    cells |= cell("spin", 0, "missing") | cell("spin", 1)
    write_states(folder, cells, error="it [diverged]\nat step 3")
    told = json.loads((folder / "study.json").read_text())
    told["cells"]["older"] = {"labels": {"method": "rft"}, "state": "finished", "error": None}
    (folder / "study.json").write_text(json.dumps(told))
    text = reported(capsys, folder, "--format", "markdown")
    assert "3 of 10 trials are finished" in text
    assert "\nFailed: star-seed0, rft-seed0: it [diverged]\n" in text
    assert "\nNot finished: self_refine-seed1: round_01/student, round_01/evaluation\n" in text
    assert "\nNot started: rft-seed1\n" in text
    assert "Unreadable: spin-seed0: " in text
    assert "Unreadable: spin-seed1: its folder is gone" in text
    assert "Of another grid than the study has now: older" in text
    found = sections(text)
    scores = found["Accuracy, % right ± standard error, CoT prompts"]
    # One seed: sqrt(0.5 * 0.5 / 8), and of the mean sqrt(17.7 ** 2 + 21.7 ** 2) / 2.
    assert scores["self_refine"][:2] == ["1 of 2", "50.0 ± 17.7"]
    assert scores["self_refine"][4] == "62.5 ± 14.0"
    assert scores["instruction_tuning"][1] == "37.5 ± 12.5"
    assert scores["rft"] == scores["spin"] == ["0 of 2", *"----"]
    points = found["Difference to instruction_tuning, points, CoT prompts"]["self_refine"]
    assert points[0] == "1 of 2"
    assert points[1].startswith("+25.0 [") and points[1].endswith("p 0.500")
    assert points[4].startswith("+25.0 [") and "p " not in points[4]
    assert "binomial" in text and "over seeds" in text


def test_without_the_method_to_compare_with_there_are_no_differences(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(study / "self_refine-seed0", folder / "self_refine-seed0")
    cells = cell("instruction_tuning", 0, "missing") | cell("self_refine", 0)
    text = reported(capsys, write_states(folder, cells), "--format", "markdown")
    assert "## Difference" not in text
    claims = sections(text)["Orderings that the paper claims"]
    tuned = "instruction_tuning < self_refine (4.2, 4.3, Table 1)"
    assert claims[tuned] == ["0", "not finished", "not finished"]
    assert claims["baseline < self_refine (4.2, 4.3, Table 1)"][1].startswith("reproduced +62.5")
    nothing = write_states(tmp_path / "nothing", cell("rft", 0, "missing"))
    text = reported(capsys, nothing, "--format", "markdown")
    assert "0 of 1 trials are finished" in text and "##" not in text


def test_each_student_has_separate_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cells = tmp_path / "mine", {}
    for student in ("small", "large"):
        for method, job in (("instruction_tuning", TUNING), ("self_refine", REFINING)):
            found = cell(method, 0, student=student)
            cells |= found
            models = {"student": {"model": f"{student}-model"}}
            write_cell(folder / next(iter(found)), 0, job, models=models)
    text = reported(capsys, write_states(folder, cells), "--format", "markdown")
    titles = [title for title in sections(text) if title.endswith("CoT prompts")]
    assert titles == [
        "student small: Accuracy, % right ± standard error, CoT prompts",
        "student small: Difference to instruction_tuning, points, CoT prompts",
        "student large: Accuracy, % right ± standard error, CoT prompts",
        "student large: Difference to instruction_tuning, points, CoT prompts",
    ]
    assert "Student small-model, teacher teacher." in text and "Student large-model" in text
    claims = [title for title in sections(text) if title.startswith("Ordering")]
    assert len(claims) == 3 and claims[2].endswith(": baseline < self_refine (4.2, 4.3, Table 1)")
    for title in claims:
        assert list(sections(text)[title])[-2:] == ["student small", "student large"]
    assert text.count("Undecided:") == text.count("by chance") == 1


def test_axes_are_known_by_what_they_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a study with little data: what is called training are the methods."""
    folder, cells = tmp_path / "mine", {}
    jobs = {"tuning": TUNING, "dpo": {**REFINING, "tune": {"skip": True}}, "both": REFINING}
    for run, seed in (("first", 0), ("second", 1)):
        for label, job in jobs.items():
            cells[f"{run}-{label}"] = ({"repeat": run, "training": label}, "finished")
            write_cell(folder / f"{run}-{label}", seed, job)
    found = sections(reported(capsys, write_states(folder, cells), "--format", "markdown"))
    scores = found["Accuracy, % right ± standard error, CoT prompts"]
    assert list(scores) == ["training", "teacher", "baseline", "tuning", "dpo", "both"]
    assert {cells[0] for label, cells in scores.items() if label != "training"} == {"2"}
    assert "Difference to tuning, points, CoT prompts" in found
    claims = found["Orderings that the paper claims"]
    assert claims["tuning < dpo (4.4, Figure 4)"][1].startswith("reproduced +25.0")
    assert claims["dpo < both (4.4, Figure 4)"][1].startswith("undecided +0.0")


def test_rows_that_are_trained_on_different_tasks_have_separate_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in cross self-refinement: all trials have one method."""
    folder, cells = tmp_path / "mine", {}
    for task in ("gsm8k", "multiarith"):
        cells[task] = ({"refined_on": task}, "finished")
        refine = {"refine": {"rounds": 1, "tasks": [task]}, "tune": {"tasks": ["gsm8k"]}}
        write_cell(folder / task, 0, {**REFINING, **refine})
    text = reported(capsys, write_states(folder, cells), "--format", "markdown")
    scores = sections(text)["Accuracy, % right ± standard error, CoT prompts"]
    assert "|  |  | in-domain | in-domain: * | out-domain | in-domain | out-domain |" in text
    assert scores["gsm8k"][2] == "75.0 ± 21.7" and scores["multiarith"][2] == "75.0 ± 21.7 *"
    # In-domain is only gsm8k, and both; out-domain are multiarith and piqa, and only piqa.
    assert [scores[task][4][:4] for task in cells] == ["50.0", "62.5"]
    assert [scores[task][5][:4] for task in cells] == ["62.5", "50.0"]
    assert scores["baseline"][4:] == ["-", "-"]
    assert "Difference to gsm8k, points, CoT prompts" in sections(text)


def test_folders_of_studies_that_cannot_be_reported(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = study / "self_refine-seed0"
    assert "reported by itself" in refused(capsys, run, study)
    assert "reported by itself" in refused(capsys, study, study)
    broken = tmp_path / "broken"
    broken.mkdir()
    for text in ("{", "[]", '{"study": "x", "axes": {}, "cells": {"a": {"labels": 3}}}'):
        (broken / "study.json").write_text(text)
        assert "study.json cannot be read as a study's record" in refused(capsys, broken)
    outside = {"../self_refine-seed0": ({"method": "x"}, "finished")}
    text = reported(capsys, write_states(tmp_path / "outside", outside), "--format", "text")
    assert "its name is not that of a folder" in text
