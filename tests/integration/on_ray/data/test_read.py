"""Questions through a real local Ray: order, selection, counts and errors."""

import gzip
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from ray.data import DataContext

from sirt_ray.artifacts import parquet
from sirt_ray.benchmarks.base import Hub
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.benchmarks.selection import text_key
from sirt_ray.config.data import DataConfig
from sirt_ray.errors import DataError
from sirt_ray.on_ray.data import read as on_ray_data
from sirt_ray.on_ray.data.read import check_rows_available, prepare_questions, rows_identity
from sirt_ray.types import Question
from tests.helpers.progress import RecordedProgress

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def config(**settings: Any) -> DataConfig:
    return DataConfig.model_validate({"num_validation": 10} | settings)


def questions(out: Path, name: str, split: str) -> list[Question]:
    return list(parquet.records(Question, out / name / f"{split}.parquet"))


def gsm_rows(count: int, first: int = 0) -> list[dict[str, str]]:
    return [
        {"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"}
        for n in range(first, first + count)
    ]


def json_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)


def test_rows_of_several_blocks_and_files_keep_their_order(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / "rows" / "gsm8k" / "train" / f"part-{number}.parquet"
        write_parquet(path, gsm_rows(200, first=200 * number))
    write_parquet(tmp_path / "rows" / "gsm8k" / "test.parquet", gsm_rows(30, first=5000))
    progress = RecordedProgress()
    settings = config(train=["gsm8k"], evaluate=["gsm8k"], root=str(tmp_path / "rows"))
    counts = prepare_questions(tmp_path / "out", settings, 0, progress)

    train = questions(tmp_path / "out", "gsm8k", "train")
    validation = questions(tmp_path / "out", "gsm8k", "validation")
    for question in (*train, *validation):
        position = int(question.id.removeprefix("gsm8k/train/"))
        assert question.text == f"What is {position} plus {position}?"
        assert question.reference == str(2 * position)
    positions = [int(question.id.rsplit("/", 1)[1]) for question in train]
    assert positions == sorted(positions)
    assert (len(train), len(validation)) == (590, 10)
    assert questions(tmp_path / "out", "gsm8k", "test")[29].id == "gsm8k/test/29"
    assert progress.stages == [("questions", 2, "splits")]
    assert [done for done, _ in progress.shown] == [1, 2]
    assert counts["gsm8k"]["training_rows"]["rows"] == 600
    file = tmp_path / "out" / "gsm8k" / "train.parquet"
    assert parquet.counts(file) == counts["gsm8k"]["train"]
    assert pq.read_schema(file).remove_metadata() == parquet.QUESTION
    json.dumps(counts)


def test_all_file_formats_give_the_same_questions(tmp_path: Path) -> None:
    rows = gsm_rows(40)
    suffixes = ("parquet", "jsonl", "json", "csv", "jsonl.gz")
    for suffix in suffixes:
        folder = tmp_path / suffix / "gsm8k"
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            file = folder / f"{split}.{suffix}"
            if suffix == "parquet":
                write_parquet(file, rows)
            elif suffix == "jsonl":
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            elif suffix == "jsonl.gz":
                file.write_bytes(gzip.compress(b"".join(map(json_line, rows))))
            elif suffix == "json":
                file.write_text(json.dumps(rows, indent=1))
            else:
                lines = ['"{question}","{answer}"'.format(**row) for row in rows]
                file.write_text("\n".join(["question,answer", *lines]))
    counts: dict[str, Mapping[str, Any]] = {}
    for suffix in suffixes:
        settings = config(train=["gsm8k"], evaluate=["gsm8k"], root=str(tmp_path / suffix))
        check_rows_available(settings)
        counts[suffix] = prepare_questions(
            tmp_path / "out" / suffix, settings, 3, RecordedProgress()
        )
    assert all(found == counts["parquet"] for found in counts.values())


def test_paper_protocol_on_real_rows(assets: Path, tmp_path: Path) -> None:
    settings = DataConfig(
        train=["commonsense_qa", "openbookqa"],
        evaluate=[name for name, known in REGISTRY.items() if isinstance(known.source, Hub)],
        root=str(assets / "data"),
        num_test=100,
    )
    check_rows_available(settings)
    counts = prepare_questions(tmp_path, settings, 1, RecordedProgress())
    for name, letters in (("commonsense_qa", "ABCDE"), ("openbookqa", "ABCD")):
        train = questions(tmp_path, name, "train")
        each = 4000 // len(letters)
        assert Counter(q.reference for q in train) == dict.fromkeys(letters, each)
        assert counts[name]["train"]["answers"] == dict.fromkeys(letters, each)
        held_out = questions(tmp_path, name, "validation")
        assert len(held_out) == 200
        assert not {text_key(q) for q in train} & {text_key(q) for q in held_out}
        of_rows = counts[name]["training_rows"]
        dropped = sum(n for reason, n in of_rows.items() if reason.startswith("dropped_"))
        assert of_rows["train"] + of_rows["validation"] + dropped == of_rows["rows"]
    assert len(settings.evaluate) == 8
    for name in settings.evaluate:
        assert len(questions(tmp_path, name, "test")) == 100
    assert not (tmp_path / "mmlu" / "train.parquet").exists()

    again = prepare_questions(tmp_path / "again", settings, 1, RecordedProgress())
    other = prepare_questions(tmp_path / "other", settings, 2, RecordedProgress())
    assert again == counts
    assert other["commonsense_qa"]["train"]["sha256"] != counts["commonsense_qa"]["train"]["sha256"]


def test_generated_tasks_need_no_files(tmp_path: Path) -> None:
    settings = config(
        train=["word_problems"],
        evaluate=["word_problems", "letter_choices_ood"],
        num_train=60,
        num_test=20,
        root=str(tmp_path),
    )
    check_rows_available(settings)
    first = prepare_questions(tmp_path / "a", settings, 0, RecordedProgress())
    other = prepare_questions(tmp_path / "b", settings, 1, RecordedProgress())
    for split, count in (("train", 60), ("validation", 10), ("test", 20)):
        assert len(questions(tmp_path / "a", "word_problems", split)) == count
    assert first["word_problems"]["train"]["sha256"] != other["word_problems"]["train"]["sha256"]
    assert first["word_problems"]["test"]["sha256"] == other["word_problems"]["test"]["sha256"]
    assert first["word_problems"]["training_rows"]["train_also_in_test"] == 0


def test_repeated_and_contaminated_rows_are_counted(tmp_path: Path) -> None:
    rows = gsm_rows(40)
    write_parquet(tmp_path / "gsm8k" / "train.parquet", [*rows, *rows[:7]])
    write_parquet(tmp_path / "gsm8k" / "test.parquet", rows[:20])
    settings = config(
        train=["gsm8k"], evaluate=["gsm8k"], root=str(tmp_path), num_validation=0, num_train=100
    )
    counts = prepare_questions(tmp_path / "out", settings, 0, RecordedProgress())["gsm8k"]
    assert counts["training_rows"]["dropped_duplicate"] == 7
    assert counts["training_rows"]["train_also_in_test"] == 20
    assert counts["training_rows"]["missing"] == 60
    assert counts["train"]["questions"] == 40
    seen = {"test_questions": 20, "same_text": 20, "overlapping": 20}
    assert counts["contamination"] == {"ngram": 13, **seen}


def test_problems_of_all_benchmarks_come_at_once(tmp_path: Path) -> None:
    bad = gsm_rows(12)
    for position in (3, 5):
        bad[position]["answer"] = "no mark"
    write_parquet(tmp_path / "gsm8k" / "train.parquet", bad)
    empty = pa.Table.from_pylist(
        [], schema=pa.schema({"question": pa.string(), "answer": pa.string()})
    )
    pq.write_table(empty, tmp_path / "gsm8k" / "test.parquet")
    write_parquet(
        tmp_path / "multiarith" / "test.parquet", [{"question": "How many?", "final_ans": "some"}]
    )
    settings = config(train=["gsm8k"], evaluate=["gsm8k", "multiarith"], root=str(tmp_path))
    with pytest.raises(DataError) as caught:
        prepare_questions(tmp_path / "out", settings, 0, RecordedProgress())
    message = str(caught.value)
    assert "gsm8k, split train" in message
    assert "2 of 12 rows" in message
    assert "row 3: 'answer' does not end in '#### <number>'" in message
    assert "row 5:" in message
    assert "gsm8k, split test" in message
    assert "there are no rows" in message
    assert "multiarith, split test" in message
    assert "row 0: the gold answer 'some' is not a number" in message
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").write_text('{"question": "x", "answer": "#### 1"}\n{oops')
    (tmp_path / "gsm8k" / "test").mkdir()
    write_parquet(tmp_path / "gsm8k" / "test" / "a.parquet", gsm_rows(3))
    write_parquet(tmp_path / "gsm8k" / "test" / "b.parquet", [{"question": "x", "answer": "y"}])
    settings = config(train=["gsm8k"], evaluate=["gsm8k"], root=str(tmp_path))
    with pytest.raises(DataError) as caught:
        prepare_questions(tmp_path / "out", settings, 0, RecordedProgress())
    said = str(caught.value)
    assert "train.jsonl): 1 of 2 rows cannot be used" in said
    assert "row 1 (train.jsonl:2): is no JSON (Expecting property name" in said
    assert "row 3 (b.parquet, row 1): 'answer' does not end" in said


def test_a_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    """As in a task of Ray Data, whose own words say nothing to a user."""
    write_parquet(tmp_path / "gsm8k" / "train.parquet", gsm_rows(500))
    content = bytearray((tmp_path / "gsm8k" / "train.parquet").read_bytes())
    content[40:400] = bytes(360)
    (tmp_path / "gsm8k" / "train.parquet").write_bytes(content)
    (tmp_path / "gsm8k" / "test.csv").write_text('question,answer\nx,#### 1\n"y,#### 2\n')
    settings = config(train=["gsm8k"], evaluate=["gsm8k"], root=str(tmp_path))
    with pytest.raises(DataError) as caught:
        prepare_questions(tmp_path / "out", settings, 0, RecordedProgress())
    said = str(caught.value)
    train, test = said.splitlines()
    assert train.startswith("gsm8k, split train: ")
    assert "train.parquet cannot be read as parquet: " in train
    assert "test.csv cannot be read as csv: the row that starts in line 3" in test


def test_error_of_ours_comes_out_of_rays_wrapping() -> None:
    def raise_data_error(batch: pa.Table) -> pa.Table:
        raise DataError("raised within a task")

    with (
        on_ray_data._quiet_and_in_order(),
        pytest.raises(Exception, match="raised within a task") as caught,
    ):
        ray.data.range(3).map_batches(raise_data_error, batch_format="pyarrow").take_all()
    benchmark, part = on_ray_data._wanted(config(train=["gsm8k"], evaluate=["gsm8k"]))[0]
    error = on_ray_data._read_error(caught.value, benchmark, part, "somewhere")
    assert type(error) is DataError
    assert str(error).startswith("raised within a task")


def test_callers_context_is_unchanged(tmp_path: Path) -> None:
    context = DataContext.get_current()
    settings = config(train=["word_problems"], evaluate=["word_problems"], num_train=5, num_test=5)
    prepare_questions(tmp_path, settings, 0, RecordedProgress())
    assert DataContext.get_current() is context
    assert context.execution_options.preserve_order is False


def test_check_needs_no_rows_read_and_lists_everything(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root: there is no folder"):
        check_rows_available(config(train=["gsm8k"], evaluate=["gsm8k"], root=str(tmp_path / "no")))
    write_parquet(tmp_path / "gsm8k" / "train.parquet", [{"question": "x"}])
    settings = config(train=["gsm8k", "piqa"], evaluate=["gsm8k"], root=str(tmp_path))
    with pytest.raises(DataError) as caught:
        check_rows_available(settings)
    message = str(caught.value)
    assert "gsm8k, split train" in message
    assert "has no column 'answer'" in message
    assert "piqa, split train: no rows in" in message
    assert "gsm8k, split test: no rows in" in message
    with pytest.raises(DataError, match="mmlu, split train: the benchmark has no training rows"):
        check_rows_available(config(train=["mmlu"], evaluate=["mmlu"]))
    with pytest.raises(DataError, match="'gsm9k', which is not a benchmark"):
        check_rows_available(config(train=["gsm9k"], evaluate=["gsm8k"]))


def test_identity_follows_the_rows_and_not_the_path(tmp_path: Path) -> None:
    identities = []
    for folder, count in (("a", 20), ("b", 20), ("c", 21)):
        write_parquet(tmp_path / folder / "gsm8k" / "train.parquet", gsm_rows(count))
        write_parquet(tmp_path / folder / "gsm8k" / "test.parquet", gsm_rows(5))
        root = str(tmp_path / folder)
        identities.append(
            dict(rows_identity(config(train=["gsm8k"], evaluate=["gsm8k"], root=root)))
        )
    assert identities[0] == identities[1]
    assert identities[0]["gsm8k/train"] != identities[2]["gsm8k/train"]
    assert identities[0]["gsm8k/test"] == identities[2]["gsm8k/test"]
    hub = rows_identity(config(train=["gsm8k"], evaluate=["letter_choices"]))
    assert hub["gsm8k/train"].startswith("v1:hub:openai/gsm8k@740312a")
    assert hub["letter_choices/test"] == "v1:generated"


def test_hub_that_cannot_be_reached_is_an_error_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: Any, **settings: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    settings = config(train=["gsm8k"], evaluate=["piqa"])
    check_rows_available(settings)
    with pytest.raises(DataError) as caught:
        prepare_questions(tmp_path, settings, 0, RecordedProgress())
    assert "gsm8k, split train: openai/gsm8k at 740312a" in str(caught.value)
    assert "piqa, split test: ybisk/piqa" in str(caught.value)
    assert "set data.root to a folder with piqa/validation.parquet" in str(caught.value)


def test_hub_rows_are_read_at_the_pinned_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    requests: list[tuple[Any, ...]] = []

    def from_hub(name: str, *configs: str | None, split: str, **settings: Any) -> Any:
        requests.append((name, configs, split, settings))
        return datasets.Dataset.from_list([row | {"more": 1} for row in gsm_rows(30)])

    monkeypatch.setattr("datasets.load_dataset", from_hub)
    settings = config(train=["gsm8k"], evaluate=["gsm8k"])
    prepare_questions(tmp_path, settings, 0, RecordedProgress())
    revision = {"revision": "740312add88f781978c0658806c59bc2815b9866"}
    assert requests == [
        ("openai/gsm8k", ("main",), "train", revision),
        ("openai/gsm8k", ("main",), "test", revision),
    ]
    assert len(questions(tmp_path, "gsm8k", "test")) == 30
