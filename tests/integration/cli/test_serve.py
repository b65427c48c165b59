"""`sirt serve` as its users run it: its own process, queried with the official OpenAI client."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, Omit, OpenAI
from transformers import AutoTokenizer

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import load
from sirt_ray.core import prompts
from sirt_ray.core.encoding import encode_prompt
from sirt_ray.quickstart import assets
from sirt_ray.types import Question
from tests.helpers.paths import JOBS, TESTS
from tests.helpers.serve_process import KEY, Running, assert_stopped, ready, started, wait_for

JOB = JOBS / "quickstart.yaml"
LM_EVAL = TESTS / "lm_eval"
MODEL = "quickstart"
STUDENT = assets.resolve("quickstart:student")
QUESTION = Question("toy/0", "toy", "Tom has 3 apples and buys 4. How many apples?", (), "7")
MESSAGES: Any = [{"role": "user", "content": prompts.chat_message(QUESTION, "cot")}]
PROMPT = prompts.render(QUESTION, "cot")
# At least eight tokens: a stream needs pieces, whatever the student answers.
LONG_ENOUGH = {"min_tokens": 8, "return_token_ids": True}
GREEDY: Any = {"model": MODEL, "temperature": 0, "max_tokens": 40, "extra_body": LONG_ENOUGH}

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


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
    (folder / "config.yaml").write_text(load.dump(load.load(JOB, (), REGISTRY)))
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
    """The prompt of the student in a run."""
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


def test_completions_have_the_prompts_of_a_run(client: OpenAI) -> None:
    (choice,) = client.completions.create(prompt=PROMPT, **GREEDY).choices
    assert choice.model_dump()["prompt_token_ids"] == prompt_ids()
    assert choice.text and choice.finish_reason in ("stop", "length")


def test_a_message_becomes_the_same_prompt(client: OpenAI) -> None:
    reply = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    assert reply.model_dump()["prompt_token_ids"] == prompt_ids()
    plain = client.completions.create(prompt=PROMPT, **GREEDY)
    assert reply.choices[0].message.content == plain.choices[0].text


def test_streams_have_the_same_text_in_pieces(client: OpenAI) -> None:
    whole = client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text
    pieces = [
        chunk.choices[0].text
        for chunk in client.completions.create(prompt=PROMPT, stream=True, **GREEDY)
    ]
    assert len(pieces) > 3 and "".join(pieces) == whole
    found = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY)
    ]
    assert len(found) > 3 and "".join(found) == whole


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
    found = chat.choices[0].logprobs.content
    assert found is not None and len(found) == len(plain.token_logprobs)
    assert [token.logprob for token in found] == pytest.approx(plain.token_logprobs, abs=1e-4)


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


def test_a_request_that_cannot_be_served_gets_the_reason(client: OpenAI) -> None:
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
    output = server.output()
    done = subprocess.run(
        ["bash", "-c", output[output.index("curl ") :]],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"SIRT_API_KEY": KEY},
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert KEY not in output


def harness(server: Running, out: Path, model: str, tasks: str, **settings: object) -> None:
    """lm-evaluation-harness on tasks of `tests/lm_eval`, started as in the README."""
    arguments = {"model": MODEL, "num_concurrent": 4, **settings}
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", tasks]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--include_path", ".", "--output_path", str(out), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hub"), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [*command, "--apply_chat_template"] if "chat" in model else command,
        cwd=LM_EVAL,
        env=os.environ | offline | {"OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def samples_of_harness(out: Path, task: str) -> list[dict[str, Any]]:
    (samples,) = out.glob(f"*/samples_{task}_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


@pytest.fixture(scope="module")
def harness_by_tokens(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the harness writes of both tasks, which it sends as tokens in one run."""
    out, tasks = tmp_path_factory.mktemp("harness"), "sirt_word_problems,sirt_letter_choices"
    harness(server, out, "local-completions", tasks, **by_tokens(server))
    return out


@pytest.mark.parametrize("chat", [False, True])
def test_lm_evaluation_harness_generates(
    server: Running, client: OpenAI, harness_by_tokens: Path, tmp_path: Path, chat: bool
) -> None:
    """The text of each answer is what a run would sample; so is its prompt."""
    if chat:
        url = f"{server.url}/v1/chat/completions"
        harness(server, tmp_path, "local-chat-completions", "sirt_word_problems", base_url=url)
    rows = samples_of_harness(tmp_path if chat else harness_by_tokens, "sirt_word_problems")
    assert len(rows) == 8
    for row in rows:
        question = REGISTRY["word_problems"].to_question(row["doc"], "")
        prompt = prompts.render(question, "cot")
        assert chat or row["arguments"]["gen_args_0"]["arg_0"] == prompt
        plain = client.completions.create(
            model=MODEL, prompt=prompt, temperature=0, max_tokens=96
        ).choices[0]
        assert row["resps"] == [[plain.text]]
        assert row["target"] == question.reference
        last = re.findall(r"-?[0-9]+", plain.text)[-1:]
        assert row["exact_match"] == float(last == [question.reference])


def test_lm_evaluation_harness_weighs_options(client: OpenAI, harness_by_tokens: Path) -> None:
    """By the log-probability of each letter, which is the server's for it as the next token."""
    rows = samples_of_harness(harness_by_tokens, "sirt_letter_choices")
    assert len(rows) == 8
    for row in rows:
        question = REGISTRY["letter_choices"].to_question(row["doc"], "")
        prompt = prompts.render(question, "plain")
        assert row["arguments"]["gen_args_0"] == {"arg_0": prompt, "arg_1": " A"}
        weights = [float(weight) for ((weight, _),) in row["resps"]]
        best = max(range(len(weights)), key=weights.__getitem__)
        assert row["acc"] == float("ABCDE"[best] == question.reference)
        for letter, weight in zip("ABCDE", weights, strict=False):
            echoed = client.completions.create(
                model=MODEL, prompt=f"{prompt} {letter}", echo=True, logprobs=1, max_tokens=1
            ).choices[0]
            assert echoed.logprobs is not None and echoed.logprobs.token_logprobs is not None
            assert weight == pytest.approx(echoed.logprobs.token_logprobs[-2], abs=1e-3)


def by_tokens(server: Running) -> dict[str, object]:
    """Settings with which the harness sends the tokens that a run would send, BOS included."""
    return {
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": STUDENT,
        "tokenized_requests": True,
        "add_bos_token": True,
    }


def test_a_second_server_on_the_port_is_refused(server: Running) -> None:
    command = [sys.executable, "-m", "sirt_ray", "serve", str(STUDENT), "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"port {server.port}" in done.stderr and "is taken" in done.stderr


def test_a_stop_during_the_start_is_clean_too(tmp_path: Path) -> None:
    running = started("quickstart:student", tmp_path / "output.txt", key=None)
    try:
        assert wait_for(running, "Starting "), running.output()
        running.process.send_signal(signal.SIGTERM)
        assert_stopped(running)
    finally:
        running.process.kill()
        running.process.wait()
