"""Where mistakes are made: a folder with a job that would run, and who makes which."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sirt_ray.cli.main import main
from sirt_ray.quickstart import assets
from tests.helpers.fake_hub import Repository, hub

Made = Callable[["Workspace"], int]
MADE: dict[str, Made] = {}
"""By the mistake's name, what makes it and returns the exit code."""


def makes(what: str) -> Callable[[Made], Made]:
    def keep(made: Made) -> Made:
        MADE[what] = made
        return made

    return keep


class Workspace:
    """A folder with a job that would run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = monkeypatch
        row = {"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}
        for split in ("train", "test"):
            path = folder / "rows" / "gsm8k" / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist([row] * 4), path)
        self.job = folder / "job.yaml"
        self.document = {
            "name": "mine",
            "output": str(folder / "runs"),
            "data": {
                "train": ["gsm8k"],
                "evaluate": ["gsm8k"],
                "root": str(folder / "rows"),
                "num_validation": 1,
            },
            "teacher": {"model": "quickstart:teacher"},
            "student": {"model": "quickstart:student"},
        }

    def run(self, *settings: str, address: str | None = None) -> int:
        """`sirt run` of the job; a setting is `a.b=value`."""
        self.job.write_text(json.dumps(self.document))
        where = [] if address is None else ["--address", address]
        given = [part for setting in settings for part in ("--set", setting)]
        return main(["run", str(self.job), *given, *where])

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "mine"

    def model(self) -> Path:
        """A copy of the quickstart's student, to be spoilt."""
        return Path(shutil.copytree(assets.resolve("quickstart:student"), self.folder / "model"))

    def run_model(self, model: Path) -> int:
        return self.run(f"student.model={model}")

    def run_from_hub(self, model: str, *settings: str) -> int:
        config = (assets.resolve("quickstart:student") / Path("config.json")).read_bytes()
        there = Repository("main", {"config.json": config})
        gated = Repository("main", {"config.json": config}, gated=True)
        with hub({"org/open": there, "org/gated": gated}) as url:
            return self.run_at(url, model, *settings)

    def run_at(self, url: str, model: str, *settings: str) -> int:
        from huggingface_hub import constants

        self.patch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        self.patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        self.patch.setattr(constants, "HF_HUB_CACHE", str(self.folder / "cache"))
        self.patch.setattr(constants, "HF_HUB_OFFLINE", False)
        self.patch.delenv("HF_TOKEN", raising=False)
        return self.run(f"student.model={model}", *settings)


def edited(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
