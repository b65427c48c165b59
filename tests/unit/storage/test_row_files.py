"""Files of rows: what is written in them is what is read, and what cannot be read is named."""

import bz2
import csv
import gzip
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies

from sirt_ray.errors import DataError
from sirt_ray.storage import row_files

TEXTS = ["007", "1.50", "18:30", "true", "NA", "2024-05-17", "null", "1e3", " a ", "ü", "½\u2028"]
ROWS = [{"question": f"{number}?", "answer": text} for number, text in enumerate(TEXTS)]
BOM = b"\xef\xbb\xbf"


def read(path: Path) -> list[Mapping[str, Any]]:
    found = list(row_files.read(path))
    assert [row.number for row in found] == list(range(1, len(found) + 1))
    assert not any(row.problem for row in found)
    return [row.values for row in found]


def separated(rows: list[dict[str, str]], delimiter: str) -> bytes:
    lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
    return "\r\n".join(lines).encode()


def lines(rows: list[dict[str, str]]) -> bytes:
    return b"\n\n".join(json.dumps(row).encode() for row in rows)


def listed(rows: list[dict[str, str]]) -> bytes:
    return json.dumps(rows, indent=2, ensure_ascii=False).encode()


WRITTEN: dict[str, bytes] = {
    "rows.jsonl": lines(ROWS),
    "rows.ndjson": lines(ROWS),
    "rows.json": listed(ROWS),
    "list in lines.jsonl": listed(ROWS),
    "one line.json": json.dumps(ROWS).encode(),
    "data.json": b'{"version": 2, "data": ' + listed(ROWS) + b"}",
    "data.jsonl": b'{"rows": ' + json.dumps(ROWS).encode() + b"}",
    "over several lines.json": b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "two in a line.jsonl": b" ".join(json.dumps(row).encode() for row in ROWS),
    "rows.csv": separated(ROWS, ","),
    "rows.tsv": separated(ROWS, "\t"),
    "blank lines.csv": separated(ROWS, ",").replace(b"\r\n", b"\n\n  \n"),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("before", [b"", BOM], ids=["", "BOM"])
def test_texts_are_read_as_written(tmp_path: Path, name: str, before: bytes) -> None:
    (tmp_path / name).write_bytes(before + WRITTEN[name])
    assert read(tmp_path / name) == ROWS
    assert row_files.columns(tmp_path / name) == ["question", "answer"]


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".GZ", lambda text: gzip.compress(text[:9]) + gzip.compress(text[9:])),
        (".bz2", bz2.compress),
        (".zst", lambda text: pa.compress(text, "zstd", asbytes=True)),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.JSON", "rows.Csv"])
def test_and_as_compressed(
    tmp_path: Path, name: str, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / (name + ending)
    path.write_bytes(compress(WRITTEN[name.lower()]))
    assert read(path) == ROWS
    assert row_files.stem(path) == "rows" and row_files.kind(path) == Path(name.lower()).suffix


@pytest.mark.parametrize("place", ["[a]", "what?", "*", "ü b", "~", "a:b%20", "{c}"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.arrow"])
def test_any_character_in_a_path_is_itself(tmp_path: Path, place: str, name: str) -> None:
    path = tmp_path / place / name
    path.parent.mkdir()
    write_typed(path, pa.table({"a": [1]})) if name in TYPED else path.write_bytes(WRITTEN[name])
    assert len(read(path)) == (1 if name in TYPED else len(ROWS))


TYPED = ("rows.parquet", "rows.arrow", "stream.arrow", "rows.FEATHER")


def write_typed(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("name", TYPED)
def test_typed_columns(tmp_path: Path, name: str) -> None:
    small = pa.float32()
    table = pa.table(
        {
            "text": ["007", None, "x"],
            "number": [1, 2, None],
            "single": pa.array([0.1, None, 1e30], small),
            "half": pa.array([0.1, 2.0, None], pa.float16()),
            "options": pa.array([[0.1, 0.2], [], None], pa.list_(small)),
            "record": pa.array([{"a": [0.7]}, None, {}], pa.struct({"a": pa.list_(small)})),
        }
    )
    write_typed(tmp_path / name, table)
    assert read(tmp_path / name) == [
        {
            "text": "007",
            "number": 1,
            "single": 0.1,
            "half": 0.1,
            "options": [0.1, 0.2],
            "record": {"a": [0.7]},
        },
        {
            "text": None,
            "number": 2,
            "single": None,
            "half": 2.0,
            "options": [],
            "record": None,
        },
        {
            "text": "x",
            "number": None,
            "single": 1e30,
            "half": None,
            "options": None,
            "record": {},
        },
    ]
    (first, *_) = row_files.read(tmp_path / name, only=["text", "single"])
    assert first.values == {"text": "007", "single": 0.1}


@pytest.mark.parametrize("name", TYPED)
def test_records_of_typed_columns_have_their_own_fields(tmp_path: Path, name: str) -> None:
    records = [{"A": "x", "B": "y"}, {"A": "x", "B": None, "C": "z"}, {}, None]
    write_typed(tmp_path / name, pa.table({"a": records, "b": [[record] for record in records]}))
    assert read(tmp_path / name) == [{"a": record, "b": [record]} for record in records]


def test_a_column_may_have_numbers_and_texts(tmp_path: Path) -> None:
    rows = [{"answer": 7}, {"answer": "1/2"}, {"answer": 3.5}, {"answer": [None]}, {"other": {}}]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    assert read(path) == rows


def test_a_field_may_have_any_length(tmp_path: Path) -> None:
    text = 'word, "' * 300_000
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\n"' + text.replace('"', '""') + '\n",4\n')
    assert read(path) == [{"question": f"{text}\n", "answer": "4"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": text}))
    assert read(path) == [{"question": text}]


@pytest.mark.parametrize("row", [b'{"a": 1}', b'{"messages": [{"role": "user"}]}'])
def test_a_large_file_is_not_held_in_memory(tmp_path: Path, row: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes((row + b"\n") * 100 + b"\xff\n")
    found = row_files.read(path)
    assert next(found).values == json.loads(row)  # The end has not been read.
    assert list(found)[-1].problem


PROBLEMS = [
    ("cut.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": ', 3, r"row 3 .*no JSON \(.*cut off"),
    ("no.jsonl", b'{"a": 1}\n\nhello\n{"a": 2}', 2, r"row 2 \(line 3\) is no JSON \(Expecting"),
    ("list.jsonl", b'{"a": 1}\n[1]', 2, r"row 2 is \[1\] and not a record"),
    ("list.json", b'[{"a": 1}, 5]', 2, r"row 2 is 5 and not a record"),
    ("deep.jsonl", b'{"a": 1}\n' + b"[" * 100_000, 2, r"row 2 is no JSON"),
    ("digits.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}", 2, r"row 2 is no JSON"),
    ("twice.jsonl", b'{"a": 1}\n{"b": {"a": 1, "a": 2}}', 2, r"row 2 has the key 'a' twice"),
    ("latin1.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}', 2, r"row 2 is not UTF-8"),
    ("latin1.csv", b"a,b\nx,y\nx,caf\xe9\n", 2, r"row 2 \(line 3\) is not UTF-8 in column 'b'"),
    ("short.csv", b'a,b\n"x\ny",y\nb\n', 2, r"row 2 \(line 4\) has 1 cells, and the header has 2"),
    ("long.tsv", b"a\tb\n\nx\ty\tz\n", 1, r"row 1 \(line 3\) has 3 cells"),
]


@pytest.mark.parametrize(("name", "content", "number", "said"), PROBLEMS)
def test_a_row_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, number: int, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    bad = [row for row in row_files.read(path) if row.problem]
    assert [row.number for row in bad] == [number]
    (told,) = [f"{row.where} {row.problem}" for row in bad]
    assert re.search(said, told), told


WHOLE = [
    ("rows.parquet", b"PAR1xxxx", "Parquet magic bytes not found"),
    ("rows.parquet", b"", "size is 0 bytes|is smaller"),
    ("rows.arrow", b"ARROW1", "."),
    ("rows.jsonl.gz", gzip.compress(b'{"a": "b"}' * 999, mtime=0)[:-12], "[Tt]runcated"),
    ("rows.csv.gz", b"a,b\n", "header"),
    ("rows.json", b'[{"a": 1},\n {"a": 2}', "line 2 is no JSON .*cut off"),
    ("rows.json", b'{\n "a": 1,\n "b"\n}', "line 4 is no JSON"),
    ("rows.json", b'[{"a": 1,\n "a": 2}]', "the key 'a' twice"),
    ("rows.json", b'[\n"caf\xe9"]', "line 2 is not UTF-8"),
    ("rows.json", b"\xff\xfe[\x00]\x00", "UTF-8"),
    ("rows.csv", b'a,b\nx,y\n"x,y\n1,2\n', "starts in line 3: unexpected end of data"),
    ("rows.csv", b'a,b\n"x" y,z\n', "starts in line 2: .*Check its quotes"),
    ("rows.csv", b"a,b,a\n1,2,3\n", "the column 'a' twice"),
    ("rows.csv", b"\xff\xfea\x00,\x00", "the header is not UTF-8"),
    ("rows.txt", b"a", "is none of .parquet, .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "said"), WHOLE)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    def read_all() -> None:
        for row in row_files.read(path):
            if row.problem:
                raise DataError(f"{path} {row.problem}")

    with pytest.raises(DataError, match=said) as caught:
        read_all()
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_text_that_is_not_utf_8_in_typed_columns(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"caf\xe9", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"a": texts}), tmp_path / "rows.parquet")
    found = list(row_files.read(tmp_path / "rows.parquet"))
    assert [row.problem != "" for row in found] == [False, True, False]
    assert found[2].values == {"a": "c"}


def test_a_saved_data_set_is_read_in_its_order(tmp_path: Path) -> None:
    """As `datasets` writes one; the library itself is no part of unit tests."""
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name in names:
        with pa.ipc.new_stream(str(tmp_path / name), pa.schema({"a": pa.string()})) as writer:
            writer.write_table(pa.table({"a": [name]}))
    (tmp_path / "dataset_info.json").write_text('{\n  "citation": ""\n}')
    state = {"_data_files": [{"filename": name} for name in reversed(names)], "_fingerprint": "x"}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert [path.name for path in row_files.files(tmp_path)] == names[::-1]
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state\.json does not name the files"):
        row_files.files(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DataError, match="several splits"):
        row_files.files(tmp_path)


def test_a_folder_has_files_of_one_kind(tmp_path: Path) -> None:
    for name in ("b.jsonl.gz", "a.JSONL", "notes.txt", "._a.csv"):
        (tmp_path / name).touch()
    assert [path.name for path in row_files.files(tmp_path)] == ["a.JSONL", "b.jsonl.gz"]
    (tmp_path / "c.csv").touch()
    with pytest.raises(DataError, match=r"several kinds \(\.csv, \.jsonl\)"):
        row_files.files(tmp_path)


TEXT = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=40, deadline=None)
@given(strategies.lists(strategies.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1))
def test_any_text_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "rows.jsonl").write_bytes(lines(rows))
    (folder / "rows.json").write_bytes(listed(rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    for path in row_files.files(folder / "rows.csv") + sorted(folder.glob("rows.[jp]*")):
        assert read(path) == rows, path
