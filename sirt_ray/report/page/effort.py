"""Records and `events.jsonl` of a run -> what each stage took, and when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sirt_ray.core.interfaces import Counts

Kind = Literal["sampling", "training", "other"]
End = Literal["finished", "stopped", "running"]


@dataclass(frozen=True, slots=True)
class Effort:
    """What a finished artifact took."""

    artifact: str
    kind: Kind
    seconds: float
    """Of the attempt that finished it, the start of its engines too."""
    tokens: int | None
    """Generated, or trained on; None where none were."""
    tokens_per_second: float | None
    """While engines or trainer were at work."""
    gpu_hours: float | None
    """None where it is not known."""
    utilisation: str
    """In words; empty where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Span:
    artifact: str
    kind: Kind
    begin: float
    end: float
    """Seconds that the run was at work before: the time between a stop and the next start is none
    of them."""
    how: End


@dataclass(frozen=True, slots=True)
class Timeline:
    spans: tuple[Span, ...]
    starts: tuple[float, ...]
    """Where the run was started again, in the same seconds."""

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
    """`seconds` and `mfu`: by artifact, where they are known. `trainer_gpus`: of all its workers
    together; None where it is not known."""
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
    """When the run was at work at what, by its events; those without a readable time are left out.

    A driver that is killed says nothing: what it was at ends with its last event.
    """
    spans: list[Span] = []
    starts: list[float] = []
    open_spans: dict[str, float] = {}
    offset = last = 0.0
    at_work = False

    def close(how: End) -> None:
        for artifact, begin in open_spans.items():
            spans.append(Span(artifact, kind_of(artifact), begin, last - offset, how))
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
    """Seconds since 1970; None where it is not readable."""
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return None
