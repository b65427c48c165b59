"""Benchmark rows -> the questions of a run, through Ray Data.

    hub | local files | generator | the user's function
        ->  Ray Data blocks  ->  to_question in tasks  ->  Parquet

Blocks are read and converted in parallel and come back in order, so a question's id is the position
of its row whatever the number of blocks. The errors of all benchmarks are raised together.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray.data
from pyarrow import csv
from ray.data import DataContext, Dataset
from ray.exceptions import RayError

from sirt_ray.artifacts import parquet
from sirt_ray.benchmarks import files, rows
from sirt_ray.benchmarks.base import Benchmark, CustomSource, Generated, Hub, Part
from sirt_ray.benchmarks.custom import made_rows, no_rows_message
from sirt_ray.benchmarks.registry import benchmarks_of
from sirt_ray.config.data import DataConfig
from sirt_ray.core.interfaces import Counts, Progress
from sirt_ray.errors import DataError, SirtError
from sirt_ray.logs import waiting
from sirt_ray.on_ray.cluster import describe_pending
from sirt_ray.on_ray.data.hub import download
from sirt_ray.on_ray.data.splits import write_splits
from sirt_ray.quickstart import tasks
from sirt_ray.types import Question, Split

_ROWS_PER_BLOCK = 1000
"""For rows that the driver passes to Ray Data. Files are cut into blocks by Ray Data itself."""
_TEST_SEED = 2405
"""Seed of a generator's test questions. It is the same for every job, so that runs with different
seeds can be compared. To choose settings, `quickstart/tasks.py` has a validation split."""

_CONVERTED = pa.schema(
    [*parquet.QUESTION, pa.field("label", pa.string()), pa.field("reason", pa.string())]
)
_READERS: dict[str, Callable[..., Dataset]] = {
    ".parquet": ray.data.read_parquet,
    ".csv": partial(ray.data.read_csv, parse_options=csv.ParseOptions(newlines_in_values=True)),
    ".json": ray.data.read_json,
    ".jsonl": ray.data.read_json,
}


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
    return None if data.root is None else Path(data.root).expanduser()


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
    dataset, where = _read(benchmark, part, data, seed)
    converted = dataset.map_batches(partial(_convert_batch, benchmark), batch_format="pyarrow")
    found: list[dict[str, Any]] = []
    try:
        with waiting(
            f"{part} rows of {benchmark.name}", partial(describe_pending, [{"CPU": 1.0}])
        ) as wait:
            for batch in wait.each(converted.iter_batches(batch_size=None, batch_format="pyarrow")):
                found += cast(pa.Table, batch).to_pylist()
    except Exception as error:  # Ray wraps the errors of its tasks in its own classes.
        raise _read_error(error, benchmark, part, where) from error
    if not found:
        raise DataError(rows.empty_message(benchmark.name, part, where))
    questions, bad = rows.number(benchmark, part, found)
    if bad:
        raise DataError(rows.bad_rows_message(benchmark.name, part, where, bad, len(found)))
    return questions


def _convert_batch(benchmark: Benchmark, batch: pa.Table) -> pa.Table:
    converted = [rows.convert(benchmark, row) for row in batch.to_pylist()]
    return pa.Table.from_pylist(converted, schema=_CONVERTED)


def _read(benchmark: Benchmark, part: Part, data: DataConfig, seed: int) -> tuple[Dataset, str]:
    """Return the rows of a part, and their source as text."""
    local = _local_files(_root(data), benchmark, part)
    if local:
        read = _READERS[local[0].suffix]
        more = f" and {len(local) - 1} more" if len(local) > 1 else ""
        return read([str(path) for path in local]), f"{local[0]}{more}"
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
    return ray.data.from_arrow(table, override_num_blocks=blocks), where


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
