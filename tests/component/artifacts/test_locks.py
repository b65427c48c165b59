"""One driver for one run in object storage."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sirt_ray.artifacts.locks import held, locked
from sirt_ray.errors import ArtifactError
from sirt_ray.storage import object_store
from tests.helpers.stored_runs import Node, run_dir, write


class TestOneDriver:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, seconds in (("BEAT", 0.1), ("SETTLED", 0.05)):
            monkeypatch.setattr(f"sirt_ray.artifacts.locks._{name}_SECONDS", seconds)

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
        object_store.push(file)

    def test_one_whose_lease_was_read_while_it_grew_is_at_work(
        self, node: Node, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What pyarrow gives of an object that is written between its size and its content."""
        whole = object_store.read
        torn = iter((True,))

        def read(path: Path) -> bytes | None:
            content = whole(path)
            return content[:-1] if content and next(torn, False) else content

        with node("one"), held(run_dir(bucket)):
            monkeypatch.setattr("sirt_ray.artifacts.locks.object_store.read", read)
            with pytest.raises(ArtifactError, match="another driver"), held(run_dir(bucket)):
                pytest.fail("two drivers")

    def test_a_killed_driver_holds_for_seconds(
        self, node: Node, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sirt_ray.artifacts.locks._DEAD_AFTER_SECONDS", 0.6)
        with node("one"):
            self.lease(bucket)
            began = time.monotonic()
            with locked(run_dir(bucket)):
                assert time.monotonic() - began > 0.5
            assert object_store.names(run_dir(bucket)) == []

    def test_one_that_was_killed_long_ago_does_not_hold(self, node: Node, bucket: str) -> None:
        with node("one"):
            self.lease(bucket, seconds=time.time() - 3600)
            began = time.monotonic()
            with locked(run_dir(bucket)):
                assert time.monotonic() - began < 15.0

    @pytest.fixture
    def in_the_background(self) -> Iterator[None]:
        """As by `nohup sirt run ... &`: Ctrl-C is ignored, and SIGTERM is what the command does."""
        handlers = {
            signal.SIGINT: signal.SIG_IGN,
            signal.SIGTERM: signal.default_int_handler,
        }
        before = {number: signal.signal(number, do) for number, do in handlers.items()}
        yield
        for number, did in before.items():
            signal.signal(number, did)

    @pytest.mark.usefixtures("in_the_background")
    def test_a_driver_that_was_taken_for_dead_stops(self, node: Node, bucket: str) -> None:
        with (  # noqa: PT012
            node("one"),
            pytest.raises(ArtifactError, match="another driver has taken over"),
            locked(run_dir(bucket)),
        ):
            self.lease(bucket)
            time.sleep(30)
