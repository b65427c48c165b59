"""Figures for Prometheus, through Ray's own metrics: every node serves them on its metrics port.

sirt_questions_total{stage}  sirt_completions_total{stage, verdict}  sirt_tokens_total{stage, kind}
sirt_dropped_questions_total{stage, reason}  sirt_retries_total{stage}
sirt_engine_running{role}  sirt_engine_waiting{role}
sirt_engine_prefix_tokens_total{role, found}
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from sirt_ray.on_ray.requests import ReplicaLoad


class SamplingMetrics:
    """What a sampling actor counts, for one stage."""

    def __init__(self, stage: str) -> None:
        self._stage = {"stage": stage}
        self._questions = Counter("sirt_questions", "Questions sampled.", ("stage",))
        self._completions = Counter(
            "sirt_completions", "Completions, by verdict.", ("stage", "verdict")
        )
        self._tokens = Counter(
            "sirt_tokens", "Tokens of prompts and completions.", ("stage", "kind")
        )
        self._dropped = Counter(
            "sirt_dropped_questions", "Questions without completions.", ("stage", "reason")
        )
        self._retries = Counter("sirt_retries", "Requests asked again.", ("stage",))

    def add(self, counts: Mapping[str, Any]) -> None:
        """The counts of one finished part."""
        _inc(self._questions, counts["questions"], self._stage)
        _inc(self._retries, counts["retries"], self._stage)
        for verdict in ("right", "wrong", "unparseable"):
            _inc(self._completions, counts[verdict], self._stage | {"verdict": verdict})
        for kind in ("prompt", "completion"):
            _inc(self._tokens, counts[f"{kind}_tokens"], self._stage | {"kind": kind})
        for drop in counts["dropped"]:
            _inc(self._dropped, 1, self._stage | {"reason": drop["reason"]})


class EngineMetrics:
    """What a replica shows of its engine."""

    def __init__(self, role: str) -> None:
        self._role = {"role": role}
        self._last = ReplicaLoad()
        self._running = Gauge("sirt_engine_running", "Sequences that decode now.", ("role",))
        self._waiting = Gauge("sirt_engine_waiting", "Sequences waiting for a place.", ("role",))
        self._prefix = Counter(
            "sirt_engine_prefix_tokens",
            "Prompt tokens, by whether the prefix cache had them.",
            ("role", "found"),
        )

    def set(self, load: ReplicaLoad) -> None:
        self._running.set(load.running, self._role)
        self._waiting.set(load.waiting, self._role)
        hit = load.prefix_hit_tokens - self._last.prefix_hit_tokens
        asked = load.prefix_queried_tokens - self._last.prefix_queried_tokens
        _inc(self._prefix, hit, self._role | {"found": "yes"})
        _inc(self._prefix, asked - hit, self._role | {"found": "no"})
        self._last = load


def _inc(counter: Counter, by: float, tags: dict[str, str]) -> None:
    """Ray refuses to count zero."""
    if by > 0:
        counter.inc(by, tags)
