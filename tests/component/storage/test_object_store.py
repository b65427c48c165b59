"""Runs in object storage, with a server on this machine that speaks S3's protocol: nodes that share
nothing else, and what may be wrong with what they find there."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sirt_ray.artifacts.store import RECORD, DryRun, Store
from sirt_ray.errors import ArtifactError, ConfigError, StorageError
from sirt_ray.logs import attached_handler, log_event
from sirt_ray.report.journal import RunJournal
from sirt_ray.storage import object_store
from sirt_ray.storage.hashing import content_key
from sirt_ray.storage.uri import masked
from sirt_ray.types import Score, Scores
from tests.helpers.s3_server import KEY, SECRET, allow
from tests.helpers.stored_runs import Node, run_dir, write


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
                path = object_store.to_local_path("s3://bucket/runs/") / "mine"
                assert f"/{name}/" in str(path)
                assert object_store.to_uri(path) == "s3://bucket/runs/mine"

    def test_other_paths_are_left_alone(self, tmp_path: Path) -> None:
        write(tmp_path, a="1")
        assert object_store.to_uri(tmp_path) == str(tmp_path)
        assert object_store.fetch(tmp_path, RECORD) == tmp_path
        assert object_store.read(tmp_path / "a") == b"1"
        assert object_store.names(tmp_path) == ["a"]
        object_store.publish(tmp_path, RECORD)
        object_store.pull(tmp_path)
        object_store.forget(tmp_path)
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
            object_store.to_local_path(address)
        assert SECRET not in str(caught.value)
        assert SECRET not in masked(f"--set output={address}, for example")

    @pytest.mark.parametrize(
        "address", ["ftp://bucket/runs", "s3://", "s3://bucket/../x", "s3:///x"]
    )
    def test_addresses_of_nothing_are_refused(self, address: str) -> None:
        with pytest.raises(ConfigError, match=r"no address|no folder"):
            object_store.to_local_path(address)


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
            assert artifact.uri == f"s3://{bucket}/runs/mine/questions"
            record = {"record.json": (artifact.fetched() / RECORD).read_text()}
            assert contents(artifact.path) == {"a": "1", "deep/b": "22", **record}
            inode = (artifact.path / "a").stat().st_ino
            assert (artifact.fetched() / "a").stat().st_ino == inode

    def test_half_an_artifact_is_continued_on_another_node(self, node: Node, bucket: str) -> None:
        def dies(out: Path) -> dict[str, int]:
            write(out, part="1")
            object_store.push(out / "part")
            raise KeyboardInterrupt

        def goes_on(out: Path) -> dict[str, int]:
            object_store.pull(out)
            assert contents(out) == {"part": "1"}
            return {"rows": 1}

        with node("one"), pytest.raises(KeyboardInterrupt):
            Store(run_dir(bucket)).once("samples", {"seed": 1}, dies)
        with node("two"):
            planned = DryRun(Store(run_dir(bucket)))
            planned.once("samples", {"seed": 1}, dies)
            assert [status.state for status in planned.statuses] == ["partial"]
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
            object_store.push(out / "part")
            raise KeyboardInterrupt

        with node("one"), pytest.raises(KeyboardInterrupt):
            Store(run_dir(bucket)).once("samples", {"seed": 1}, dies)
        with node("two"):
            made = Store(run_dir(bucket)).once("samples", {"seed": 2}, build(built))
        with node("three"):
            assert object_store.names(run_dir(bucket) / "samples") == [
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
            redone = Store(run_dir(bucket), force=True)
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
                other = object_store.to_local_path(f"s3://{bucket}/runs/mine/samples")
                write(other, b="2")
                object_store.push(other / "b")
            object_store.pull(out)
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
            copy = object_store.to_local_path(f"s3://{bucket}/model")
            write(copy, **{"config.json": "{}", "a.b": "1", "a__b": "22"})
            object_store.push(copy)
            assert content_key(f"s3://{bucket}/model") == content_key(tmp_path / "model")
            write(tmp_path / "model", a__b="23")
            assert content_key(f"s3://{bucket}/model") != content_key(tmp_path / "model")


class TestJournal:
    def test_another_driver_goes_on_behind_what_was_told(
        self, node: Node, bucket: str, owner: Any
    ) -> None:
        def told(name: str) -> list[dict[str, Any]]:
            with owner.open_input_stream(f"{bucket}/runs/mine/{name}") as stream:
                return [json.loads(line) for line in stream.read().splitlines()]

        evaluated: Scores = {"word_problems": {"cot": Score(1, 2, 0)}}
        for driver in ("one", "two"):
            with node(driver):
                run_dir(bucket).mkdir(parents=True)
                journal = RunJournal(run_dir(bucket), Console(quiet=True))
                with attached_handler(journal):
                    journal.event("rolled_back", driver)
                    log_event(logging.INFO, "no event")
                    journal.scores(driver, evaluated)
                    journal.stopped(KeyboardInterrupt())
        events = told("events.jsonl")
        assert [event["event"] for event in events] == ["rolled_back", "stopped"] * 2
        assert [event["message"] for event in events[::2]] == ["one", "two"]
        assert len(told("logs/driver.jsonl")) == 2 * 4
        with owner.open_input_stream(f"{bucket}/runs/mine/scores.json") as stream:
            assert list(json.loads(stream.read())) == ["one", "two"]

    def test_a_storage_that_refuses_ends_no_telling(
        self, node: Node, bucket: str, s3_endpoint: str
    ) -> None:
        with node("one"):
            run_dir(bucket).mkdir(parents=True)
            journal = RunJournal(run_dir(bucket), Console(quiet=True))
            allow(s3_endpoint, "0")
            journal.event("rolled_back", "it fell")
            journal.stopped(StorageError("the storage refuses"))
            with pytest.raises(StorageError):
                journal.artifact("started", "round_01/pairs")


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
