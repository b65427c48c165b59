"""Weights that are no numbers are never saved, and settings that make them are refused."""

import json
from pathlib import Path

import pytest

from sirt_ray.cli.main import main
from sirt_ray.quickstart import assets

ROWS = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(4)]
PAIRS = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " 9."} for r in ROWS]
SAME = [{**pair, "rejected": pair["chosen"]} for pair in PAIRS]


def train(folder: Path, kind: str, rows: list[dict[str, str]], **settings: object) -> int:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = "tune" if kind == "sft" else "refine"
    given = {"max_steps": 1, "validation_fraction": 0, "warmup_steps": 0, **settings}
    sets = [
        part for name, value in given.items() for part in ("--set", f"{section}.{name}={value}")
    ]
    where = ["--data", str(folder / "rows.jsonl"), "--out", str(folder / "out")]
    return main(
        ["train", kind, "--model", str(assets.resolve("quickstart:student")), *where, *sets]
    )


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 1e38}, "after optimizer step 1, the last one"),
        ({"learning_rate": 1e38, "weight_decay": 1e38}, "weights are not finite after"),
        ({"learning_rate": 1e38, "max_steps": 2}, "at optimizer step 2"),
    ],
)
def test_the_last_update_is_checked_as_the_others(
    tmp_path: Path,
    kind: str,
    settings: dict[str, object],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tmp_path, kind, ROWS if kind == "sft" else PAIRS, **settings) == 1
    said = capsys.readouterr().err
    assert words in said or "not saved" in said
    assert "Lower learning_rate" in said
    assert not list((tmp_path / "out").rglob("weights*.safetensors"))
    assert not (tmp_path / "out/student/config.json").exists()


@pytest.mark.parametrize("setting", ["learning_rate", "weight_decay", "epochs"])
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_settings_are_finite(
    tmp_path: Path, setting: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "sft", ROWS, **{setting: value}) == 2
    assert f"tune.{setting}" in (said := capsys.readouterr().err) and "finite number" in said


def test_the_gradient_may_have_no_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "sft", ROWS, max_grad_norm=".nan") == 2
    assert "tune.max_grad_norm" in capsys.readouterr().err
    assert train(tmp_path, "sft", ROWS, max_grad_norm=".inf") == 0


def test_pairs_of_one_text_are_a_warning_of_the_record(tmp_path: Path) -> None:
    assert train(tmp_path, "dpo", SAME) == 0
    counts = json.loads((tmp_path / "out/student/record.json").read_text())["counts"]
    (warning,) = counts["warnings"]
    assert (warning["name"], warning["step"]) == ("identical_pairs", 1)
    assert "Look at the columns chosen and rejected" in warning["message"]
