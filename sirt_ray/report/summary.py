"""An artifact's record in one line that a person can read; the record itself has every count."""

from collections.abc import Mapping
from typing import Any

from sirt_ray.core.scoring import scores_from

Counts = Mapping[str, Any]


def summary(name: str, counts: Counts) -> str:
    """`name` is the artifact's path below the run folder; its last part says what it is."""
    return _BY_KIND[name.rsplit("/", maxsplit=1)[-1]](counts)


def _questions(counts: Counts) -> str:
    parts: list[str] = []
    for benchmark, found in counts.items():
        sizes = [
            f"{found[split]['questions']:,} {split}"
            for split in ("train", "validation", "test")
            if split in found
        ]
        parts.append(f"{benchmark} {' + '.join(sizes)}")
    return "; ".join(parts)


def _demonstrations(counts: Counts) -> str:
    kept = f"{counts['kept']:,} kept of {counts['questions']:,} questions" + _reasons(
        {key: n for key, n in counts.items() if key.startswith("dropped_")}
    )
    if "file" not in counts:
        return kept + _effort(counts.get("sampling", {}))
    file = counts["file"]
    unused = {key: n for key, n in file.items() if key.endswith("_rows")}
    return f"{kept}; {file['matched']:,} of the file's {file['rows']:,} rows used{_reasons(unused)}"


def _student(counts: Counts) -> str:
    steps = f"{counts['steps']:,}"
    if "stopped_early" in counts:
        steps += f" of {counts['planned_steps']:,}"
    repeated = counts.get("repeated", {}).get("steps", 0)
    again = f" ({repeated:,} done again)" if repeated else ""
    return (
        f"{counts['examples']:,} examples, {steps} steps{again}{_validation(counts)}"
        f"{_reasons(counts['left_out'])}{_training(counts)}"
    )


def _validation(counts: Counts) -> str:
    """Of the chosen weights; nothing where no question was held out."""
    found = counts.get("validation")
    if not found:
        return ""
    accuracy = f" and accuracy {found['accuracy']:.0%}" if "accuracy" in found else ""
    return f", validation loss {found['loss']:.4f}{accuracy} at step {counts['chosen_step']}"


def _training(counts: Counts) -> str:
    """Speed, the worker's memory and the names of warnings; records of earlier versions do not
    say."""
    if "warnings" not in counts:
        return ""
    speed = counts["tokens"] / counts["seconds"] if counts["seconds"] else 0
    names = ", ".join(warning["name"] for warning in counts["warnings"])
    return (
        f"; {speed:,.0f} tokens/s, {counts['peak_memory_gib']:.1f} GiB"
        f"{f'; warnings: {names}' if names else ''}"
    )


def _samples(counts: Counts) -> str:
    made = counts["completions"]
    verdicts = ", ".join(
        f"{counts[verdict] / made:.0%} {verdict}" for verdict in ("right", "wrong", "unparseable")
    )
    reasons = {
        "truncated completions": counts["truncated"],
        # Records of earlier versions do not say.
        "guessed answers": counts.get("guessed", 0),
        "answers given up on, so wrong": counts.get("undecided", 0),
        "questions without the teacher's answer": counts["without_teacher_answer"],
        "questions of other tasks": counts.get("of_other_tasks", 0),
        "questions beyond data.fraction": counts.get("beyond_fraction", 0),
        **{f"questions dropped: {reason}": n for reason, n in counts["dropped"].items()},
    }
    return (
        f"{made:,} completions of {counts['questions']:,} questions: {verdicts}{_reasons(reasons)}"
        f"{_effort(counts)}"
    )


def _pairs(counts: Counts) -> str:
    kept = {"questions", "pairs", "questions_paired", "completions"}
    return (
        f"{counts['pairs']:,} pairs from {counts['questions_paired']:,} of"
        f" {counts['questions']:,} questions"
        + _listed({pair_reason(key): n for key, n in counts.items() if key not in kept})
    )


def pair_reason(key: str) -> str:
    """A count of what made no pair, in words."""
    kind, _, reason = key.partition("_")
    if kind == "completions":
        return f"{reason} completions"
    rule, without, missing = key.partition("_without_")
    if not without:
        return f"{kind} with {reason.replace('_', ' ')}"
    what = missing if missing == "demonstration" else f"{missing} answer"
    return f"questions without a {what} for {rule}"


def _reference(counts: Counts) -> str:
    return f"log-probabilities of {counts['pairs']:,} pairs{_reasons(counts['left_out'])}"


def _evaluation(counts: Counts) -> str:
    scores = scores_from(counts["test"])
    by_kind = {
        kind: [f"{name} {100 * found[kind].accuracy:.1f}" for name, found in scores.items()]
        for kind in next(iter(scores.values()))
    }
    return "; ".join(f"{kind}: {', '.join(shown)}" for kind, shown in by_kind.items())


def _effort(sampling: Counts) -> str:
    """How fast it was sampled, and what an endpoint has asked for it; records of earlier versions
    do not say."""
    if "usage" not in sampling:
        return ""
    retries = f", {sampling['retries']:,} calls made again" if sampling["retries"] else ""
    cost = f", cost {sampling['cost']:.2f}" if "cost" in sampling else ""
    return f"; {sampling['usage']['tokens_per_second']:,} tokens/s{retries}{cost}"


def _reasons(counts: Mapping[str, int]) -> str:
    return _listed({reason.replace("_", " "): n for reason, n in counts.items()})


def _listed(counts: Mapping[str, int]) -> str:
    """` (12 wrong, 3 truncated)`, or nothing where nothing was dropped."""
    parts = [f"{n:,} {reason}" for reason, n in counts.items() if n]
    return f" ({', '.join(parts)})" if parts else ""


_BY_KIND = {
    "questions": _questions,
    "demonstrations": _demonstrations,
    "student": _student,
    "samples": _samples,
    "pairs": _pairs,
    "reference": _reference,
    "evaluation": _evaluation,
}
