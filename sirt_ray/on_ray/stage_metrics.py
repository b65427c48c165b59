"""A run's artifacts as metrics: what begins, what ends, and what came of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sirt_ray.on_ray.metrics import Emitter, show_repeated
from sirt_ray.place import Place

Counts = Mapping[str, Any]


class StageMetrics:
    """Hears of every artifact as the store tells of it (`artifacts.Tell`), while this process is
    connected to Ray."""

    def __init__(self, run: str) -> None:
        self._run = Place(run)
        self._running: Emitter | None = None

    def artifact(self, kind: str, name: str, **fields: Any) -> None:
        round, _, stage = name.rpartition("/")
        emitter = Emitter(replace(self._run, round=round, stage=stage))
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
        """No stage works any more, whether it has ended or was broken off."""
        if self._running is not None:
            self._running.set("sirt_stage_running", 0)
            self._running = None


def _demonstrations(emitter: Emitter, counts: Counts) -> None:
    for key, number in counts.items():
        if key == "kept" or key.startswith("dropped_"):
            emitter.set("sirt_demonstrations", number, fate=key)
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
