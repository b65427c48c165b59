"""Placement recomputed by hand, refusals, and memory that never grows with more GPUs."""

from dataclasses import replace
from typing import Any

import pytest

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import study as studies
from sirt_ray.config.resources import ResourcesConfig, TrainerResources
from sirt_ray.config.training import LoraConfig, RefineConfig, TuneConfig
from sirt_ray.driver.plan import setup_of
from sirt_ray.planning import memory, remedies
from sirt_ray.planning.clusters import described
from sirt_ray.planning.models import shape_of
from sirt_ray.planning.placement import Setup, plan_placement, problem
from tests.helpers.paths import JOBS

TEACHER, STUDENT = "meta-llama/Llama-2-70b-chat-hf", "meta-llama/Llama-2-7b-chat-hf"
LARGER = "meta-llama/Llama-2-13b-chat-hf"
GB = 1e9


def in_family(student: str = STUDENT) -> Setup:
    study = studies.load(JOBS / "paper/in_family.yaml", [], REGISTRY)
    cells = [cell.job for cell in study.trials if cell.job.student.model == student]
    return setup_of(cells)


def changed(setup: Setup, role: str, **settings: Any) -> Setup:
    section = getattr(setup.resources, role)
    made = type(section).model_validate(section.model_dump() | settings)
    return replace(setup, resources=setup.resources.model_copy(update={role: made}))


@pytest.mark.parametrize(
    ("cluster", "gpu_bytes", "early"), [("4x48GB", 48e9, False), ("8x80GB", 80e9, True)]
)
def test_the_papers_study_by_hand(cluster: str, gpu_bytes: float, early: bool) -> None:
    """Llama-2-70B teaches Llama-2-7B: every number from the models' published shapes."""
    setup = in_family()
    placed = plan_placement(setup, described(cluster))
    assert [problem(setup, described(cluster), role) for role in setup.roles] == [None] * 3
    assert (placed.prestarts, placed.colocates) == (early, False)

    teacher = placed.parts["teacher"]
    assert (teacher.count, teacher.gpus, teacher.per_node) == (1, 4, {0: 4})
    assert teacher.memory is not None
    assert teacher.memory.weights == 68_976_648_192 * 2 / 4
    # 8192 tokens, bfloat16, 6 x 8192 wide and 3 x 28672 cut in 4; logits of 256 sequences.
    working = 8192 * 2 * (6 * 8192 + 3 * 28672 / 4) + 10 * 256 * 32000
    assert teacher.memory.activations == working
    cache = 0.92 * gpu_bytes - 68_976_648_192 / 2 - working - 1.5e9
    assert teacher.memory.kv_cache == pytest.approx(cache)
    assert teacher.memory.total == pytest.approx(0.92 * gpu_bytes)
    # A token: 2 x 80 layers x 2 of 8 heads on each GPU x 128 x 2 bytes.
    assert teacher.kv_tokens == pytest.approx(cache / (2 * 80 * 2 * 128 * 2))
    assert teacher.kv_tokens is not None and teacher.kv_tokens > 2048

    student = placed.parts["student"]
    assert (student.count, student.gpus, student.per_node) == (4, 1, {0: 4})
    assert student.memory is not None and student.memory.weights == 6_738_415_616 * 2
    assert student.memory.total == pytest.approx(0.92 * gpu_bytes)

    trainer = placed.parts["trainer"]
    assert (trainer.count, trainer.gpus, trainer.per_node) == (4, 1, {0: 4})
    held = trainer.memory
    assert held is not None
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    others = 6_738_415_616 - matrices
    adapters = 32 * 8 * (4 * 8192 + 3 * (4096 + 11008))
    assert held.weights == pytest.approx((0.5 + 0.127 / 8) * matrices + 2 * others + 2 * adapters)
    assert held.gradients == 4 * adapters
    assert held.optimizer == 12 * adapters / 4
    assert held.other == 1.5e9 + 5e8 * 4
    # 4096 tokens; of each layer's input 2 bytes; one layer with all that it keeps: two norms
    # (6 bytes), queries, keys and values twice, result, four of the feed-forward, LoRA's inputs.
    layer = 2 * 6 * 4096 + 2 * 6 * 4096 + 8 * 11008 + 7 * 2 * 8
    tokens = 4096 * (32 * 2 * 4096 + layer + 10 * 4096)
    logits = 16 * 32000 * (128 * 2**20 // (4 * 32000))
    assert held.activations == tokens + logits
    parts = (held.weights, held.gradients, held.optimizer, held.activations, held.other)
    assert held.total == pytest.approx(sum(parts)) and held.total < 11e9


@pytest.mark.parametrize("cluster", ["4x48GB", "8x80GB"])
@pytest.mark.parametrize("student", [STUDENT, LARGER, "mistralai/Mistral-7B-Instruct-v0.1"])
def test_every_pair_of_the_papers_study_fits(cluster: str, student: str) -> None:
    setup, there = in_family(student), described(cluster)
    placed = plan_placement(setup, there)
    for role in setup.roles:
        part = placed.parts[role]
        assert problem(setup, there, role) is None
        assert part.memory is not None and part.capacity is not None
        assert part.memory.total <= part.capacity
        assert part.total_gpus <= there.gpus and sum(part.per_node.values()) == part.total_gpus


def test_one_gpu_of_24_gb_is_refused_with_the_reason() -> None:
    setup, there = in_family(), described("1x24GB")
    reason = problem(setup, there, "teacher")
    assert reason is not None and "needs 1 CPU, 4 GPU" in reason and "missing: 3 GPU" in reason
    # On its one GPU the teacher cannot be, however it is cut.
    assert remedies.smallest_change(setup, there, "teacher") is None
    unsharded = changed(setup, "teacher", tensor_parallel_size=1)
    reason = problem(unsharded, there, "teacher")
    assert reason is not None and "138.0" in reason and "22.1 GB that vLLM uses" in reason
    larger = remedies.smallest_cluster(setup, there)
    assert larger is not None
    cluster, change = larger
    assert all(problem(change.setup, cluster, role) is None for role in setup.roles)
    assert cluster.gpus * (cluster.gpu.memory_gb if cluster.gpu else 0) <= 160
    assert problem(setup, there, "student") is None


def trains(config: TuneConfig | RefineConfig, **trainer: Any) -> Setup:
    resources = ResourcesConfig(trainer=TrainerResources.model_validate(trainer))
    return Setup(None, STUDENT, {STUDENT: shape_of(STUDENT)}, resources, (config,), 512)


FULL = TuneConfig(dtype="bfloat16", max_length=2048)


@pytest.mark.parametrize(
    ("cluster", "trainer", "expected"),
    [
        ("8x80GB", {"num_workers": 8, "zero_stage": 2}, None),
        ("8x80GB", {"num_workers": 8}, {"zero_stage": 2}),
        ("2x80GB", {"num_workers": 8}, {"num_workers": 2}),
        ("8x48GB", {"num_workers": 8, "zero_stage": 2}, {"max_tokens_per_micro_batch": 2048}),
        ("1x48GB", {}, {"offload": "optimizer"}),
    ],
)
def test_the_smallest_change_is_the_least_harmful(
    cluster: str, trainer: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    setup, there = trains(FULL, **trainer), described(cluster)
    if expected is None:
        assert problem(setup, there, "trainer") is None
        return
    assert problem(setup, there, "trainer") is not None
    change = remedies.smallest_change(setup, there, "trainer")
    assert change is not None
    assert {f"resources.trainer.{n}": v for n, v in expected.items()}.items() <= (
        change.settings.items()
    )
    assert problem(change.setup, there, "trainer") is None


def test_no_change_of_less_harm_would_do() -> None:
    """Taking one setting away from the smallest change leaves a trainer that does not fit."""
    setup, there = trains(FULL, num_workers=4), described("4x24GB")
    change = remedies.smallest_change(setup, there, "trainer")
    assert change is not None and len(change.settings) > 1
    for name in change.settings:
        kept = {n.rpartition(".")[2]: v for n, v in change.settings.items() if n != name}
        assert problem(changed(setup, "trainer", **kept), there, "trainer") is not None


def test_the_method_is_changed_only_where_nothing_else_helps() -> None:
    small = replace(trains(FULL), shapes={STUDENT: shape_of(TEACHER)})
    change = remedies.smallest_change(small, described("1x80GB"), "trainer")
    assert change is not None and "tune.lora" in change.settings
    config = change.setup.trainings[0]
    assert config.lora is not None and config.lora.quantize == "nf4"


def test_an_engine_is_cut_finer_or_shortened() -> None:
    setup = replace(in_family(), trainings=())
    coarse = changed(setup, "teacher", tensor_parallel_size=2)
    there = described("4x48GB")
    change = remedies.smallest_change(coarse, there, "teacher")
    assert change is not None
    assert change.settings == {"resources.teacher.tensor_parallel_size": 4}
    assert problem(change.setup, there, "teacher") is None
    long = changed(setup, "student", max_model_len=40_000)
    change = remedies.smallest_change(long, described("1x24GB"), "student")
    assert change is not None
    assert change.settings == {"resources.student.max_model_len": 512 + 512}


def test_heads_must_be_divided() -> None:
    setup = changed(in_family(), "teacher", tensor_parallel_size=3)
    reason = problem(setup, described("4x48GB"), "teacher")
    assert reason is not None and "64 attention heads" in reason
    change = remedies.smallest_change(setup, described("4x48GB"), "teacher")
    assert change is not None
    assert change.settings == {"resources.teacher.tensor_parallel_size": 4}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LoraConfig()])
def test_more_workers_never_need_more_memory_of_each(
    stage: int, dtype: Any, lora: LoraConfig | None
) -> None:
    shape = shape_of(STUDENT)
    assert shape is not None
    config = TuneConfig(dtype=dtype, lora=lora)
    totals = [
        memory.of_trainer(
            shape, config, TrainerResources.model_validate({"num_workers": n, "zero_stage": stage})
        ).total
        for n in (1, 2, 4, 8, 64)
    ]
    assert totals == sorted(totals, reverse=True)


def test_each_measure_needs_less_than_the_one_before() -> None:
    shape = shape_of(STUDENT)
    assert shape is not None

    def total(lora: LoraConfig | None = None, **trainer: Any) -> float:
        config = TuneConfig(dtype="bfloat16", lora=lora)
        resources = TrainerResources.model_validate({"num_workers": 8, **trainer})
        return memory.of_trainer(shape, config, resources).total

    sharded = [total(zero_stage=stage) for stage in (1, 2, 3)]
    assert sharded == sorted(sharded, reverse=True)
    assert total(zero_stage=0) == total(zero_stage=1)
    moved = [total(zero_stage=3, offload=kind) for kind in ("none", "optimizer", "parameters")]
    assert moved == sorted(moved, reverse=True) and len(set(moved)) == 3
    assert total(gradient_checkpointing=True) < total()
    assert total(max_tokens_per_micro_batch=1024) < total(max_tokens_per_micro_batch=2048)
    assert total(LoraConfig(quantize="nf4")) < total(LoraConfig()) < total()


def test_zeros_16_bytes_and_ours() -> None:
    """ZeRO's example: 2 + 2 + 12 bytes a parameter. Ours adds gradients up in float32."""
    shape = shape_of(STUDENT)
    assert shape is not None
    held = memory.of_trainer(shape, FULL, TrainerResources(num_workers=1))
    state = held.weights + held.gradients + held.optimizer
    assert state == (2 + 4 + 12) * 6_738_415_616


def test_the_steps_copy_comes_when_the_activations_are_gone() -> None:
    shape = shape_of(STUDENT)
    assert shape is not None
    copy = 2 * 4 * shape.parameters
    for tokens in (1024, 65536):
        resources = TrainerResources(max_tokens_per_micro_batch=tokens)
        held = memory.of_trainer(shape, FULL, resources)
        both = held.activations + held.other - memory.CONTEXT - 4 * memory.BUCKET
        assert both == pytest.approx(max(copy, held.activations))


def test_a_pair_that_is_longer_than_the_micro_batch_counts_whole() -> None:
    shape = shape_of(STUDENT)
    assert shape is not None
    few = TrainerResources(max_tokens_per_micro_batch=1000)
    pairs, tuning = RefineConfig(max_length=1024), TuneConfig(max_length=1024)
    exact = TrainerResources(max_tokens_per_micro_batch=2048)
    assert memory.activations(shape, pairs, few) == memory.activations(shape, pairs, exact)
    assert memory.activations(shape, tuning, few) < memory.activations(shape, pairs, few)
