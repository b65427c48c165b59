"""Metrics for Prometheus, through Ray's own metrics: every node serves them on its metrics port.

`METRICS` has all of them. In Prometheus their names start with `ray_`, and those of counters end
with `_total`. Each has the labels run, round and stage (`logs.LogContext`); some have one or two
more. `cluster/grafana/sirt-ray.json` shows all of them.

A metric that is made before its process is connected to Ray is lost silently (Ray 2.60.0;
https://github.com/ray-project/ray/issues/13378): make an `Emitter` when the work starts.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from sirt_ray.logs import LogContext

_CONTEXT = ("run", "round", "stage")
_OUTCOME = "fate"
"""A label that dashboards have."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and its documentation."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    """Grafana's name of the unit: `short` is a number of items."""
    help: str
    labels: tuple[str, ...] = ()
    """Labels in addition to run, round and stage."""

    @property
    def exported(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


METRICS = {
    metric.name: metric
    for metric in (
        # Stages
        Metric("sirt_stage_running", "gauge", "short", "1 while the stage works, then 0."),
        Metric("sirt_stage_seconds", "gauge", "s", "Seconds that the finished stage took."),
        Metric("sirt_demonstrations", "gauge", "short", "Questions by their outcome.", (_OUTCOME,)),
        Metric(
            "sirt_accuracy",
            "gauge",
            "percentunit",
            "Share of test questions answered right.",
            ("benchmark", "prompt"),
        ),
        # Sampling: counted by the sampling actors
        Metric("sirt_questions", "counter", "short", "Questions sampled."),
        Metric("sirt_completions", "counter", "short", "Completions by verdict.", ("verdict",)),
        Metric("sirt_tokens", "counter", "short", "Tokens of prompts and completions.", ("kind",)),
        Metric(
            "sirt_dropped_questions",
            "counter",
            "short",
            "Questions without completions, by reason.",
            ("reason",),
        ),
        Metric(
            "sirt_ngrams",
            "counter",
            "short",
            "4-grams of completions, by whether their completion has had them before.",
            ("repeated",),
        ),
        Metric("sirt_retries", "counter", "short", "Retried calls to engines."),
        # Engines: queried by the driver
        Metric(
            "sirt_replicas",
            "gauge",
            "short",
            "Engines that are ready, and that Serve's target is now.",
            ("role", "state"),
        ),
        Metric(
            "sirt_engine_sequences",
            "gauge",
            "short",
            "Sequences that decode, and that are queued.",
            ("role", "state"),
        ),
        Metric(
            "sirt_engine_prefix_tokens",
            "counter",
            "short",
            "Prompt tokens, by whether the prefix cache had them.",
            ("role", "found"),
        ),
        # Pairs
        Metric("sirt_pairs", "gauge", "short", "Preference pairs made."),
        Metric(
            "sirt_pair_questions",
            "gauge",
            "short",
            "Questions with samples, by whether they gave a pair.",
            ("paired",),
        ),
        Metric(
            "sirt_unpaired",
            "gauge",
            "short",
            "Questions and completions that gave no pair, by reason.",
            ("reason",),
        ),
        # Training
        Metric("sirt_training_step", "gauge", "short", "Optimizer steps done."),
        Metric("sirt_training_total_steps", "gauge", "short", "Optimizer steps planned."),
        Metric("sirt_training_loss", "gauge", "none", "Loss of the newest step."),
        Metric("sirt_training_validation_loss", "gauge", "none", "Loss on held-out questions."),
        Metric("sirt_training_margin", "gauge", "none", "Reward margin of chosen over rejected."),
        Metric("sirt_training_learning_rate", "gauge", "none", "Learning rate of the newest step."),
        Metric("sirt_training_tokens_per_second", "gauge", "short", "Tokens trained on a second."),
        Metric(
            "sirt_training_mfu", "gauge", "percentunit", "Share of the GPUs' peak that is used."
        ),
        Metric(
            "sirt_training_peak_memory_bytes",
            "gauge",
            "bytes",
            "Peak memory of one worker's device.",
        ),
        # Wasted work
        Metric(
            "sirt_wasted_tokens",
            "gauge",
            "short",
            "Tokens that engines wrote and no block has: of retried calls, and of lost blocks.",
        ),
        Metric(
            "sirt_repeated_steps",
            "gauge",
            "short",
            "Optimizer steps repeated: those after the checkpoint that training resumed from.",
        ),
        Metric("sirt_repeated_seconds", "gauge", "s", "Seconds that the repeated steps took."),
    )
}


class Emitter:
    """Emits metrics of this process with the labels of one context. Make it once the process is
    connected to Ray."""

    def __init__(self, context: LogContext) -> None:
        self._context = asdict(context)
        self._instruments: dict[str, Counter | Gauge] = {}

    def set(self, name: str, value: float | None, **labels: str) -> None:
        """Set a gauge. None, an unknown value, leaves it as it is."""
        gauge = self._instrument(name)
        assert isinstance(gauge, Gauge)
        gauge.set(value, self._context | labels)

    def add(self, name: str, by: float, **labels: str) -> None:
        """Increase a counter."""
        counter = self._instrument(name)
        assert isinstance(counter, Counter)
        if by > 0:  # Ray refuses to count zero.
            counter.inc(by, self._context | labels)

    def _instrument(self, name: str) -> Counter | Gauge:
        if name not in self._instruments:
            metric = METRICS[name]
            kind = Counter if metric.kind == "counter" else Gauge
            self._instruments[name] = kind(name, metric.help, (*_CONTEXT, *metric.labels))
        return self._instruments[name]


def count_part(emitter: Emitter, counts: Mapping[str, Any]) -> None:
    """Add the counts of one finished part of a sampling."""
    emitter.add("sirt_questions", counts["questions"])
    emitter.add("sirt_retries", counts["retries"])
    for verdict in ("right", "wrong", "unparseable"):
        emitter.add("sirt_completions", counts[verdict], verdict=verdict)
    for kind in ("prompt", "completion"):
        emitter.add("sirt_tokens", counts[f"{kind}_tokens"], kind=kind)
    repeated = counts["repeated_ngrams"]
    emitter.add("sirt_ngrams", repeated, repeated="yes")
    emitter.add("sirt_ngrams", counts["ngrams"] - repeated, repeated="no")
    for drop in counts["dropped"]:
        emitter.add("sirt_dropped_questions", 1, reason=drop["reason"])


_OF_A_LINE = {
    "step": "sirt_training_step",
    "total_steps": "sirt_training_total_steps",
    "loss": "sirt_training_loss",
    "validation_loss": "sirt_training_validation_loss",
    "margin": "sirt_training_margin",
    "lr": "sirt_training_learning_rate",
    "tokens_per_second": "sirt_training_tokens_per_second",
    "mfu": "sirt_training_mfu",
}


def show_training(emitter: Emitter, line: Mapping[str, Any], repeated: Mapping[str, float]) -> None:
    """Set the metrics of a line of a training's log, and what was repeated so far: `steps`,
    `seconds`."""
    for key, name in _OF_A_LINE.items():
        emitter.set(name, line.get(key))
    if "peak_memory_gib" in line:
        emitter.set("sirt_training_peak_memory_bytes", line["peak_memory_gib"] * 2**30)
    show_repeated(emitter, repeated)


def show_repeated(emitter: Emitter, repeated: Mapping[str, float]) -> None:
    """Set the metrics of the steps that a training repeated after interruptions."""
    emitter.set("sirt_repeated_steps", repeated.get("steps", 0))
    emitter.set("sirt_repeated_seconds", repeated.get("seconds", 0.0))


# A run's artifacts as metrics

Counts = Mapping[str, Any]


class StageMetrics:
    """The metrics of a run's stages. `artifact` is a callback of the store on artifact events, for
    the time in which this process is connected to Ray."""

    def __init__(self, run: str) -> None:
        self._run = LogContext(run)
        self._running: Emitter | None = None

    def artifact(self, kind: str, name: str, **fields: Any) -> None:
        """Set the metrics of an artifact event."""
        round_name, _, stage = name.rpartition("/")
        emitter = Emitter(replace(self._run, round=round_name, stage=stage))
        if kind == "started":
            self._running = emitter
            emitter.set("sirt_stage_running", 1)
            return
        emitter.set("sirt_stage_seconds", fields.get("seconds"))
        show = _BY_STAGE.get(stage)
        if show is not None and "counts" in fields:
            show(emitter, fields["counts"])
        self.stopped()

    def stopped(self) -> None:
        """Report that no stage runs, whether the last one finished or was interrupted."""
        if self._running is not None:
            self._running.set("sirt_stage_running", 0)
            self._running = None


def _demonstrations(emitter: Emitter, counts: Counts) -> None:
    for key, number in counts.items():
        if key == "kept" or key.startswith("dropped_"):
            emitter.set("sirt_demonstrations", number, **{_OUTCOME: key})
    _samples(emitter, counts.get("sampling", {}))


def _samples(emitter: Emitter, counts: Counts) -> None:
    emitter.set("sirt_wasted_tokens", counts.get("usage", {}).get("wasted_tokens"))


def _pairs(emitter: Emitter, counts: Counts) -> None:
    emitter.set("sirt_pairs", counts["pairs"])
    paired = counts["questions_paired"]
    emitter.set("sirt_pair_questions", paired, paired="yes")
    emitter.set("sirt_pair_questions", counts["questions"] - paired, paired="no")
    known = {"questions", "questions_paired", "pairs", "completions"}
    for reason, number in counts.items():
        if reason not in known and isinstance(number, int):
            emitter.set("sirt_unpaired", number, reason=reason)


def _student(emitter: Emitter, counts: Counts) -> None:
    show_repeated(emitter, counts.get("repeated", {}))


def _evaluation(emitter: Emitter, counts: Counts) -> None:
    _samples(emitter, counts.get("sampling", {}))
    for benchmark, prompts in counts["test"].items():
        for prompt, score in prompts.items():
            emitter.set("sirt_accuracy", score["accuracy"], benchmark=benchmark, prompt=prompt)


_BY_STAGE: Mapping[str, Callable[[Emitter, Counts], None]] = {
    "demonstrations": _demonstrations,
    "samples": _samples,
    "pairs": _pairs,
    "student": _student,
    "evaluation": _evaluation,
}
