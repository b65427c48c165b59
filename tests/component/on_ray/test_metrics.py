"""What a run's figures become as metrics. Ray's own metrics are the boundary: they take what they
are given without a word where no cluster is, so a recorder stands in their place."""

from pathlib import Path
from typing import Any

import pytest

from sirt_ray.logs import LogContext, bind_context
from sirt_ray.on_ray import metrics
from sirt_ray.on_ray.engine.protocol import ReplicaLoad
from sirt_ray.on_ray.metrics import METRICS, Emitter, StageMetrics, count_part, show_training
from sirt_ray.on_ray.sampling.monitor import SamplingMonitor

Series = dict[tuple[str, ...], float]
PLACE = LogContext("mine", "round_01", "samples")
HERE = ("mine", "round_01", "samples")


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Series]:
    """Name -> values of labels -> value, as Prometheus would show it."""
    found: dict[str, Series] = {}

    class Recorder:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            self.series, self.keys = found.setdefault(name, {}), tag_keys

        def of(self, tags: dict[str, str]) -> tuple[str, ...]:
            assert set(tags) == set(self.keys)
            return tuple(tags[key] for key in self.keys)

    class Counter(Recorder):
        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0
            self.series[self.of(tags)] = self.series.get(self.of(tags), 0) + value

    class Gauge(Recorder):
        def set(self, value: float | None, tags: dict[str, str]) -> None:
            if value is not None:
                self.series[self.of(tags)] = value

    monkeypatch.setattr(metrics, "Counter", Counter)
    monkeypatch.setattr(metrics, "Gauge", Gauge)
    return found


PART: dict[str, Any] = {
    "questions": 4,
    "retries": 0,
    "ngrams": 50,
    "repeated_ngrams": 5,
    "right": 3,
    "wrong": 4,
    "unparseable": 1,
    "prompt_tokens": 40,
    "completion_tokens": 90,
    "dropped": [{"reason": "prompt_too_long"}, {"reason": "prompt_too_long"}],
}


def a_part(retries: int = 0) -> None:
    count_part(Emitter(PLACE), PART | {"retries": retries})


def test_parts_add_up(emitted: dict[str, Series]) -> None:
    a_part()
    a_part(retries=2)
    assert emitted["sirt_questions"] == {HERE: 8}
    assert emitted["sirt_completions"] == {
        (*HERE, "right"): 6,
        (*HERE, "wrong"): 8,
        (*HERE, "unparseable"): 2,
    }
    assert emitted["sirt_tokens"] == {(*HERE, "prompt"): 80, (*HERE, "completion"): 180}
    assert emitted["sirt_dropped_questions"] == {(*HERE, "prompt_too_long"): 4}
    assert emitted["sirt_ngrams"] == {(*HERE, "yes"): 10, (*HERE, "no"): 90}
    assert emitted["sirt_retries"] == {HERE: 2}


def a_step(**more: float) -> None:
    line = {"step": 3, "total_steps": 9, "loss": 0.5, "lr": 1e-6, "tokens_per_second": 70.0}
    show_training(Emitter(PLACE), line | more, {"steps": 2, "seconds": 1.5})


def test_a_step_shows_what_it_knows(emitted: dict[str, Series]) -> None:
    a_step(peak_memory_gib=2.0)
    assert emitted["sirt_training_step"] == {HERE: 3}
    assert emitted["sirt_training_learning_rate"] == {HERE: 1e-6}
    assert emitted["sirt_training_peak_memory_bytes"] == {HERE: 2**31}
    assert emitted["sirt_repeated_steps"] == {HERE: 2}
    assert not emitted["sirt_training_mfu"]  # not known on a CPU


def stages() -> None:
    stages = StageMetrics("mine")
    stages.artifact("started", "demonstrations")
    sampling = {"usage": {"wasted_tokens": 7}}
    counts = {"questions": 5, "kept": 3, "dropped_wrong": 2, "sampling": sampling}
    stages.artifact("finished", "demonstrations", counts=counts, seconds=2.5)
    pairs = {"questions": 10, "questions_paired": 6, "pairs": 14, "completions": 80}
    pairs["completions_truncated"] = 4
    stages.artifact("reused", "round_01/pairs", counts=pairs)
    stages.artifact("reused", "round_01/student", counts={"steps": 9})
    scores = {"gsm8k": {"cot": {"accuracy": 0.25}}}
    stages.artifact("reused", "baseline/evaluation", counts={"test": scores})
    stages.artifact("started", "round_02/samples")
    stages.stopped()
    stages.artifact("started", "round_02/samples")


def test_artifacts_become_what_came_of_them(emitted: dict[str, Series]) -> None:
    stages()
    made = ("mine", "", "demonstrations")
    assert emitted["sirt_stage_seconds"] == {made: 2.5}
    assert emitted["sirt_demonstrations"] == {(*made, "kept"): 3, (*made, "dropped_wrong"): 2}
    assert emitted["sirt_wasted_tokens"] == {made: 7}
    pairs = ("mine", "round_01", "pairs")
    assert emitted["sirt_pairs"] == {pairs: 14}
    assert emitted["sirt_pair_questions"] == {(*pairs, "yes"): 6, (*pairs, "no"): 4}
    assert emitted["sirt_unpaired"] == {(*pairs, "completions_truncated"): 4}
    assert emitted["sirt_repeated_steps"] == {("mine", "round_01", "student"): 0}
    evaluated = ("mine", "baseline", "evaluation", "gsm8k", "cot")
    assert emitted["sirt_accuracy"] == {evaluated: 0.25}
    assert emitted["sirt_stage_running"] == {made: 0, ("mine", "round_02", "samples"): 1}


def test_a_stage_that_is_broken_off_does_not_run_any_more(emitted: dict[str, Series]) -> None:
    stages = StageMetrics("mine")
    stages.artifact("started", "questions")
    stages.stopped()
    assert emitted["sirt_stage_running"] == {("mine", "", "questions"): 0}


class Server:
    """Two queries of two replicas, of which the second starts later: the part of a `ModelServer`
    that queries a cluster."""

    role, gpus_per_replica = "student", 0

    def __init__(self) -> None:
        self.queries = [
            {"a": ReplicaLoad(3, 5, 100, 40, 10)},
            {"a": ReplicaLoad(2, 0, 160, 60, 25), "b": ReplicaLoad(1, 0, 30, 10, 0, held_s=40.0)},
        ]

    def loads(self, timeout_s: float) -> dict[str, ReplicaLoad]:
        return self.queries.pop(0) if len(self.queries) > 1 else self.queries[0]

    def replicas_wanted(self) -> int:
        return 3


class NoBar:
    def update(self, done: float, **shown: str | float) -> None: ...


def monitor(out: Path) -> SamplingMonitor:
    with bind_context(PLACE):
        monitor = SamplingMonitor(Server(), NoBar(), 0, out)  # type: ignore[arg-type]
    monitor.start()
    monitor.poll()
    return monitor


def test_engines_are_shown_as_they_are(emitted: dict[str, Series], tmp_path: Path) -> None:
    monitored = monitor(tmp_path)
    role = (*HERE, "student")
    assert emitted["sirt_replicas"] == {(*role, "ready"): 2, (*role, "wanted"): 3}
    assert emitted["sirt_engine_sequences"] == {(*role, "decoding"): 3, (*role, "queued"): 0}
    assert emitted["sirt_engine_prefix_tokens"] == {(*role, "yes"): 15, (*role, "no"): 15}
    assert monitored.describe() == (
        "2 of 3 replicas are ready, 3 sequences decode and 0 are queued; the endpoint requests a"
        " pause of 40 s"
    )
    monitored.end()
    assert emitted["sirt_replicas"] == {(*role, "ready"): 0, (*role, "wanted"): 0}


def test_tokens_that_no_part_has_are_wasted(emitted: dict[str, Series], tmp_path: Path) -> None:
    from sirt_ray.on_ray.sampling.monitor import Usage

    monitor(tmp_path).end()
    usage = Usage.of(tmp_path)
    assert usage.generated_tokens == 60 + 30
    assert usage.summary(completion_tokens=80)["wasted_tokens"] == 10
    assert usage.summary(completion_tokens=90)["wasted_tokens"] == 0


def test_all_that_is_defined_is_emitted(emitted: dict[str, Series], tmp_path: Path) -> None:
    a_part(retries=1)
    a_step(mfu=0.4, margin=0.1, validation_loss=0.6, peak_memory_gib=1.0)
    stages()
    monitor(tmp_path)
    assert {name for name, series in emitted.items() if series} == set(METRICS)
