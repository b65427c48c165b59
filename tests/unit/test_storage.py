"""Runs in object storage, with a server on this machine that speaks S3's protocol: two nodes that
share nothing else, and what may be wrong with what they find there."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sirt_ray import storage, storage_copies
from sirt_ray.addresses import masked
from sirt_ray.artifacts import RECORD, Store
from sirt_ray.content import content_key, model_key
from sirt_ray.errors import ArtifactError, ConfigError, ModelError, StageError, StorageError
from sirt_ray.folder_lock import locked
from sirt_ray.lease import held
from sirt_ray.on_ray.checks import check_model
from sirt_ray.on_ray.served_model import find_model
from sirt_ray.on_ray.weights import located
from sirt_ray.quickstart import assets
from sirt_ray.resources import TrainerResources
from sirt_ray.survey import Survey
from sirt_ray.training.tasks import Source
from sirt_ray.training.workfolder import State, WorkFolder, read_lines, write_json
from tests.s3_server import ALWAYS_ALLOWED, KEY, SECRET, allow, environment, file_system

Node = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def node(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Be another node, with a disk of its own, while the block runs."""
    for name, value in environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    storage_copies._store.cache_clear()

    @contextmanager
    def be(name: str) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setenv("SIRT_CACHE", str(tmp_path / name))
            yield

    yield be
    allow(s3_endpoint, ALWAYS_ALLOWED)


@pytest.fixture
def bucket(s3_endpoint: str, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)):x}"
    file_system(s3_endpoint).create_dir(name)
    return name


@pytest.fixture
def owner(s3_endpoint: str) -> Any:
    """The bucket as its owner sees it."""
    return file_system(s3_endpoint)


def run_dir(bucket: str) -> Path:
    return storage.local(f"s3://{bucket}/runs/mine")


def write(folder: Path, **contents: str) -> None:
    """`sub__name` is the file `name` in a folder `sub`."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def build(built: list[str], name: str = "rows", **files: str) -> Callable[[Path], dict[str, int]]:
    def build(out: Path) -> dict[str, int]:
        built.append(name)
        write(out, **(files or {"a": "1", "deep__b": "22"}))
        return {"rows": 2}

    return build


class TestPaths:
    def test_a_path_stands_for_the_same_object_on_every_node(self, node: Node) -> None:
        for name in ("one", "two"):
            with node(name):
                path = storage.local("s3://bucket/runs/") / "mine"
                assert f"/{name}/" in str(path)
                assert storage.place(path) == "s3://bucket/runs/mine"

    def test_other_paths_are_left_alone(self, tmp_path: Path) -> None:
        write(tmp_path, a="1")
        assert storage.place(tmp_path) == str(tmp_path)
        assert storage.fetch(tmp_path, RECORD) == tmp_path
        assert storage.read(tmp_path / "a") == b"1"
        assert storage.names(tmp_path) == ["a"]
        storage.publish(tmp_path, RECORD)
        storage.pull(tmp_path)
        storage.forget(tmp_path)
        assert contents(tmp_path) == {"a": "1"}

    @pytest.mark.parametrize(
        "address",
        [
            f"s3://{KEY}:{SECRET}@bucket/runs",
            f"s3://{SECRET}@bucket/runs",
            f"s3://bucket/runs?secret_key={SECRET}",
        ],
    )
    def test_addresses_with_keys_are_refused_and_not_repeated(self, address: str) -> None:
        with pytest.raises(ConfigError, match="environment of the nodes") as caught:
            storage.local(address)
        assert SECRET not in str(caught.value)
        assert SECRET not in masked(f"--set output={address}, for example")

    @pytest.mark.parametrize(
        "address", ["ftp://bucket/runs", "s3://", "s3://bucket/../x", "s3:///x"]
    )
    def test_addresses_of_nothing_are_refused(self, address: str) -> None:
        with pytest.raises(ConfigError, match=r"no address|no folder"):
            storage.local(address)


class TestArtifacts:
    def test_what_one_node_built_another_finds_and_fetches_where_it_is_read(
        self, node: Node, bucket: str
    ) -> None:
        built: list[str] = []
        with node("one"):
            Store(run_dir(bucket)).once("questions", {"seed": 1}, build(built))
        with node("two"):
            artifact = Store(run_dir(bucket)).once("questions", {"seed": 1}, build(built))
            assert built == ["rows"]
            assert not artifact.path.exists()
            assert artifact.place == f"s3://{bucket}/runs/mine/questions"
            record = {"record.json": (artifact.fetched() / RECORD).read_text()}
            assert contents(artifact.path) == {"a": "1", "deep/b": "22", **record}
            inode = (artifact.path / "a").stat().st_ino
            assert (artifact.fetched() / "a").stat().st_ino == inode

    def test_half_an_artifact_is_continued_on_another_node(self, node: Node, bucket: str) -> None:
        def dies(out: Path) -> dict[str, int]:
            write(out, part="1")
            storage.push(out / "part")
            raise KeyboardInterrupt

        def goes_on(out: Path) -> dict[str, int]:
            storage.pull(out)
            assert contents(out) == {"part": "1"}
            return {"rows": 1}

        with node("one"), pytest.raises(KeyboardInterrupt):
            Store(run_dir(bucket)).once("samples", {"seed": 1}, dies)
        with node("two"):
            survey = Survey(run_dir(bucket))
            survey.once("samples", {"seed": 1}, dies)
            assert [state.state for state in survey.states] == ["begun"]
            Store(run_dir(bucket)).once("samples", {"seed": 1}, goes_on)
        with node("three"):
            artifact = Store(run_dir(bucket)).once("samples", {"seed": 1}, dies)
            assert contents(artifact.fetched()).keys() == {"part", RECORD}

    def test_what_was_begun_with_other_settings_is_begun_anew(
        self, node: Node, bucket: str
    ) -> None:
        built: list[str] = []

        def dies(out: Path) -> dict[str, int]:
            write(out, part="1")
            storage.push(out / "part")
            raise KeyboardInterrupt

        with node("one"), pytest.raises(KeyboardInterrupt):
            Store(run_dir(bucket)).once("samples", {"seed": 1}, dies)
        with node("two"):
            made = Store(run_dir(bucket)).once("samples", {"seed": 2}, build(built))
        with node("three"):
            assert storage.names(run_dir(bucket) / "samples") == [
                ".files.json", "a", "deep", RECORD
            ]  # fmt: skip
            assert made.fingerprint

    def test_a_redone_artifact_takes_the_place_of_old_copies(self, node: Node, bucket: str) -> None:
        built: list[str] = []
        with node("one"):
            Store(run_dir(bucket)).once("pairs", {"seed": 1}, build(built, a="1", b="1"))
        with node("two"):
            Store(run_dir(bucket)).once("pairs", {"seed": 1}, build(built)).fetched()
        with node("one"):
            with pytest.raises(ArtifactError, match=r"s3://.*pairs is finished.*\n  seed: 1 -> 2"):
                Store(run_dir(bucket)).once("pairs", {"seed": 2}, build(built))
            redone = Store(run_dir(bucket), redo=True)
            redone.once("pairs", {"seed": 2}, build(built, "again", a="2"))
        with node("two"):
            artifact = Store(run_dir(bucket)).once("pairs", {"seed": 2}, build(built))
            assert contents(artifact.fetched())["a"] == "2"
            assert contents(artifact.path).keys() == {"a", RECORD}
        assert built == ["rows", "again"]

    @pytest.mark.parametrize(
        ("harm", "said"),
        [
            ({"deep/b": None}, "deep/b is missing"),
            ({"a": b"12345"}, "a has 5 bytes"),
            ({".files.json": None}, r"no \.files\.json in it"),
        ],
    )
    def test_an_artifact_that_was_harmed_is_not_read(
        self, node: Node, bucket: str, owner: Any, harm: dict[str, bytes | None], said: str
    ) -> None:
        with node("one"):
            Store(run_dir(bucket)).once("questions", {}, build([]))
        for name, content in harm.items():
            key = f"{bucket}/runs/mine/questions/{name}"
            if content is None:
                owner.delete_file(key)
            else:
                with owner.open_output_stream(key) as stream:
                    stream.write(content)
        with node("two"):
            artifact = Store(run_dir(bucket)).once("questions", {}, build([]))
            with pytest.raises(StorageError, match=f"s3://{bucket}/runs/mine/questions.*{said}"):
                artifact.fetched()

    def test_parts_from_several_nodes_are_one_artifact(self, node: Node, bucket: str) -> None:
        def one_part(out: Path) -> dict[str, int]:
            write(out, a="1")
            with node("two"):
                other = storage.local(f"s3://{bucket}/runs/mine/samples")
                write(other, b="2")
                storage.push(other / "b")
            storage.pull(out)
            assert contents(out) == {"a": "1", "b": "2"} or contents(out) == {"b": "2"}
            write(out, a="1")
            return {}

        with node("one"):
            Store(run_dir(bucket)).once("samples", {}, one_part)
        with node("three"):
            artifact = Store(run_dir(bucket)).once("samples", {}, one_part)
            assert contents(artifact.fetched()).keys() == {"a", "b", RECORD}

    def test_a_folder_and_its_upload_have_the_same_content(
        self, node: Node, bucket: str, tmp_path: Path
    ) -> None:
        write(tmp_path / "model", **{"config.json": "{}", "a.b": "1", "a__b": "22", ".git": "x"})
        with node("one"):
            copy = storage.local(f"s3://{bucket}/model")
            write(copy, **{"config.json": "{}", "a.b": "1", "a__b": "22"})
            storage.push(copy)
            assert content_key(f"s3://{bucket}/model") == content_key(tmp_path / "model")
            write(tmp_path / "model", a__b="23")
            assert content_key(f"s3://{bucket}/model") != content_key(tmp_path / "model")


class TestTraining:
    def test_a_training_goes_on_on_another_node(self, node: Node, bucket: str) -> None:
        resources = TrainerResources()

        def work(attempt: str | None = None) -> WorkFolder:
            return WorkFolder(run_dir(bucket) / "round_00" / "student", attempt)

        with node("driver"):
            first = work().claim(resources)
        with node("one"):
            training = work(first)
            training.truncate(0)
            for step in (1, 2, 3):
                training.append({"step": step, "total_steps": 4})
                if step == 2:
                    storage.push(training.metrics)
                    write(training.checkpoint(2), engine__rank_0="weights")
                    write_json(training.checkpoint(2) / "state.json", asdict(State(step=2)))
                    storage.publish(training.checkpoint(2), "state.json")
                    training.prune(State(step=2))
            write(training.checkpoint(3), engine__rank_0="half")
            storage.push(training.checkpoint(3))
        with node("driver"):
            assert work().newest() == {"step": 1, "total_steps": 4}
            second = work().claim(resources)
        with node("one"), pytest.raises(StageError, match="taken over"):
            training.finish({})
        with node("two"):
            training = work(second)
            newest = training.latest()
            assert newest == training.checkpoint(2)
            storage.fetch(newest, "state.json")
            assert (newest / "engine" / "rank_0").read_text() == "weights"
            assert training.state(newest) == State(step=2)
            training.truncate(2)
            assert [line["step"] for line in read_lines(training.metrics)] == [1, 2]
            training.finish({"steps": 4})
            write(training.export, **{"config.json": "{}", "adapter__a": "1"})
            training.close({"steps": 4})
            assert not training.out.exists()
        with node("driver"):
            assert work().result() == {"steps": 4}
            work().remove()
            assert storage.names(work().out) == ["adapter", "config.json", "training.json"]


class TestModels:
    def test_a_model_in_storage_is_checked_as_one_on_a_disk(
        self, node: Node, bucket: str, owner: Any
    ) -> None:
        student = Path(assets.resolve("quickstart:student"))
        address = f"s3://{bucket}/models/student"
        with node("one"):
            copy = storage.local(address)
            shutil.copytree(student, copy)
            storage.push(copy)
            assert model_key(address, None) == model_key(str(student), None)
            check_model("student.model", address, use="trained")
            without = Path(located(Source(address), weights=False).here)
            assert not list(without.glob("*.safetensors"))
            whole = located(Source(address)).here
            assert list(Path(whole).glob("*.safetensors"))
            assert located(Source(address), weights=False).here == whole
            owner.delete_file(f"{bucket}/models/student/model.safetensors")
            with pytest.raises(ModelError, match="no weights"):
                check_model("student.model", address, use="trained")

    def test_a_runs_student_is_found_by_its_address(self, node: Node, bucket: str) -> None:
        job = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
        told = [{"event": "rolled_back", "version": "round_02"}]
        with node("one"):
            run = run_dir(bucket)
            write(run, **{"config.yaml": job.read_text()})
            write(run, **{"events.jsonl": "".join(json.dumps(one) + "\n" for one in told)})
            for version in ("round_00", "round_01", "round_02"):
                write(run / version / "student", **{"config.json": "{}"})
            storage.push(run)
        with node("two"):
            found = find_model(f"s3://{bucket}/runs/mine")
            assert found.path == f"s3://{bucket}/runs/mine/round_01/student"
            assert found.engine.max_model_len == 256
            model = find_model(f"s3://{bucket}/runs/mine/round_00/student")
            assert (model.name, model.path) == (
                "student",
                f"s3://{bucket}/runs/mine/round_00/student",
            )


class TestTrouble:
    """One clear message each, without what is secret."""

    def test_there_is_no_such_bucket(self, node: Node) -> None:
        with (
            node("one"),
            pytest.raises(StorageError, match=r"s3://absent/.*no such bucket. Create"),
        ):
            Store(run_dir("absent")).once("questions", {}, build([]))

    def test_the_credentials_are_refused(self, node: Node, bucket: str, s3_endpoint: str) -> None:
        with node("one"):
            allow(s3_endpoint, "0")
            with pytest.raises(StorageError, match="refuses the credentials") as caught:
                Store(run_dir(bucket)).once("questions", {}, build([]))
            assert KEY not in str(caught.value)
            assert SECRET not in str(caught.value)


class TestOneDriver:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, seconds in (("BEAT", 0.1), ("DEAD_AFTER", 0.6), ("SETTLED", 0.05)):
            monkeypatch.setattr(f"sirt_ray.lease._{name}_SECONDS", seconds)

    def test_a_second_driver_elsewhere_is_told_who_is_at_work(
        self, node: Node, bucket: str
    ) -> None:
        with (
            node("one"),
            held(run_dir(bucket)),
            pytest.raises(ArtifactError, match=r"s3://.*: process \d+ on .*, since 20"),
            held(run_dir(bucket)),
        ):
            pytest.fail("two drivers")
        with node("two"), locked(run_dir(bucket)):
            pass

    def lease(self, bucket: str, **fields: object) -> None:
        """What a driver left when it was killed."""
        there = {"host": "elsewhere", "machine": "another", "process": 1, "since": "then"}
        left = {"holder": "x", **there}
        file = run_dir(bucket) / ".driver.json"
        write(file.parent, **{file.name: json.dumps(left | {"seconds": time.time()} | fields)})
        storage.push(file)

    def test_a_killed_driver_holds_for_seconds(self, node: Node, bucket: str) -> None:
        with node("one"):
            self.lease(bucket)
            began = time.monotonic()
            with locked(run_dir(bucket)):
                assert time.monotonic() - began > 0.5
            assert storage.names(run_dir(bucket)) == []

    def test_one_that_was_killed_long_ago_does_not_hold(self, node: Node, bucket: str) -> None:
        with node("one"):
            self.lease(bucket, seconds=time.time() - 3600)
            began = time.monotonic()
            with locked(run_dir(bucket)):
                assert time.monotonic() - began < 0.5

    def test_a_driver_that_was_taken_for_dead_stops(self, node: Node, bucket: str) -> None:
        with (
            node("one"),
            pytest.raises(ArtifactError, match="another driver has taken over"),
            locked(run_dir(bucket)),
        ):
            self.lease(bucket)
            time.sleep(10)
