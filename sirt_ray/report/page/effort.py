"""What each stage of a run took, from its record, and when it ran, from `events.jsonl`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sirt_ray.core.interfaces import Counts

Kind = Literal["sampling", "training", "other"]
End = Literal["finished", "stopped", "running"]


@dataclass(frozen=True, slots=True)
class Effort:
    """The cost of a finished artifact."""

    artifact: str
    kind: Kind
    seconds: float
    """Duration of the attempt that finished it, including the start of its engines."""
    tokens: int | None
    """Tokens generated, or trained on; None if there were none."""
    tokens_per_second: float | None
    """Rate while engines or trainer were working."""
    gpu_hours: float | None
    """None if it is not known."""
    utilisation: str
    """In words; empty if nothing was measured."""


@dataclass(frozen=True, slots=True)
class Span:
    """The time that an artifact was being built."""

    artifact: str
    kind: Kind
    begin: float
    end: float
    """Seconds of work since the run's first start, without the time between a stop and the next
    start."""
    outcome: End


@dataclass(frozen=True, slots=True)
class Timeline:
    """All spans of a run."""

    spans: tuple[Span, ...]
    starts: tuple[float, ...]
    """When the run was started again, in the same seconds."""

    @property
    def seconds(self) -> float:
        return max((span.end for span in self.spans), default=0.0)


def kind_of(artifact: str) -> Kind:
    match artifact.rsplit("/", maxsplit=1)[-1]:
        case "demonstrations" | "samples" | "evaluation":
            return "sampling"
        case "student" | "reference":
            return "training"
        case _:
            return "other"


def efforts(
    counts: Mapping[str, Counts],
    seconds: Mapping[str, float],
    mfu: Mapping[str, float],
    trainer_gpus: float | None,
) -> list[Effort]:
    """Return the cost of each artifact of `counts`. `seconds` and `mfu`: artifact -> its value, if
    known. `trainer_gpus`: of all workers together; None if not known."""
    found: list[Effort] = []
    for name, of_artifact in counts.items():
        kind, took = kind_of(name), seconds.get(name, 0.0)
        if kind == "sampling":
            found.append(_sampled(name, took, of_artifact.get("sampling") or of_artifact))
        elif kind == "training":
            found.append(_trained(name, took, of_artifact, mfu.get(name), trainer_gpus))
        else:
            found.append(Effort(name, kind, took, None, None, 0.0, ""))
    return found


def _sampled(name: str, seconds: float, sampling: Counts) -> Effort:
    usage = sampling.get("usage")
    tokens = sampling.get("completion_tokens")
    if not usage:
        return Effort(name, "sampling", seconds, tokens, None, None, "")
    replicas = usage["replica_seconds"] / usage["seconds"] if usage["seconds"] else 0.0
    shown = f"{replicas:.1f} engines, {usage['prefix_hit_share']:.0%} of prompts from cache"
    rate = usage["tokens_per_second"]
    return Effort(name, "sampling", seconds, tokens, rate, usage["gpu_seconds"] / 3600, shown)


def _trained(
    name: str, seconds: float, counts: Counts, mfu: float | None, gpus: float | None
) -> Effort:
    tokens, worked = counts.get("tokens"), counts.get("seconds")
    rate = tokens / worked if tokens and worked else None
    parts = [f"{mfu:.0%} MFU"] if mfu is not None else []
    if "peak_memory_gib" in counts:
        parts.append(f"{counts['peak_memory_gib']:.1f} GiB at peak")
    hours = None if gpus is None else gpus * (worked or seconds) / 3600
    return Effort(name, "training", seconds, tokens, rate, hours, ", ".join(parts))


def timeline(events: Sequence[Mapping[str, Any]]) -> Timeline:
    """Return the spans of a run from its events; those without a readable time are left out.

    A driver that is killed logs no end: the span of its current artifact ends with its last event.
    """
    spans: list[Span] = []
    starts: list[float] = []
    open_spans: dict[str, float] = {}
    offset = last = 0.0
    at_work = False

    def close(outcome: End) -> None:
        for artifact, begin in open_spans.items():
            spans.append(Span(artifact, kind_of(artifact), begin, last - offset, outcome))
        open_spans.clear()

    for time, event in _timed(events):
        kind, artifact = event.get("event"), event.get("artifact")
        if not at_work or (artifact == "questions" and kind in ("started", "reused")):
            close("stopped")
            worked = max((span.end for span in spans), default=0.0)
            if spans:
                starts.append(worked)
            offset, at_work = time - worked, True
        last = time
        if kind == "started" and isinstance(artifact, str):
            open_spans[artifact] = time - offset
        elif kind == "finished" and isinstance(artifact, str) and artifact in open_spans:
            begin = open_spans.pop(artifact)
            spans.append(Span(artifact, kind_of(artifact), begin, time - offset, "finished"))
        elif kind == "stopped" or (kind == "finished" and artifact is None):
            close("stopped")
            at_work = False
    close("running")
    ended = max((span.end for span in spans), default=0.0)
    return Timeline(tuple(spans), tuple(start for start in starts if start < ended))


def _timed(events: Sequence[Mapping[str, Any]]) -> list[tuple[float, Mapping[str, Any]]]:
    timed = [(time_of(event), event) for event in events]
    return [(time, event) for time, event in timed if time is not None]


def time_of(event: Mapping[str, Any]) -> float | None:
    """Return an event's time in seconds since 1970; None if it is not readable."""
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return None


def duration(seconds: float) -> str:
    """Format seconds as `45 s`, `4 min 10 s` or `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def large(number: float) -> str:
    """Format a number as `812`, `54.2 K`, `1.9 M` or `3.4 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"
