"""Real vLLM engines behind real Serve: what they sample, and that their weights change while they
run. The model has random weights, so nothing is learned here.
"""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from ray.exceptions import RayError
from transformers import AutoTokenizer

from sirt_ray.artifacts import parquet
from sirt_ray.config.resources import EngineConfig
from sirt_ray.core.encoding import encode_prompt
from sirt_ray.core.interfaces import Counts, Policy
from sirt_ray.errors import ArtifactError, StageError
from sirt_ray.on_ray.engine.protocol import SampleRequest
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.on_ray.sampling.prompts import TokenPrompter
from sirt_ray.on_ray.sampling.sampler import Sampler
from sirt_ray.types import Question
from tests.helpers.progress import RecordedProgress
from tests.helpers.sampling import (
    MAX_TOKENS,
    PLAN,
    QUESTIONS,
    engine_process,
    grader,
    greedy_reference,
    question,
    start_sampler,
)
from tests.helpers.sleeping_engine import wait_until
from tests.helpers.tiny import save_talker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """With tied embeddings; those of `test_weights.py` have output heads of their own."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: save_talker(folder / name, seed, tied=True)
        for seed, name in enumerate(("one", "two"))
    }


@pytest.fixture(scope="module")
def sampler(
    ray_cluster: None, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sampler]:
    policy = Policy("one", str(checkpoints["one"]))
    pointers = tmp_path_factory.mktemp("pointers")
    sampler = start_sampler(
        "student", policy, EngineConfig(), run="test", pointers=pointers, samples_per_question=8
    )
    yield sampler
    sampler.stop()


@pytest.fixture(scope="module")
def server(sampler: Sampler) -> ModelServer:
    return sampler.server


def sampled(
    sampler: Sampler,
    out: Path,
    checkpoint: Path,
    questions: Sequence[Question] = QUESTIONS,
    bars: RecordedProgress | None = None,
    block_size: int = 4,
) -> Counts:
    return sampler.sample(
        questions,
        PLAN,
        TokenPrompter(AutoTokenizer.from_pretrained(checkpoint)),
        grader(),
        out=out,
        block_size=block_size,
        name="samples",
        progress=bars or RecordedProgress(),
    )


def without_usage(counts: Counts) -> Counts:
    return {name: count for name, count in counts.items() if name != "usage"}


@pytest.fixture(scope="module")
def whole(
    sampler: Sampler, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Counts, RecordedProgress]:
    out, bars = tmp_path_factory.mktemp("whole") / "samples", RecordedProgress()
    return out, sampled(sampler, out, checkpoints["one"], bars=bars), bars


class TestRows:
    def test_every_question_kind_and_index_is_there_once(
        self, whole: tuple[Path, Counts, RecordedProgress]
    ) -> None:
        rows = parquet.read(whole[0])
        keys = [(row["question_id"], row["prompt_kind"], row["sample_index"]) for row in rows]
        asked = [(kind, index) for kind, n in PLAN.completions.items() for index in range(n)]
        assert keys == [(q.id, kind, index) for q in QUESTIONS for kind, index in asked]
        assert {row["model_version"] for row in rows} == {"one"}

    def test_ids_text_and_stop_reason_agree(
        self, whole: tuple[Path, Counts, RecordedProgress], checkpoints: dict[str, Path]
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(checkpoints["one"])
        by_id = {q.id: q for q in QUESTIONS}
        reasons = set()
        for row in parquet.read(whole[0]):
            prompt, prompt_ids = encode_prompt(
                by_id[row["question_id"]], row["prompt_kind"], tokenizer
            )
            assert (row["prompt"], tuple(row["prompt_ids"])) == (prompt, tuple(prompt_ids))
            ids = row["completion_ids"]
            reasons.add(row["stop_reason"])
            if row["stop_reason"] == "stop":
                assert ids.pop() == tokenizer.eos_token_id
            else:
                assert len(ids) == MAX_TOKENS
            assert tokenizer.eos_token_id not in ids
            assert row["completion"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert reasons == {"stop", "length"}

    def test_completions_of_one_request_differ(
        self, whole: tuple[Path, Counts, RecordedProgress]
    ) -> None:
        rows = parquet.read(whole[0])[:8]
        assert len({tuple(row["completion_ids"]) for row in rows}) == 8

    def test_counts_are_those_of_the_rows(
        self, whole: tuple[Path, Counts, RecordedProgress]
    ) -> None:
        out, counts, bars = whole
        rows = parquet.read(out)
        assert counts["questions"] == len(QUESTIONS)
        assert counts["completions"] == len(rows) == 90
        for verdict in ("right", "wrong", "unparseable"):
            assert counts[verdict] == sum(row["verdict"] == verdict for row in rows)
        assert counts["truncated"] == sum(row["stop_reason"] == "length" for row in rows)
        assert counts["completion_tokens"] == sum(len(row["completion_ids"]) for row in rows)
        assert counts["prompt_tokens"] == sum(
            len(row["prompt_ids"]) for row in rows if row["sample_index"] == 0
        )
        assert (counts["dropped"], counts["retries"]) == ({}, 0)
        assert [done for done, _ in bars.shown][-1] == len(QUESTIONS)
        assert {"tokens/s", "questions/s", "replicas", "queued"} <= set(bars.shown[-1][1])
        assert counts["usage"]["tokens_per_second"] > 0


class TestResume:
    def test_finished_parts_stay_and_the_rest_is_sampled_the_same(
        self,
        sampler: Sampler,
        whole: tuple[Path, Counts, RecordedProgress],
        checkpoints: dict[str, Path],
        tmp_path: Path,
    ) -> None:
        """Killed after the second of three blocks; continued one question at a time, backwards in
        company: neither may change a token."""
        out = tmp_path / "samples"
        shutil.copytree(whole[0], out)
        kept = out / "part-0000004.parquet"
        for part in out.glob("*.parquet"):
            if part != kept:
                part.unlink()
        (out / ".part-0000008.parquet.partial").write_bytes(b"half a part")
        before = (kept.read_bytes(), kept.stat().st_mtime_ns)

        counts = sampled(sampler, out, checkpoints["one"], block_size=1)

        assert (kept.read_bytes(), kept.stat().st_mtime_ns) == before
        assert len(list(out.glob("*.parquet"))) == 7
        assert parquet.read(out) == parquet.read(whole[0])
        assert without_usage(counts) == without_usage(whole[1])

    def test_nothing_is_left_to_do(
        self,
        sampler: Sampler,
        whole: tuple[Path, Counts, RecordedProgress],
        checkpoints: dict[str, Path],
    ) -> None:
        out, counts, _ = whole
        before = {part: part.stat().st_mtime_ns for part in out.glob("*.parquet")}
        again = sampled(sampler, out, checkpoints["one"])
        assert without_usage(again) == without_usage(counts)
        assert {part: part.stat().st_mtime_ns for part in out.glob("*.parquet")} == before

    def test_parts_of_other_questions_are_refused(
        self,
        sampler: Sampler,
        whole: tuple[Path, Counts, RecordedProgress],
        checkpoints: dict[str, Path],
    ) -> None:
        with pytest.raises(ArtifactError, match="other questions"):
            sampled(sampler, whole[0], checkpoints["one"], QUESTIONS[::-1])


class TestRefusals:
    def test_a_prompt_that_is_too_long_is_counted_and_left_out(
        self, sampler: Sampler, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        questions = [question(0), question(1, length=600)]
        counts = sampled(sampler, tmp_path / "samples", checkpoints["one"], questions)
        assert counts["dropped"] == {"prompt_too_long": 1}
        assert (counts["questions"], counts["completions"]) == (2, 9)

    def test_nothing_but_refusals_is_an_error_and_leaves_nothing(
        self, sampler: Sampler, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "samples"
        with pytest.raises(StageError, match=r"none of the 2 questions.*max_tokens"):
            sampled(sampler, out, checkpoints["one"], [question(0, 600), question(1, 600)])
        assert list(out.glob("*.parquet")) == []

    def test_a_version_that_nobody_serves_is_an_error(self, server: ModelServer) -> None:
        request = SampleRequest("", (1, 9), 1, 0, 0.0, 1.0, 4, version="round_07")
        with pytest.raises(StageError, match="round_07"):
            server.handle.sample.remote((request,)).result(timeout_s=60)


def wait_for_another_engine(server: ModelServer, engine: int) -> None:
    """Wait until a process other than `engine`, which was killed, is the server's engine."""

    def replaced() -> bool:
        with contextlib.suppress(RayError, StopIteration, psutil.Error):
            return engine_process(server) != engine
        return False

    wait_until(replaced, 120, "a new engine")


def test_an_engine_that_is_killed_costs_nothing_but_time(
    sampler: Sampler, server: ModelServer, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """More questions than decode together, so that many are under way when the first is done."""
    questions = [question(row) for row in range(100)]
    sampled(sampler, tmp_path / "undisturbed", checkpoints["one"], questions, block_size=50)
    engine = engine_process(server)
    out = tmp_path / "samples"

    def strike() -> None:
        wait_until(lambda: bool(parquet.files(out)), 60, "the first part")
        os.kill(engine, signal.SIGKILL)

    striking = threading.Thread(target=strike)
    striking.start()
    sampled(sampler, out, checkpoints["one"], questions, block_size=1)
    striking.join()
    assert parquet.read(out) == parquet.read(tmp_path / "undisturbed")
    wait_for_another_engine(server, engine)


def greedy(server: ModelServer, prompt: tuple[int, ...]) -> tuple[int, ...]:
    request = SampleRequest("", prompt, 1, 0, 0.0, 1.0, MAX_TOKENS, server.version)
    (reply,) = server.handle.sample.remote((request,)).result(timeout_s=60)
    (choice,) = reply.choices
    return choice.completion_ids


def test_weights_change_on_the_running_engine(
    server: ModelServer, checkpoints: dict[str, Path]
) -> None:
    """The second visit to a path must not find stale weights either."""
    prompts = [(1, *range(first, first + 20)) for first in (40, 90, 140)]
    expected = {
        name: [greedy_reference(path, prompt) for prompt in prompts]
        for name, path in checkpoints.items()
    }
    assert expected["one"] != expected["two"]
    assert [greedy(server, prompt) for prompt in prompts] == expected["one"]
    processes = server.handle.facts.remote().result(timeout_s=60).process_ids
    for name in ("two", "one"):
        server.load(Policy(name, str(checkpoints[name])))
        assert server.version == name
        assert [greedy(server, prompt) for prompt in prompts] == expected[name]
    assert server.handle.facts.remote().result(timeout_s=60).process_ids == processes


def test_an_engine_ends_with_its_replica_also_where_the_node_does_not_see_to_it(
    server: ModelServer,
) -> None:
    """As where Ray's head is lost, and the raylet leaves before the replica does."""
    engine = psutil.Process(engine_process(server))
    replica = psutil.Process(server.handle.facts.remote().result(timeout_s=60).process_ids[0])
    raylet = replica.parent()
    assert raylet and raylet.name() == "raylet"
    raylet.suspend()
    try:
        replica.kill()
        wait_until(lambda: not engine.is_running(), 30, "the end of the engine")
    finally:
        raylet.resume()
    wait_for_another_engine(server, engine.pid)
