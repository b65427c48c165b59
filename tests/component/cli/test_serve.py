"""What `sirt serve` decides before anything starts: which model, which port, who may come in."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli.main import main
from sirt_ray.config import load
from sirt_ray.errors import ConfigError, ModelError
from sirt_ray.on_ray.serve.address import HttpAddress
from sirt_ray.on_ray.serve.auth import KeyCheck, RequireKey, open_host_warning, take_key
from sirt_ray.on_ray.serve.resolve import find_model, last_kept_student
from sirt_ray.report.journal import RunJournal
from tests.helpers.paths import JOBS
from tests.helpers.ports import free_port

JOB = JOBS / "quickstart.yaml"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two rounds, both of them kept, without the weights."""
    job = load.load(JOB, ["resources.student.max_num_seqs=7"], REGISTRY)
    folder = tmp_path / "run"
    for round_number in range(3):
        student(folder, round_number).mkdir(parents=True)
        (student(folder, round_number) / "config.json").write_text("{}")
        happened(folder, "finished", artifact=f"round_{round_number:02d}/student")
        happened(folder, "finished", artifact=f"round_{round_number:02d}/evaluation")
    (folder / "config.yaml").write_text(load.dump(job))
    return folder


def student(run_dir: Path, round_number: int) -> Path:
    return run_dir / f"round_{round_number:02d}" / "student"


def happened(run_dir: Path, kind: str, **fields: object) -> None:
    with (run_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": kind, **fields}) + "\n")


class TestWhichStudent:
    def test_the_last_round(self, run_dir: Path) -> None:
        assert last_kept_student(run_dir, 2) == student(run_dir, 2)

    def test_a_round_that_was_rolled_back_is_skipped(self, run_dir: Path) -> None:
        happened(run_dir, "rolled_back", version="round_02", kept="round_01")
        assert last_kept_student(run_dir, 2) == student(run_dir, 1)
        happened(run_dir, "rolled_back", version="round_01", kept="round_00")
        assert last_kept_student(run_dir, 2) == student(run_dir, 0)

    def test_the_journal_of_a_run_is_understood(self, run_dir: Path) -> None:
        journal = RunJournal(run_dir, Console(quiet=True))
        journal.event("rolled_back", "accuracy fell", version="round_02", kept="round_01")
        assert last_kept_student(run_dir, 2) == student(run_dir, 1)
        counts = {"test": {"sums": {"cot": {"accuracy": 0.5, "stderr": 0.1, "n": 25}}}}
        journal.artifact("reused", "round_02/evaluation", counts=counts)
        assert last_kept_student(run_dir, 2) == student(run_dir, 2)

    def test_the_last_verdict_on_a_round_counts(self, run_dir: Path) -> None:
        happened(run_dir, "rolled_back", version="round_02", kept="round_01")
        happened(run_dir, "finished", artifact="round_02/student")
        assert last_kept_student(run_dir, 2) == student(run_dir, 1)
        happened(run_dir, "finished", artifact="round_02/evaluation")
        assert last_kept_student(run_dir, 2) == student(run_dir, 2)

    def test_a_round_that_an_earlier_job_has_left_is_not_this_jobs(self, run_dir: Path) -> None:
        assert last_kept_student(run_dir, 1) == student(run_dir, 1)

    def test_a_run_that_has_only_been_tuned(self, run_dir: Path) -> None:
        (run_dir / "events.jsonl").unlink()
        happened(run_dir, "finished", artifact="round_00/student")
        for round_number in (1, 2):
            (student(run_dir, round_number) / "config.json").unlink()
        assert last_kept_student(run_dir, 2) == student(run_dir, 0)

    def test_students_without_events_are_taken_as_they_are(self, run_dir: Path) -> None:
        (run_dir / "events.jsonl").unlink()
        assert last_kept_student(run_dir, 2) == student(run_dir, 2)

    def test_a_line_that_was_cut_off_is_no_obstacle(self, run_dir: Path) -> None:
        with (run_dir / "events.jsonl").open("a") as file:
            file.write('{"event": "rolled_b')
        assert last_kept_student(run_dir, 2) == student(run_dir, 2)

    def test_a_run_without_a_student(self, run_dir: Path) -> None:
        for round_number in range(3):
            (student(run_dir, round_number) / "config.json").unlink()
        with pytest.raises(ModelError, match=r"no finished student.*round_00/student"):
            last_kept_student(run_dir, 2)


class TestWhichModel:
    def test_a_run_gives_its_name_its_student_and_its_engine(self, run_dir: Path) -> None:
        found = find_model(str(run_dir))
        assert (found.name, found.path) == ("quickstart", str(student(run_dir, 2)))
        assert found.engine.max_num_seqs == 7

    def test_options_and_a_name_go_over_it(self, run_dir: Path) -> None:
        found = find_model(str(run_dir), "mine", ["max_model_len=99"])
        assert found.name == "mine"
        assert (found.engine.max_num_seqs, found.engine.max_model_len) == (7, 99)

    def test_a_models_folder(self, run_dir: Path) -> None:
        found = find_model(str(student(run_dir, 1)))
        assert (found.name, found.path) == ("student", str(student(run_dir, 1)))

    def test_names(self) -> None:
        assert find_model("someone/model").path == "someone/model"
        found = find_model("quickstart:student")
        assert found.name == "quickstart:student"
        assert (Path(found.path) / "config.json").is_file()

    def test_options_that_do_not_exist_are_all_named(self) -> None:
        with pytest.raises(ConfigError, match=r"max_len=9.*cpus=2.*max_model_len"):
            find_model("quickstart:student", options=["max_len=9", "cpus=2"])

    def test_options_that_cannot_be(self) -> None:
        with pytest.raises(ConfigError, match="--set num_cpus=0: num_cpus"):
            find_model("quickstart:student", options=["num_cpus=0"])


class TestKey:
    def test_it_is_taken_out_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SIRT_API_KEY", "a-key")
        key = take_key(None)
        assert key is not None and "SIRT_API_KEY" not in os.environ
        assert key.matches(b"a-key")
        assert not key.matches(b"a-kex") and not key.matches(b"")
        assert "a-key" not in repr(key)

    def test_none_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SIRT_API_KEY", raising=False)
        assert take_key(None) is None

    def test_one_that_was_named_and_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MY_KEY", raising=False)
        with pytest.raises(ConfigError, match="MY_KEY"):
            take_key("MY_KEY")

    @pytest.mark.parametrize("text", ["", "two words", "line\nbreak", "schlüssel"])
    def test_one_that_no_client_could_send(
        self, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("MY_KEY", text)
        with pytest.raises(ConfigError, match="MY_KEY"):
            take_key("MY_KEY")

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.9", "::1", "localhost"])
    def test_loopback_needs_no_warning(self, host: str) -> None:
        assert open_host_warning(host, None) is None

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
    def test_an_open_host_without_a_key_does(self, host: str) -> None:
        assert "ANYONE" in (open_host_warning(host, None) or "")
        assert open_host_warning(host, KeyCheck.of("key")) is None


class TestWhoMayComeIn:
    @pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer wrong", b"Basic key"])
    @pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/invocations"])
    def test_not_without_the_key(self, header: bytes | None, path: str) -> None:
        status, body = answered(KeyCheck.of("key"), path, header)
        assert status == 401
        assert json.loads(body)["error"]["code"] == "invalid_api_key"

    @pytest.mark.parametrize("header", [b"Bearer key", b"bearer key", b"Bearer  key "])
    def test_with_the_key(self, header: bytes) -> None:
        assert answered(KeyCheck.of("key"), "/v1/models", header) == (200, b"inside")

    def test_health_is_open(self) -> None:
        assert answered(KeyCheck.of("key"), "/health", None) == (200, b"inside")

    def test_everything_is_open_without_a_key(self) -> None:
        assert answered(None, "/v1/models", None) == (200, b"inside")

    def test_websockets_are_closed(self) -> None:
        sent = responses(
            KeyCheck.of("key"), {"type": "websocket", "path": "/health", "headers": []}
        )
        assert [message["type"] for message in sent] == ["websocket.close"]


def answered(key: KeyCheck | None, path: str, authorization: bytes | None) -> tuple[int, bytes]:
    headers = [] if authorization is None else [(b"authorization", authorization)]
    start, body = responses(key, {"type": "http", "path": path, "headers": headers})
    return start["status"], body["body"]


def responses(key: KeyCheck | None, scope: dict[str, Any]) -> list[Any]:
    """What a client is sent by an application that answers everything."""
    sent: list[Any] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(RequireKey(inside, key)(scope, receive, send))
    return sent


@pytest.fixture(params=[False, True], ids=["alone", "shares its port"])
def taken_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port on which a program listens, as Ray Serve does it or as others do."""
    with socket.socket() as listener:
        if request.param:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


class TestHttpAddress:
    def test_a_taken_port_is_refused_before_anything_starts(
        self, taken_port: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["serve", "quickstart:student", "--port", str(taken_port)]) == 1
        output = capsys.readouterr()
        assert f"port {taken_port} of 127.0.0.1 is taken" in output.err and "--port" in output.err
        assert output.out == ""

    def test_another_address_of_the_same_port_is_free(self, taken_port: int) -> None:
        assert HttpAddress("127.0.0.1", taken_port).bind_error() is not None
        assert HttpAddress("127.0.0.2", taken_port).bind_error() is None

    @pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
    def test_a_host_that_is_not_this_machine(self, host: str) -> None:
        assert "--host" in (HttpAddress(host, 8000).bind_error() or "")

    def test_urls_that_a_client_can_use(self) -> None:
        assert HttpAddress("127.0.0.1", 80).url == "http://127.0.0.1:80/v1"
        assert HttpAddress("0.0.0.0", 80).url == "http://127.0.0.1:80/v1"
        assert HttpAddress("::", 80).url == "http://[::1]:80/v1"

    @pytest.mark.parametrize("port", ["0", "65536", "http"])
    def test_no_port(self, port: str) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["serve", "quickstart:student", "--port", port])
        assert caught.value.code == 2


def test_what_cannot_be_served_is_bad_input(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(free_port())
    for round_number in range(3):
        (student(run_dir, round_number) / "config.json").unlink()
    for model in (str(run_dir), str(tmp_path), "./nowhere", "quickstart:tutor"):
        assert main(["serve", model, "--port", port]) == 2
        assert capsys.readouterr().err.startswith("error: ")
