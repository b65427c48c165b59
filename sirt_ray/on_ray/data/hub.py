"""Rows from the Hugging Face hub, at the revision that the benchmark names."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from sirt_ray.benchmarks.base import Benchmark, Hub, Part
from sirt_ray.errors import DataError
from sirt_ray.logs import waiting


def download(benchmark: Benchmark, source: Hub, part: Part) -> pa.Table:
    """The columns that the benchmark needs, of all its configurations, one after the other.

    Downloads once, to the hub's cache; from then on no network is needed, which HF_HUB_OFFLINE=1
    tells the hub's libraries. Raises DataError where the hub does not give the rows, whatever the
    reason.
    """
    import datasets

    name = benchmark.split_names(part)[0]
    datasets.disable_progress_bars()
    try:
        with waiting(f"the hub's {source.dataset}, split {name}"):
            if source.files is not None:
                loaded = [_files_of(source, source.files.format(split=name))]
            else:
                loaded = [
                    datasets.load_dataset(
                        source.dataset, config, revision=source.revision, split=name
                    )
                    for config in source.configs or (None,)
                ]
        columns = list(benchmark.columns)
        tables = [rows.select_columns(columns).with_format("arrow")[:] for rows in loaded]
    except Exception as error:  # a network has no list of what it may raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{benchmark.name}, split {part}: {source.dataset} at {source.revision} cannot be"
            f" loaded from the hub: {reason}. Check the network and HF_HUB_OFFLINE, or download the"
            f" rows elsewhere and set data.root to a folder with {benchmark.name}/{name}.parquet"
        ) from error
    return pa.concat_tables(tables, promote_options="default")


def _files_of(source: Hub, pattern: str) -> Any:
    """The rows of some Parquet files. Fetched as files: an address of the hub, which `datasets`
    takes as well, is looked up there each time, however much of it is cached."""
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
        raise FileNotFoundError(f"it has no files {pattern}")
    return datasets.load_dataset("parquet", data_files=files, split="train")
