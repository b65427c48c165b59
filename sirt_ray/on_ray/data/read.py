"""Benchmark rows -> the questions of a run, through Ray Data.

    hub | local files | generator | the user's function
        ->  Ray Data blocks  ->  to_question in tasks  ->  Parquet

Blocks are read and converted in parallel and come back in order, so a question's id is the position
of its row whatever the number of blocks. The errors of all benchmarks are raised together.
"""

import hashlib
import itertools
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray.data
from ray.data import DataContext, Dataset
from ray.exceptions import RayError

from sirt_ray.artifacts import parquet
from sirt_ray.benchmarks import files, rows
from sirt_ray.benchmarks.base import Benchmark, CustomSource, Generated, Hub, Part
from sirt_ray.benchmarks.custom import counted, made_rows, no_rows_message
from sirt_ray.benchmarks.registry import benchmarks_of
from sirt_ray.config.data import DataConfig
from sirt_ray.core.interfaces import Counts, Progress
from sirt_ray.errors import DataError, SirtError
from sirt_ray.logs import waiting
from sirt_ray.on_ray.cluster import describe_pending
from sirt_ray.on_ray.data.hub import download
from sirt_ray.on_ray.data.splits import write_splits
from sirt_ray.quickstart import tasks
from sirt_ray.storage import row_files
from sirt_ray.storage.row_files import FileRow
from sirt_ray.storage.uri import user_path
from sirt_ray.types import Question, Split

_ROWS_PER_BLOCK = 1000
"""For rows that the driver passes to Ray Data. Files are cut into blocks by Ray Data itself."""
_TEST_SEED = 2405
"""Seed of a generator's test questions. It is the same for every job, so that runs with different
seeds can be compared. To choose settings, `quickstart/tasks.py` has a validation split."""

_FAILED = pa.field("failed", pa.string())
"""Why a block could not be read, if it could not. It is no error of the task, since Ray adds words
of its own to those."""
_CONVERTED = pa.schema(
    [*parquet.QUESTION, pa.field("label", pa.string()), pa.field("reason", pa.string()), _FAILED]
)
_POSITIONS = pa.schema([pa.field("number", pa.int32()), pa.field("options", pa.int32()), _FAILED])
_MOST_TASKS = 256
"""Tasks that read files; where there are more files, a task reads several."""


@dataclass(frozen=True, slots=True)
class _Source:
    """The rows of a split as blocks of Ray Data."""

    dataset: Dataset
    rows_of: Callable[[pa.Table], Iterator[tuple[FileRow, str]]]
    """(block) -> its rows, each with its location in a file, or with nothing. Raises DataError."""
    where: str
    """Where the rows come from, for messages."""


def prepare_questions(out: Path, data: DataConfig, seed: int, progress: Progress) -> Counts:
    """Write `out/<benchmark>/<train|validation|test>.parquet` and return the counts of used and
    dropped rows, by benchmark and reason.

    `train` and `validation` come from the training rows of the benchmarks in `data.train`
    (selected as in `benchmarks/selection.py`), `test` from the test rows of those in
    `data.evaluate`.

    Ray must be running. Raises one DataError for all rows of all benchmarks that cannot be used.
    """
    wanted = _wanted(data)
    converted: dict[tuple[str, Part], list[Question]] = {}
    problems: list[str] = []
    with progress.stage("questions", len(wanted), "splits") as bar, _quiet_and_in_order():
        for done, (benchmark, part) in enumerate(wanted, start=1):
            try:
                converted[benchmark.name, part] = _questions(benchmark, part, data, seed)
            except DataError as error:
                problems.append(str(error))
            bar.update(done, benchmark=benchmark.name)
    rows.raise_all(problems)
    return write_splits(out, data, seed, converted)


def read_questions(folder: Path, names: Iterable[str], split: Split) -> list[Question]:
    """Read the questions of one split that `prepare_questions` has written to `folder`, for all
    benchmarks in `names` that have the split."""
    paths = [folder / name / f"{split}.parquet" for name in names]
    return [
        parquet.from_row(Question, row)
        for path in paths
        if path.exists()
        for row in parquet.rows(path)
    ]


def check_rows_available(data: DataConfig) -> None:
    """Check without Ray that the local files of a job's rows exist, are readable and have the
    columns, without reading the rows. Raises one DataError for all problems. Rows of the hub are
    not checked."""
    problems: list[str] = []
    root = _root(data)
    if root is not None and not root.is_dir():
        raise DataError(
            f"data.root: there is no folder {root}. Correct the path, or leave data.root out to"
            " load the rows from the hub"
        )
    for benchmark, part in _wanted(data):
        try:
            for path in _local_files(root, benchmark, part):
                files.check(path, benchmark, part)
        except DataError as error:
            problems.append(str(error))
    rows.raise_all(problems)


def rows_identity(data: DataConfig) -> Mapping[str, str]:
    """Return the identity of a job's rows, independent of their path: `<benchmark>/<part>` -> the
    hash of local files, the revision on the hub, or `generated`. The benchmark's version is part of
    it, since it changes the meaning of a row. The strings are hashed into fingerprints."""
    return {
        f"{benchmark.name}/{part}": f"v{benchmark.version}:{_identity(benchmark, part, data)}"
        for benchmark, part in _wanted(data)
    }


def _identity(benchmark: Benchmark, part: Part, data: DataConfig) -> str:
    if isinstance(benchmark.source, CustomSource):
        code = json.dumps(benchmark.source.identity, sort_keys=True)
        return f"own:{code}:{_identity_of_rows(benchmark, part, data)}"
    return _identity_of_rows(benchmark, part, data)


def _identity_of_rows(benchmark: Benchmark, part: Part, data: DataConfig) -> str:
    local = _local_files(_root(data), benchmark, part)
    if local:
        digest = hashlib.sha256()
        for path in local:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"
    if isinstance(benchmark.source, Hub):
        source = benchmark.source
        configs = "+".join(source.configs) or "default"
        return f"hub:{source.dataset}@{source.revision}:{configs}:{benchmark.split_names(part)[0]}"
    return "generated"  # By this package, or by the user's code, whose identity is added above.


def _wanted(data: DataConfig) -> list[tuple[Benchmark, Part]]:
    """Return the benchmarks and parts that a job needs. Raises DataError for an unknown benchmark
    and for one without training rows in `data.train`."""
    known = benchmarks_of(data)
    problems = [
        f"data.{field} names {name!r}, which is not a benchmark. Known are {', '.join(known)}"
        for field, names in (("train", data.train), ("evaluate", data.evaluate))
        for name in names
        if name not in known
    ]
    problems += [
        f"{name}, split train: the benchmark has no training rows, so nothing can be learned from"
        " it. Move it from data.train to data.evaluate"
        for name in data.train
        if name in known and not known[name].train
    ]
    rows.raise_all(problems)
    train: list[tuple[Benchmark, Part]] = [(known[name], "train") for name in data.train]
    return train + [(known[name], "test") for name in data.evaluate]


def _root(data: DataConfig) -> Path | None:
    return None if data.root is None else user_path(data.root)


def _local_files(root: Path | None, benchmark: Benchmark, part: Part) -> Sequence[Path]:
    """Return the local files of a part; none if its rows come from the hub or a generator."""
    source = benchmark.source
    if isinstance(source, Generated) or (
        isinstance(source, CustomSource) and source.rows is not None
    ):
        return ()
    if root is None and isinstance(source, CustomSource):
        raise DataError(no_rows_message(benchmark.name, part))
    if root is None:
        return ()
    return files.find(root, benchmark, part)


def _quiet_and_in_order() -> AbstractContextManager[None]:
    """Configure Ray Data for the block: no output, blocks in order, our errors."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True
    # The V2 file reader lists and reads in extra processes: seconds for each split, where this one
    # needs a tenth of a second.
    context.use_datasource_v2 = False
    return DataContext.current(context)


def _questions(benchmark: Benchmark, part: Part, data: DataConfig, seed: int) -> list[Question]:
    """Return all rows of a part as questions, in order."""
    source = _source(benchmark, part, data, seed)
    if benchmark.positions is not None:
        pairs = _mapped(source, partial(_positions, benchmark), _POSITIONS, benchmark, part)
        found = {(pair["number"], pair["options"]) for pair in pairs}
        benchmark = counted(benchmark, part, source.where, found)
    converted = _mapped(source, partial(_convert, benchmark), _CONVERTED, benchmark, part)
    if not converted:
        raise DataError(rows.empty_message(benchmark.name, part, source.where))
    questions, bad = rows.number(benchmark, part, converted)
    if bad:
        raise DataError(
            rows.bad_rows_message(benchmark.name, part, source.where, bad, len(converted))
        )
    return questions


_OfRows = Callable[[Iterator[tuple[FileRow, str]]], Iterator[list[dict[str, Any]]]]


def _mapped(
    source: _Source, of_rows: _OfRows, schema: pa.Schema, benchmark: Benchmark, part: Part
) -> list[dict[str, Any]]:
    """Return what `of_rows` makes of the rows, one task for each block, in order. Raises DataError
    for all blocks that cannot be read."""
    mapped = source.dataset.map_batches(
        partial(_of_block, source.rows_of, of_rows, schema),
        batch_size=None,
        batch_format="pyarrow",
    )
    found: list[dict[str, Any]] = []
    try:
        with waiting(
            f"{part} rows of {benchmark.name}", partial(describe_pending, [{"CPU": 1.0}])
        ) as wait:
            for batch in wait.each(mapped.iter_batches(batch_size=None, batch_format="pyarrow")):
                found += cast(pa.Table, batch).to_pylist()
    except Exception as error:  # Ray wraps the errors of its tasks in its own classes.
        raise _read_error(error, benchmark, part, source.where) from error
    rows.raise_all(
        f"{benchmark.name}, split {part}: {row['failed']}" for row in found if row["failed"]
    )
    return found


def _of_block(
    rows_of: Callable[[pa.Table], Iterator[tuple[FileRow, str]]],
    of_rows: _OfRows,
    schema: pa.Schema,
    block: pa.Table,
) -> Iterator[pa.Table]:
    try:
        for made in of_rows(rows_of(block)):
            yield pa.Table.from_pylist(made, schema=schema)
    except DataError as error:
        yield pa.Table.from_pylist([{_FAILED.name: str(error)}], schema=schema)


def _convert(
    benchmark: Benchmark, found: Iterator[tuple[FileRow, str]]
) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(itertools.islice(found, _ROWS_PER_BLOCK)):
        yield [
            rows.convert(benchmark, row.values, location, row.problem) for row, location in chunk
        ]


def _positions(
    benchmark: Benchmark, found: Iterator[tuple[FileRow, str]]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the distinct gold answers that are numbers of options."""
    assert benchmark.positions is not None
    pairs = {benchmark.positions.of(row.values) for row, _ in found} - {None}
    yield [{"number": pair[0], "options": pair[1]} for pair in pairs if pair]


def _rows_of_files(
    columns: Sequence[str], only_file: bool, paths: pa.Table
) -> Iterator[tuple[FileRow, str]]:
    for path in map(Path, paths.column("item").to_pylist()):
        if not path.is_file():
            raise DataError(
                f"there is no {path} on the node {platform.node()}. Every node of the cluster must"
                " have data.root under the same path"
            )
        for row in row_files.read(path, columns):
            yield row, files.location(path, row, only_file)


def _rows_of_table(block: pa.Table) -> Iterator[tuple[FileRow, str]]:
    for number, values in enumerate(block.to_pylist(), start=1):
        yield FileRow(number, None, values), ""


def _source(benchmark: Benchmark, part: Part, data: DataConfig, seed: int) -> _Source:
    local = _local_files(_root(data), benchmark, part)
    if local:
        paths = [str(path.absolute()) for path in local]
        more = f" and {len(local) - 1} more" if len(local) > 1 else ""
        return _Source(
            ray.data.from_items(paths, override_num_blocks=min(len(paths), _MOST_TASKS)),
            partial(_rows_of_files, [*benchmark.columns, "id"], len(paths) == 1),
            f"{local[0]}{more}",
        )
    source = benchmark.source
    if isinstance(source, Hub):
        table = download(benchmark, source, part)
        where = f"{source.dataset} at {source.revision}"
    elif isinstance(source, CustomSource):
        assert source.rows is not None
        where = source.rows.reference
        table = _table(made_rows(benchmark, part), benchmark, part, where)
    else:
        count = _num_generated(source, part, data)
        generated = tasks.rows(benchmark.name, part, count, seed if part == "train" else _TEST_SEED)
        table, where = pa.Table.from_pylist(generated), "generated"
    blocks = max(1, table.num_rows // _ROWS_PER_BLOCK)
    # Not `from_huggingface`: for a data set with Parquet files it reads the newest revision,
    # whatever revision was loaded.
    return _Source(ray.data.from_arrow(table, override_num_blocks=blocks), _rows_of_table, where)


def _table(made: list[dict[str, object]], benchmark: Benchmark, part: Part, where: str) -> pa.Table:
    try:
        return pa.Table.from_pylist(made)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"{benchmark.name}, split {part} ({where}): the rows are not a table: {error}. Give"
            " each column values of one type: texts, numbers or lists of texts"
        ) from error


def _num_generated(source: Generated, part: Part, data: DataConfig) -> int:
    if part == "test":
        return data.num_test or source.num_test
    wanted = (data.num_train or source.num_train) + data.num_validation
    return wanted + wanted // 8  # Some more, since duplicates are dropped.


def _read_error(error: Exception, benchmark: Benchmark, part: Part, where: str) -> SirtError:
    """Return the SirtError in Ray's chain of causes; else a DataError with the innermost reason."""
    cause: BaseException | None = error
    innermost: BaseException = error
    while cause is not None:
        if isinstance(cause, SirtError) and not isinstance(cause, RayError):
            return cause
        innermost = cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    reason = (str(innermost).strip().splitlines() or [type(innermost).__name__])[0]
    return DataError(
        f"{benchmark.name}, split {part} ({where}): the rows cannot be read: {reason}. Check that"
        " the file is complete and that every node of the cluster sees it under this path"
    )
