"""The `teacher` section: one source, what is refused, and what is not in the fingerprint."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sirt_ray.artifacts.store import Artifact, fingerprint
from sirt_ray.config.job import JobConfig
from sirt_ray.config.load import dump, load
from sirt_ray.config.teacher import EndpointConfig, TeacherConfig
from sirt_ray.core import steps
from sirt_ray.core.interfaces import Model, Policy
from tests.helpers.fakes import job

ENDPOINT: dict[str, Any] = {"url": "http://127.0.0.1:8000/v1", "model": "big"}
FILE = {"path": "answers.jsonl"}


def refused(**teacher: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        TeacherConfig.model_validate(teacher)
    return str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "named"),
    [
        ({}, "none"),
        ({"sampling": {"max_tokens": 9}}, "none"),
        ({"model": "m", "endpoint": ENDPOINT}, "model and endpoint"),
        ({"endpoint": ENDPOINT, "demonstrations": FILE}, "endpoint and demonstrations"),
    ],
)
def test_there_is_exactly_one_source(teacher: dict[str, Any], named: str) -> None:
    message = refused(**teacher)
    assert "exactly one of model" in message and f"but has {named}" in message


def test_only_a_model_has_a_revision() -> None:
    assert "revision" in refused(endpoint=ENDPOINT, revision="main")
    assert TeacherConfig(model="m", revision="main").revision == "main"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "127.0.0.1:8000"}, "base URL"),
        ({"url": "ftp://host/v1"}, "base URL"),
        ({"url": "https://me:secret@host/v1"}, "environment variable"),
        ({"url": "https://host/v1?key=secret"}, "environment variable"),
        ({"extra_body": {"messages": []}}, "must not hold messages"),
        ({"extra_body": {"stream": True}}, "must not hold stream"),
        ({"max_cost": 5}, "price_per_million_prompt_tokens"),
        ({"max_cost": 5, "price_per_million_prompt_tokens": 1}, "price_per_million_completion"),
        ({"api": "responses"}, "chat"),
        ({"api_key": "secret"}, "api_key"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused(change: dict[str, Any], words: str) -> None:
    assert words in refused(endpoint=ENDPOINT | change)


def test_a_source_is_named() -> None:
    assert TeacherConfig(model="m").source == "m"
    assert TeacherConfig.model_validate({"demonstrations": FILE}).source == "answers.jsonl"
    assert TeacherConfig.model_validate({"endpoint": ENDPOINT}).source == "endpoint:chat:big"


def demonstrations_key(endpoint: dict[str, Any], **teacher: Any) -> str:
    """Return the fingerprint of the demonstrations of a job with this teacher."""
    document = {"teacher": {"endpoint": ENDPOINT | endpoint, **teacher}}
    made: JobConfig = job(**document)
    assert made.teacher.endpoint is not None
    questions = Artifact("questions", made.output, "abc", {})  # type: ignore[arg-type]
    teacher = Model(Policy("teacher", made.teacher.source), made.teacher.endpoint.identity)
    return fingerprint(steps.demonstrations(made, teacher, questions).inputs)


@pytest.mark.parametrize(
    "change",
    [
        {"url": "https://elsewhere.example/v1"},
        {"api_key_env": "ANOTHER"},
        {"api_key_env": None},
        {"requests_per_minute": 5},
        {"max_in_flight": 1},
        {"timeout_s": 1},
        {"max_retries": 0},
        {"max_tokens_total": 1000},
        {"price_per_million_prompt_tokens": 1.0},
        {"cache": "/elsewhere"},
    ],
)
def test_where_how_fast_and_how_dear_is_no_identity(change: dict[str, Any]) -> None:
    assert demonstrations_key(change) == demonstrations_key({})


@pytest.mark.parametrize(
    "change", [{"model": "bigger"}, {"api": "completions"}, {"extra_body": {"top_k": 1}}]
)
def test_what_answers_is(change: dict[str, Any]) -> None:
    assert demonstrations_key(change) != demonstrations_key({})


def test_sampling_is() -> None:
    assert demonstrations_key({}, sampling={"max_tokens": 9}) != demonstrations_key({})


def test_the_order_of_extra_fields_is_not() -> None:
    one, other = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    assert demonstrations_key({"extra_body": one}) == demonstrations_key({"extra_body": other})


def test_a_resolved_job_names_the_variable_and_not_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    resolved = dump(job(teacher={"endpoint": ENDPOINT}))
    assert "api_key_env: OPENAI_API_KEY" in resolved and "sk-very-secret" not in resolved


def test_an_endpoint_has_a_key_by_default() -> None:
    assert EndpointConfig.model_validate(ENDPOINT).api_key_env == "OPENAI_API_KEY"


def test_a_null_of_extra_body_reaches_the_endpoint_from_file_and_command_line(
    tmp_path: Path,
) -> None:
    extra = "{max_tokens: null, max_completion_tokens: 512}"
    base, path = tmp_path / "base.yaml", tmp_path / "job.yaml"
    base.write_text(
        "data: {train: [gsm8k], evaluate: [gsm8k]}\nstudent: {model: small}\n"
        f"teacher: {{endpoint: {{url: 'http://h/v1', model: big, extra_body: {extra}}}}}\n"
    )
    path.write_text("base: base.yaml\nname: mine\n")
    read = load(path, ["teacher.endpoint.extra_body.seed=null"], ["gsm8k"])
    path.write_text(dump(read))
    for found in (read, load(path, [], ["gsm8k"])):
        assert found.teacher.endpoint is not None
        assert found.teacher.endpoint.extra_body == {
            "max_tokens": None,
            "max_completion_tokens": 512,
            "seed": None,
        }
