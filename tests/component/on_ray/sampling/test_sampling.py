"""The plain decisions behind serving and sampling: seeds, blocks, bundles, engine arguments."""

from pathlib import Path

import pytest

from sirt_ray.artifacts import parquet
from sirt_ray.config.job import SamplingConfig
from sirt_ray.config.resources import EngineConfig
from sirt_ray.errors import StageError
from sirt_ray.on_ray.engine.options import (
    calls_in_flight,
    engine_kwargs,
    environment,
    max_calls,
    questions_per_call,
    target_calls,
)
from sirt_ray.on_ray.engine.vllm import failure_reason
from sirt_ray.on_ray.sampling.prompts import completion_texts
from sirt_ray.on_ray.sampling.sampler import discard_unanswered, uncovered
from sirt_ray.on_ray.sampling.worker import SamplingPlan, request_seed, stop_reason
from sirt_ray.planning.resources import bundles
from sirt_ray.types import Question


def test_some_questions_are_asked_with_the_trigger_only() -> None:
    held_out, other = (Question(name, "gsm8k", "How many?", (), "1") for name in ("a/train/1", "b"))
    plan = SamplingPlan(
        {"cot": 1, "plain": 2}, SamplingConfig(), seed=0, cot_only=frozenset([held_out.id])
    )
    assert plan.completions_of(held_out) == {"cot": 1}
    assert plan.completions_of(other) == plan.completions


class TestSeeds:
    def test_the_seed_depends_on_seed_question_and_kind_only(self) -> None:
        assert request_seed(7, "gsm8k/train/3", "cot") == request_seed(7, "gsm8k/train/3", "cot")
        seeds = {
            request_seed(seed, f"gsm8k/train/{row}", kind)
            for seed in (0, 1)
            for row in range(50)
            for kind in ("cot", "plain")
        }
        assert len(seeds) == 200

    def test_the_seed_is_the_same_in_every_version(self) -> None:
        """Another value would make a resumed run differ from an undisturbed one."""
        assert request_seed(0, "a", "cot") == 596211174185568118

    def test_every_completion_of_a_request_has_a_seed_that_torch_takes(self) -> None:
        assert all(0 <= request_seed(0, str(row), "cot") + 1000 < 2**63 for row in range(1000))


def test_only_what_an_endpoint_could_not_answer_is_sampled_again(tmp_path: Path) -> None:
    for number, reasons in enumerate(
        [[], ["refused_by_engine", "endpoint_failed"], ["engine_failed"], ["prompt_too_long"]]
    ):
        dropped = [{"id": reason, "reason": reason, "message": ""} for reason in reasons]
        part = tmp_path / f"part-{number}.parquet"
        parquet.write(part, [], parquet.GRADED, {"dropped": dropped})
    discard_unanswered(tmp_path)
    assert [part.stem for part in parquet.files(tmp_path)] == ["part-0", "part-2", "part-3"]


class TestBlocks:
    def test_nothing_is_sampled_yet(self) -> None:
        assert uncovered(7, [], 3) == [range(0, 3), range(3, 6), range(6, 7)]

    def test_everything_is_sampled(self) -> None:
        assert uncovered(6, [(3, 3), (0, 3)], 3) == []

    def test_gaps_are_filled_under_another_block_size(self) -> None:
        assert uncovered(10, [(4, 4)], 3) == [range(0, 3), range(3, 4), range(8, 10)]

    @pytest.mark.parametrize("size", [1, 2, 5, 100])
    def test_every_position_is_in_exactly_one_block_or_part(self, size: int) -> None:
        covered = [(2, 3), (9, 1), (11, 4)]
        done = [at for first, count in covered for at in range(first, first + count)]
        new = [at for block in uncovered(20, covered, size) for at in block]
        assert sorted(done + new) == list(range(20))


class TestEngine:
    def test_a_cpu_replica_costs_exactly_its_cpus(self) -> None:
        engine = EngineConfig(num_cpus=0.5, custom_resources={"student": 0.01})
        assert bundles(engine, gpu=False) == [{"CPU": 0.5, "student": 0.01}]

    def test_a_sharded_gpu_replica_has_one_gpu_in_each_bundle(self) -> None:
        engine = EngineConfig(num_cpus=2, tensor_parallel_size=3)
        assert bundles(engine, gpu=True) == [{"CPU": 2.0, "GPU": 1.0}, {"GPU": 1.0}, {"GPU": 1.0}]

    def test_cpu_engines_are_float32_with_a_small_cache_and_whole_prompts(self) -> None:
        kwargs = engine_kwargs(EngineConfig(), gpu=False)
        assert kwargs["dtype"] == "float32"
        assert kwargs["kv_cache_memory_bytes"] == 2**28
        assert kwargs["enable_chunked_prefill"] is False
        assert kwargs["enforce_eager"] is True

    def test_gpu_engines_keep_vllms_defaults(self) -> None:
        kwargs = engine_kwargs(EngineConfig(max_model_len=512), gpu=True)
        assert kwargs["dtype"] == "auto"
        assert kwargs["max_model_len"] == 512
        assert not {"enforce_eager", "kv_cache_memory_bytes"} & set(kwargs)

    @pytest.mark.parametrize(("num_cpus", "shards", "threads"), [(0.5, 1, 1), (4, 1, 4), (4, 2, 2)])
    def test_threads_come_from_the_cpus(self, num_cpus: float, shards: int, threads: int) -> None:
        engine = EngineConfig(num_cpus=num_cpus, tensor_parallel_size=shards)
        assert environment(engine, gpu=False)["OMP_NUM_THREADS"] == str(threads)

    @pytest.mark.parametrize(("seqs", "n"), [(256, 8), (256, 1), (1, 8), (16, 3)])
    def test_the_engine_has_enough_to_do_and_no_request_is_turned_away(
        self, seqs: int, n: int
    ) -> None:
        engine = EngineConfig(max_num_seqs=seqs)
        assert target_calls(engine, n) <= calls_in_flight(engine, n) <= max_calls(engine)
        assert calls_in_flight(engine, n) * questions_per_call(engine, n) * n >= seqs

    @pytest.mark.parametrize(
        ("seqs", "n", "questions"),
        [(256, 1, 32), (256, 3, 10), (256, 8, 4), (256, 64, 1), (8, 1, 1)],
    )
    def test_a_call_carries_some_sequences_and_many_calls_fill_the_engine(
        self, seqs: int, n: int, questions: int
    ) -> None:
        assert questions_per_call(EngineConfig(max_num_seqs=seqs), n) == questions


class TestFailureReason:
    def test_a_plain_failure_is_its_own_reason(self) -> None:
        assert failure_reason("no such\n model", "OtherError: x") == "no such model"

    def test_the_cause_in_another_process_is_found_in_its_log(self) -> None:
        log = (
            "(EngineCore pid=1) ERROR [core.py:1]   File 'core.py', line 1\n"
            "(EngineCore pid=1) ERROR [core.py:1] ValueError: no available memory\n"
            "RuntimeError: Engine core initialization failed. See root cause above.\n"
        )
        message = "Engine core initialization failed. See root cause above."
        assert failure_reason(message, log) == "ValueError: no available memory"
        assert failure_reason(message, "") == message

    def test_a_long_reason_is_cut(self) -> None:
        assert len(failure_reason("x" * 10_000, "")) < 700


class WordPieces:
    """Drops the space in front of the first word, as SentencePiece tokenizers do."""

    words = ("", " by", " step.", " First", " two")

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(self.words[i] for i in ids).removeprefix(" ")


class TestText:
    def test_the_leading_space_is_kept(self) -> None:
        assert completion_texts(WordPieces(), [1, 2], [(3, 4, 0), (4,)]) == [" First two", " two"]

    def test_only_the_models_end_and_the_limit_are_stop_reasons(self) -> None:
        assert (stop_reason("stop"), stop_reason("length")) == ("stop", "length")
        with pytest.raises(StageError, match="abort"):
            stop_reason("abort")
