"""Training in one process on the user's rows; the command line, in this process."""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from sirt_ray.artifacts import parquet
from sirt_ray.cli.main import main
from sirt_ray.core.encoding import encode_prompt
from sirt_ray.errors import DataError
from sirt_ray.training import external_data
from sirt_ray.training.workdir import read_lines
from sirt_ray.types import PreferencePair
from tests.helpers import tiny

QUICK = ("--set", "resources.gpus_per_worker=0")
TUNE = (*QUICK, "--set", "tune.learning_rate=3e-3", "--set", "tune.max_steps=6")
REFINE = (*QUICK, "--set", "refine.learning_rate=1e-3", "--set", "refine.warmup_steps=0")


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.save_student(tmp_path / "base")


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(20)]
    return lines(tmp_path / "answers.jsonl", rows)


def train(kind: str, base: Path, data: Path, out: Path, *more: str) -> int:
    return main(
        ["train", kind, "--model", str(base), "--data", str(data), "--out", str(out), *more]
    )


def test_tuning_on_external_rows_is_done_once(
    tmp_path: Path, base: Path, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train("sft", base, answers, out, *TUNE) == 0
    assert f"The student is {out / 'student'}" in capsys.readouterr().out
    AutoModelForCausalLM.from_pretrained(out / "student")
    counts = json.loads((out / "student" / "record.json").read_text())["counts"]
    assert counts["examples"] + counts["held_out"] == 20 and counts["steps"] == 4
    metrics = read_lines(out / "student" / "metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    made = (out / "student" / "model.safetensors").stat().st_mtime_ns
    assert train("sft", base, answers, out, *TUNE) == 0
    assert (out / "student" / "model.safetensors").stat().st_mtime_ns == made
    assert train("sft", base, answers, out, *TUNE, "--seed", "1") == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err


def test_refinement_of_a_runs_pairs_starts_at_ln_2(tmp_path: Path, base: Path) -> None:
    pairs = tiny.write_pairs(tmp_path / "pairs", range(8))
    assert train("dpo", base, pairs, tmp_path / "out", *REFINE) == 0
    (first, *_) = read_lines(tmp_path / "out" / "student" / "metrics.jsonl")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "tune.learning_rat=1"], "tune.learning_rat: no such setting"),
        (["--set", "resources.num_workers=2"], "resources.num_workers: set, but without effect"),
        (["--set", "tune.lora.quantize=nf4"], "a GPU for every training worker"),
        (["--data", "nowhere.jsonl"], "no file or folder nowhere.jsonl"),
    ],
)
def test_nothing_is_started_that_cannot_work(
    tmp_path: Path,
    base: Path,
    answers: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: str,
) -> None:
    assert train("sft", base, answers, tmp_path / "out", *QUICK, *more) != 0
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dpo", "--model", "m"]) == 2
    said = capsys.readouterr().err
    assert "data: is required" in said and "out: is required" in said


def test_settings_come_from_a_file_and_then_from_the_command_line(
    tmp_path: Path, base: Path, answers: Path
) -> None:
    asked = {"model": str(base), "data": str(answers), "out": "elsewhere", "tune": {"max_steps": 9}}
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(asked))
    out = tmp_path / "out"
    assert (
        main(["train", "sft", str(file), "--out", str(out), *QUICK, "--set", "tune.max_steps=1"])
        == 0
    )
    assert len(read_lines(out / "student" / "metrics.jsonl")) == 1


def test_external_pairs_are_encoded_as_written(tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    rows = [{"prompt": "2+2=", "chosen": "4", "rejected": " 5"}] * 2
    assert external_data.encode(lines(tmp_path / "p.jsonl", rows), "dpo", tokenizer, tmp_path) == {
        "rows": 2
    }
    one, two = parquet.records(PreferencePair, tmp_path / "dpo.parquet")

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    assert one.prompt_ids == (tokenizer.bos_token_id, *ids("2+2="))
    assert one.chosen.completion.completion_ids == (*ids("4"), tokenizer.eos_token_id)
    assert one.rejected is not None
    assert one.rejected.completion.completion_ids == (*ids(" 5"), tokenizer.eos_token_id)
    assert one.question_id == two.question_id
    assert external_data.is_from_run(tmp_path / "dpo.parquet", "dpo")
    assert not external_data.is_from_run(tmp_path / "dpo.parquet", "sft")


def test_an_external_prompt_is_a_users_message_if_there_is_a_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}<{{ messages[0]['content'] }}>"
    source = lines(tmp_path / "s.jsonl", [{"prompt": "2+2=", "completion": "4"}])
    external_data.encode(source, "sft", tokenizer, tmp_path)
    (row,) = parquet.read(tmp_path / "sft.parquet")
    assert tokenizer.decode(row["prompt_ids"]) == "<s><2+2=>"
    assert encode_prompt(tiny.question(1), "plain", tokenizer)[0].startswith("<s><")


SFT = [{"prompt": f"{n}+{n}=", "completion": f"0{n}"} for n in range(3)]


def encoded(source: Path, out: Path) -> list[tuple[str, str]]:
    external_data.encode(source, "sft", tiny.byte_tokenizer(), out)
    return [(row["prompt"], row["completion"]) for row in parquet.read(out / "sft.parquet")]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "ü [1]?"]
)
def test_external_rows_are_read_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    separator = "\t" if name == "a.tsv" else ","
    table = "\n".join(separator.join(row) for row in (SFT[0], *(row.values() for row in SFT)))
    by_line = "\n\n".join(map(json.dumps, SFT))
    text = {".json": json.dumps(SFT, indent=1), ".csv": table, ".tsv": table}.get(
        Path(name).suffix, by_line
    )
    source = tmp_path / name
    if source.suffix == ".gz":
        source.write_bytes(gzip.compress(text.encode()))
    elif source.suffix:
        source.write_text(text, encoding="utf-8-sig")
    else:
        source.mkdir()
        pq.write_table(pa.Table.from_pylist(SFT), source / "b.parquet")
        (source / "notes.json").write_text("{}")
    assert not external_data.is_from_run(source, "sft")
    assert encoded(source, tmp_path / "out") == [(row["prompt"], row["completion"]) for row in SFT]


def test_a_saved_data_set_is_external_rows(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(SFT).save_to_disk(tmp_path / "saved", num_shards=2)
    assert encoded(tmp_path / "saved", tmp_path) == [(r["prompt"], r["completion"]) for r in SFT]


def test_chats_of_one_message_are_external_rows(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "2+2="}],
        "completion": [{"role": "assistant", "content": "4"}],
    }
    assert encoded(lines(tmp_path / "a.jsonl", [row]), tmp_path) == [("2+2=", "4")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": " \\ud83d 3"}',
            "row 1: 'completion' has '\\ud83d'",
        ),
        ("a.jsonl", b'\n{"prompt": "caf\xe9", "completion": "b"}', "row 1 (line 2): is not UTF-8"),
        ("a.jsonl", b'{"prompt": "a", "completion"', "line 1 is no JSON"),
        ("a.csv", b"prompt,completion\na,b\nc\n", "row 2 (line 3): has 1 cells"),
        ("a.parquet", b"PAR1xxxx", "a.parquet cannot be read as parquet: Parquet magic bytes"),
        ("a.pq", b"PAR1xxxx", "a.pq cannot be read: Parquet magic bytes"),
        ("a.txt", b"{}", "a.txt is none of .parquet, .jsonl"),
        ("a.json", b'[{"prompt": [{"role": "system", "content": ""}]}]', "is a chat of system"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_an_error_of_its_row(
    tmp_path: Path,
    base: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    said: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    assert train("sft", base, tmp_path / name, tmp_path / "out", *TUNE) == 2
    told = capsys.readouterr().err
    assert said in told and str(tmp_path / name) in told and "is a bug" not in told


def test_data_and_out_may_be_in_the_home_folder(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lines(tmp_path / "a.jsonl", SFT)
    assert train("sft", base, Path("~/a.jsonl"), Path("~/out"), *TUNE) == 0
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()


def test_all_rows_that_cannot_be_used_are_named_at_once(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b"}, {"text": "c"}, 3]
    with pytest.raises(DataError) as caught:
        external_data.encode(
            lines(tmp_path / "s.jsonl", rows), "sft", tiny.byte_tokenizer(), tmp_path
        )
    said = str(caught.value)
    assert "row 1: completion must be text" in said and "row 2" not in said
    assert "row 3: prompt and completion must be" in said and "row 4" in said
    with pytest.raises(DataError, match="there is no row in it"):
        external_data.encode(
            lines(tmp_path / "e.jsonl", []), "sft", tiny.byte_tokenizer(), tmp_path
        )
