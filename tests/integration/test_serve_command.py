"""`sirt serve` as its users meet it: a process of its own, asked by the official OpenAI client."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, Omit, OpenAI
from transformers import AutoTokenizer

from sirt_ray import jobfile
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.core import prompts
from sirt_ray.core.encoding import encode_prompt
from sirt_ray.quickstart import assets
from sirt_ray.types import Question

JOB = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
KEY = "sk-the-tests-own-key"
MODEL = "quickstart"
STUDENT = assets.resolve("quickstart:student")
QUESTION = Question("toy/0", "toy", "Tom has 3 apples and buys 4. How many apples?", (), "7")
MESSAGES: Any = [{"role": "user", "content": prompts.chat_message(QUESTION, "cot")}]
PROMPT = prompts.render(QUESTION, "cot")
# At least eight tokens: a stream needs pieces, whatever the student has to say.
LONG_ENOUGH = {"min_tokens": 8, "return_token_ids": True}
GREEDY: Any = {"model": MODEL, "temperature": 0, "max_tokens": 40, "extra_body": LONG_ENOUGH}
READY_SECONDS = 180
STOPPED_SECONDS = 60
PORT_ATTEMPTS = 3

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@dataclass(frozen=True, slots=True)
class Running:
    process: subprocess.Popen[str]
    port: int
    output: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def told(self) -> str:
        return self.output.read_text()

    def client(self, key: str = KEY, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)


def started(model: str, output: Path, key: str | None = KEY) -> Running:
    """`sirt serve` in a session of its own, as in a terminal; it has just been started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sirt_ray", "serve", model, "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "SIRT_API_KEY"}
    # Tests that are started in the background ignore Ctrl-C, and so would the command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment | ({} if key is None else {"SIRT_API_KEY": key}),
        )
    return Running(process, port, output)


def wait_for(running: Running, text: str) -> bool:
    """Whether `text` is told before the process ends."""
    deadline = time.monotonic() + READY_SECONDS
    while text not in running.told():
        assert time.monotonic() < deadline, running.told()
        if running.process.poll() is not None:
            return text in running.told()
        time.sleep(0.2)
    return True


def ready(model: str, output: Path) -> Running:
    for _ in range(PORT_ATTEMPTS):
        running = started(model, output)
        if wait_for(running, "curl "):
            return running
        # The port was free a moment ago; another program may have been faster.
        assert "is taken" in running.told(), running.told()
    raise AssertionError("every port that was free was taken a moment later")


def assert_stopped(running: Running) -> None:
    assert running.process.wait(STOPPED_SECONDS) == 130, running.told()
    assert running.told().rstrip().endswith("stopped"), running.told()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", running.port))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second round was rolled back; its weights could not even be loaded."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    shutil.copytree(STUDENT, folder / "round_00" / "student")
    broken = folder / "round_01" / "student"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{}")
    event = {"event": "rolled_back", "version": "round_01", "kept": "round_00"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    (folder / "config.yaml").write_text(jobfile.dump(jobfile.load(JOB, (), REGISTRY)))
    return folder


@pytest.fixture(scope="module")
def server(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Stopped by Ctrl-C, which a terminal sends to every process of the command."""
    running = ready(str(run_dir), tmp_path_factory.mktemp("serve") / "output.txt")
    try:
        yield running
        os.killpg(running.process.pid, signal.SIGINT)
        assert_stopped(running)
    finally:
        running.process.kill()
        running.process.wait()
        running.process.wait()


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.client()


def prompt_ids() -> list[int]:
    """What the student would be asked in a run."""
    _, ids = encode_prompt(QUESTION, "cot", AutoTokenizer.from_pretrained(STUDENT))
    return list(ids)


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_model_has_the_runs_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_completions_ask_what_a_run_asks(client: OpenAI) -> None:
    (choice,) = client.completions.create(prompt=PROMPT, **GREEDY).choices
    assert choice.model_dump()["prompt_token_ids"] == prompt_ids()
    assert choice.text and choice.finish_reason in ("stop", "length")


def test_a_message_becomes_the_same_prompt(client: OpenAI) -> None:
    reply = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    assert reply.model_dump()["prompt_token_ids"] == prompt_ids()
    plain = client.completions.create(prompt=PROMPT, **GREEDY)
    assert reply.choices[0].message.content == plain.choices[0].text


def test_streams_say_the_same_piece_by_piece(client: OpenAI) -> None:
    whole = client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text
    pieces = [
        chunk.choices[0].text
        for chunk in client.completions.create(prompt=PROMPT, stream=True, **GREEDY)
    ]
    assert len(pieces) > 3 and "".join(pieces) == whole
    said = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY)
    ]
    assert len(said) > 3 and "".join(said) == whole


def test_several_completions_of_one_prompt(client: OpenAI) -> None:
    several: Any = {"model": MODEL, "n": 4, "seed": 1, "temperature": 1.5, "max_tokens": 12}
    several["extra_body"] = LONG_ENOUGH
    plain = client.completions.create(prompt=PROMPT, **several)
    assert len({choice.text for choice in plain.choices}) > 1
    chat = client.chat.completions.create(messages=MESSAGES, **several)
    assert sorted(choice.index for choice in chat.choices) == [0, 1, 2, 3]


def test_log_probabilities(client: OpenAI) -> None:
    plain = client.completions.create(prompt=PROMPT, logprobs=2, **GREEDY).choices[0].logprobs
    assert plain is not None and plain.tokens and plain.token_logprobs and plain.top_logprobs
    for token, chosen, best in zip(
        plain.tokens, plain.token_logprobs, plain.top_logprobs, strict=True
    ):
        assert len(best) >= 2 and best[token] == chosen <= 0
    chat = client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY
    )
    assert chat.choices[0].logprobs is not None
    said = chat.choices[0].logprobs.content
    assert said is not None and len(said) == len(plain.token_logprobs)
    assert [token.logprob for token in said] == pytest.approx(plain.token_logprobs, abs=1e-4)


def test_no_one_comes_in_without_the_key(server: Running) -> None:
    for client, headers in (
        (server.client("sk-wrong"), None),
        (server.client("sk-unused"), {"Authorization": Omit()}),
    ):
        with pytest.raises(AuthenticationError, match="API key is missing or wrong"):
            client.models.list(extra_headers=headers)
        with pytest.raises(AuthenticationError):
            client.completions.create(prompt=PROMPT, extra_headers=headers, **GREEDY)
        with pytest.raises(AuthenticationError):
            client.chat.completions.create(
                messages=MESSAGES, stream=True, extra_headers=headers, **GREEDY
            )
    assert status(f"{server.url}/metrics") == 401
    assert status(f"{server.url}/health") == 200


def test_a_request_that_cannot_be_served_is_told_why(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="maximum context length"):
        client.completions.create(prompt=PROMPT * 200, **GREEDY)
    with pytest.raises(BadRequestError, match="maximum context length"):
        client.chat.completions.create(
            messages=[{"role": "user", "content": PROMPT * 200}], stream=True, **GREEDY
        )
    with pytest.raises(BadRequestError, match="temperature"):
        client.completions.create(model=MODEL, prompt=PROMPT, temperature=-1)
    with pytest.raises(NotFoundError, match="other"):
        client.completions.create(model="other", prompt=PROMPT)


def test_the_command_that_is_shown_works(server: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl, which the shown command starts, is not installed")
    told = server.told()
    done = subprocess.run(
        ["bash", "-c", told[told.index("curl ") :]],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"SIRT_API_KEY": KEY},
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert KEY not in told


def test_a_second_server_on_the_port_is_refused(server: Running) -> None:
    command = [sys.executable, "-m", "sirt_ray", "serve", str(STUDENT), "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"port {server.port}" in done.stderr and "is taken" in done.stderr


def test_a_stop_during_the_start_is_clean_too(tmp_path: Path) -> None:
    running = started("quickstart:student", tmp_path / "output.txt", key=None)
    try:
        assert wait_for(running, "Starting "), running.told()
        running.process.send_signal(signal.SIGTERM)
        assert_stopped(running)
    finally:
        running.process.kill()
        running.process.wait()
