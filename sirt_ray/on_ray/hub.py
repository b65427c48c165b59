"""Rows from the Hugging Face hub, at the revision that the benchmark names."""

import pyarrow as pa

from sirt_ray.benchmarks.base import Benchmark, Hub, Part
from sirt_ray.errors import DataError


def download(benchmark: Benchmark, source: Hub, part: Part) -> pa.Table:
    """The columns that the benchmark needs, of all its configurations, one after the other.

    Downloads once, to the cache of `datasets`; from then on no network is needed. Raises DataError
    where the hub does not give the rows, whatever the reason.
    """
    import datasets

    name = benchmark.split_names(part)[0]
    datasets.disable_progress_bars()
    try:
        if source.files is not None:
            pattern = source.files.format(split=name)
            files = f"hf://datasets/{source.dataset}@{source.revision}/{pattern}"
            loaded = [datasets.load_dataset("parquet", data_files={name: files}, split=name)]
        else:
            loaded = [
                datasets.load_dataset(source.dataset, config, revision=source.revision, split=name)
                for config in source.configs or (None,)
            ]
        columns = list(benchmark.columns)
        tables = [rows.select_columns(columns).with_format("arrow")[:] for rows in loaded]
    except Exception as error:  # a network has no list of what it may raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{benchmark.name}, split {part}: {source.dataset} at {source.revision} cannot be"
            f" loaded from the hub: {reason}. Check the network, or download the rows elsewhere and"
            f" set data.root to a folder with {benchmark.name}/{name}.parquet"
        ) from error
    return pa.concat_tables(tables, promote_options="default")
