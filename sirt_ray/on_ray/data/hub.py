"""Rows from the Hugging Face hub, at the benchmark's pinned revision."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from sirt_ray.benchmarks.base import Benchmark, Hub, Part
from sirt_ray.errors import DataError
from sirt_ray.logs import waiting


def download(benchmark: Benchmark, source: Hub, part: Part) -> pa.Table:
    """Return the columns that the benchmark needs, with its configurations concatenated.

    The rows are downloaded once, to the hub's cache; later calls need no network, and
    HF_HUB_OFFLINE=1 makes the hub's libraries use none. Raises DataError if the rows cannot be
    loaded, for whatever reason.
    """
    import datasets

    name = benchmark.split_names(part)[0]
    datasets.disable_progress_bars()
    try:
        with waiting(f"the hub's {source.dataset}, split {name}"):
            if source.files is not None:
                loaded = [_parquet_files(source, source.files.format(split=name))]
            else:
                loaded = [
                    datasets.load_dataset(
                        source.dataset, config, revision=source.revision, split=name
                    )
                    for config in source.configs or (None,)
                ]
        columns = list(benchmark.columns)
        tables = [rows.select_columns(columns).with_format("arrow")[:] for rows in loaded]
    except Exception as error:  # The hub's and network libraries may raise anything.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{benchmark.name}, split {part}: {source.dataset} at {source.revision} cannot be"
            f" loaded from the hub: {reason}. Check the network and HF_HUB_OFFLINE, or download the"
            " rows on another machine and set data.root to a folder with"
            f" {benchmark.name}/{name}.parquet"
        ) from error
    return pa.concat_tables(tables, promote_options="default")


def _parquet_files(source: Hub, pattern: str) -> Any:
    """Load Parquet files of a data set. They are downloaded as files, because `datasets` resolves
    an hf:// URL on the hub at each call, even if the files are cached."""
    import datasets
    import huggingface_hub

    huggingface_hub.utils.disable_progress_bars()
    folder = huggingface_hub.snapshot_download(
        source.dataset,
        repo_type="dataset",
        revision=source.revision,
        allow_patterns=pattern,
    )
    files = sorted(map(str, Path(folder).glob(pattern)))
    if not files:
        raise FileNotFoundError(f"it has no files that match {pattern}")
    return datasets.load_dataset("parquet", data_files=files, split="train")
