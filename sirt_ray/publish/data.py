"""The demonstrations and pairs of a run for other trainers.

The files are the run's own, whose columns TRL, LLaMA-Factory and `datasets` know: `prompt` and
`completion`; `prompt`, `chosen` and `rejected`. Beside them is a `dataset_info.json` as
LLaMA-Factory reads it (its `data/README.md`, the alpaca format).
"""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sirt_ray.artifacts.store import RECORD
from sirt_ray.errors import DataError
from sirt_ray.report.runs import RunRecord
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_json

INFO = "dataset_info.json"
DEMONSTRATIONS = "demonstrations"


def write_data(run: RunRecord, folder: Path) -> None:
    """`demonstrations.parquet`, `pairs_round_01.parquet`, ...: what the run has finished. Raises
    DataError where that is nothing."""
    named = {
        DEMONSTRATIONS if name == DEMONSTRATIONS else f"pairs_{name.removesuffix('/pairs')}": (
            object_store.fetch(run.path / name, RECORD) / f"{name.rpartition('/')[2]}.parquet"
        )
        for name in run.counts
        if name == DEMONSTRATIONS or name.endswith("/pairs")
    }
    if not named:
        raise DataError(
            f"{run.path} has no demonstrations yet. Let `sirt run` finish them: they are its second"
            " stage"
        )
    folder.mkdir(parents=True)
    info: dict[str, Any] = {}
    for name, file in named.items():
        shutil.copyfile(file, folder / f"{name}.parquet")
        info[name] = {"file_name": f"{name}.parquet", **_described(name, file)}
    write_json(folder / INFO, info)


def _described(name: str, file: Path) -> dict[str, Any]:
    if name == DEMONSTRATIONS:
        return {"columns": {"prompt": "prompt", "response": "completion"}}
    rejected = pq.read_table(file, columns=["rejected"])["rejected"]
    if pc.all(rejected.is_null()).as_py():  # pyright: ignore[reportAttributeAccessIssue]
        # What is only imitated, as the round's loss asks.
        return {"columns": {"prompt": "prompt", "response": "chosen"}}
    return {
        "ranking": True,
        "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    }
