"""Students and their trainings in object storage: fetched, checked, continued on another node."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sirt_ray.config.resources import TrainerResources
from sirt_ray.driver.checks import check_model
from sirt_ray.errors import ModelError, StageError
from sirt_ray.on_ray.engine.weights import located
from sirt_ray.on_ray.serve.resolve import find_model
from sirt_ray.quickstart import assets
from sirt_ray.storage import object_store
from sirt_ray.storage.atomic import write_json
from sirt_ray.storage.hashing import model_key
from sirt_ray.training.tasks import Source
from sirt_ray.training.workdir import TrainingState, WorkDir, read_lines
from tests.helpers.paths import JOBS
from tests.helpers.stored_runs import Node, run_dir, write


class TestTraining:
    def test_a_training_resumes_on_another_node(self, node: Node, bucket: str) -> None:
        resources = TrainerResources()

        def work(attempt: str | None = None) -> WorkDir:
            return WorkDir(run_dir(bucket) / "round_00" / "student", attempt)

        with node("driver"):
            first = work().acquire(resources)
        with node("one"):
            training = work(first)
            training.truncate(0)
            for step in (1, 2, 3):
                training.append({"step": step, "total_steps": 4})
                if step == 2:
                    object_store.push(training.metrics)
                    write(training.checkpoint(2), optimizer__rank_0="weights")
                    write_json(training.checkpoint(2) / "state.json", asdict(TrainingState(step=2)))
                    object_store.publish(training.checkpoint(2), "state.json")
                    training.prune()
            object_store.push(training.metrics)
            write(training.checkpoint(3), optimizer__rank_0="half")
            object_store.push(training.checkpoint(3))
        with node("driver"):
            assert work().newest() == {"step": 1, "total_steps": 4}
            second = work().acquire(resources)
        with node("one"), pytest.raises(StageError, match="taken over"):
            training.finish({})
        with node("two"):
            training = work(second)
            (newest,) = training.complete()
            assert newest == training.checkpoint(2)
            object_store.fetch(newest, "state.json")
            assert (newest / "optimizer" / "rank_0").read_text() == "weights"
            assert training.state(newest) == TrainingState(step=2)
            training.truncate(2)
            assert [line["step"] for line in read_lines(training.metrics)] == [1, 2]
            assert training.repeated() == {"steps": 1, "seconds": 0.0}
            training.finish({"steps": 4})
            write(training.export, **{"config.json": "{}", "adapter__a": "1"})
            training.close({"steps": 4})
            assert not training.out.exists()
        with node("driver"):
            assert work().repeated() == {"steps": 1, "seconds": 0.0}
            assert work().result() == {"steps": 4}
            work().remove()
            assert object_store.names(work().out) == ["adapter", "config.json", "training.json"]


class TestModels:
    def test_a_model_in_storage_is_checked_as_one_on_a_disk(
        self, node: Node, bucket: str, owner: Any
    ) -> None:
        student = Path(assets.resolve("quickstart:student"))
        address = f"s3://{bucket}/models/student"
        with node("one"):
            copy = object_store.to_local_path(address)
            shutil.copytree(student, copy)
            object_store.push(copy)
            assert model_key(address, None) == model_key(str(student), None)
            check_model("student.model", address, use="trained")
            without = Path(located(Source(address), weights=False).location)
            assert not list(without.glob("*.safetensors"))
            whole = located(Source(address)).location
            assert list(Path(whole).glob("*.safetensors"))
            assert located(Source(address), weights=False).location == whole
            owner.delete_file(f"{bucket}/models/student/model.safetensors")
            with pytest.raises(ModelError, match="no weights"):
                check_model("student.model", address, use="trained")

    def test_a_file_address_is_the_folder_that_it_names(self) -> None:
        student = assets.resolve("quickstart:student")
        check_model("student.model", f"file://{student}", use="trained")
        assert model_key(f"file://{student}", None) == model_key(str(student), None)

    def test_a_runs_student_is_found_by_its_address(self, node: Node, bucket: str) -> None:
        job = JOBS / "quickstart.yaml"
        events = [{"event": "rolled_back", "version": "round_02"}]
        with node("one"):
            run = run_dir(bucket)
            write(run, **{"config.yaml": job.read_text()})
            write(run, **{"events.jsonl": "".join(json.dumps(one) + "\n" for one in events)})
            for version in ("round_00", "round_01", "round_02"):
                write(run / version / "student", **{"config.json": "{}"})
            object_store.push(run)
        with node("two"):
            found = find_model(f"s3://{bucket}/runs/mine")
            assert found.path == f"s3://{bucket}/runs/mine/round_01/student"
            assert found.engine.max_model_len == 256
            model = find_model(f"s3://{bucket}/runs/mine/round_00/student")
            assert (model.name, model.path) == (
                "student",
                f"s3://{bucket}/runs/mine/round_00/student",
            )
