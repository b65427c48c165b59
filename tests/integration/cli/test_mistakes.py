"""The mistakes of `tests/helpers/mistakes.py` that only show where Ray runs, on one cluster for
all: `sirt` in processes of its own, which join it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private import worker
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER

from tests.helpers.mistakes import MISTAKES, Mistake, check
from tests.helpers.paths import JOBS

QUICKSTART = str(JOBS / "quickstart.yaml")
OURS = [mistake for mistake in MISTAKES if mistake.where == "cluster"]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

Done = subprocess.CompletedProcess[str]


def sirt(folder: Path, *arguments: str, **settings: object) -> Done:
    """The command on the cluster of this process; its settings' dots are written as `__`."""
    address = ray.get_runtime_context().gcs_address
    given = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    more = ["--address", address, *(part for one in given for part in ("--set", one))]
    line = [sys.executable, "-m", "sirt_ray", *arguments, *more]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=200, check=False, cwd=folder
    )


def evaluate(folder: Path, **settings: object) -> Done:
    asked = ("--benchmarks", "word_problems", "--num", "4")
    return sirt(folder, "evaluate", "quickstart:student", *asked, **settings)


def rejected(folder: Path) -> Done:
    """A teacher whose answers are all wrong."""
    questions = [f"What is {number} + 2?" for number in range(8)]
    tests = [f"What is {number} times 3?" for number in range(8)]
    for split, texts in {"train": questions, "test": tests}.items():
        path = folder / "rows" / "gsm8k" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": text, "answer": "It is 9.\n#### 9"} for text in texts]
        pq.write_table(pa.Table.from_pylist(rows), path)
    answers = folder / "answers.jsonl"
    answers.write_text(
        "\n".join(
            json.dumps({"question": text, "completion": "The answer is 1000."})
            for text in questions
        )
    )
    job = {
        "name": "mine",
        "data": {
            "train": ["gsm8k"],
            "evaluate": ["gsm8k"],
            "root": str(folder / "rows"),
            "num_validation": 2,
        },
        "teacher": {"demonstrations": {"path": str(answers)}},
        "student": {"model": "quickstart:student"},
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    return sirt(folder, "run", "job.yaml")


@contextmanager
def another_ray() -> Iterator[None]:
    """The cluster says that it was started with another version; its own processes go on."""
    node = worker._global_node
    assert node is not None
    store = node.get_gcs_client()

    def say(text: bytes) -> None:
        store.internal_kv_put(CLUSTER_METADATA_KEY, text, True, namespace=KV_NAMESPACE_CLUSTER)

    true = store.internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    say(json.dumps(json.loads(true) | {"ray_version": "2.1.0"}).encode())
    try:
        yield
    finally:
        say(true)


def version_differs(folder: Path) -> Done:
    with another_ray():
        return sirt(folder, "run", QUICKSTART)


MADE: dict[str, Callable[[Path], Done]] = {
    "all demonstrations are rejected": rejected,
    "questions longer than the engine's context": lambda folder: evaluate(
        folder, engine__max_model_len=100, sampling__max_tokens=96
    ),
    "too little memory for the engine": lambda folder: evaluate(
        folder, engine__kv_cache_gib=100_000
    ),
    "a cluster that is too small": lambda folder: sirt(
        folder, "run", QUICKSTART, resources__student__device="gpu"
    ),
    "a cluster with another version of Ray": version_differs,
}


@pytest.mark.parametrize("mistake", OURS, ids=lambda mistake: mistake.id)
def test_a_mistake_gets_its_message(mistake: Mistake, ray_cluster: None, tmp_path: Path) -> None:
    done = MADE[mistake.what](tmp_path)
    check(mistake, done.returncode, done.stderr)


def test_every_mistake_is_made() -> None:
    assert set(MADE) == {mistake.what for mistake in OURS}
