"""The outcome of every question and completion on its way to training, from the records' counts."""

from collections.abc import Iterable, Mapping

from sirt_ray.core.interfaces import Counts
from sirt_ray.report.document import Column, Grid
from sirt_ray.report.journal import pair_reason

_SAMPLED = ("completions", "right", "wrong", "unparseable", "truncated")
_SELECTED = (
    "training_questions",
    "of_other_tasks",
    "beyond_fraction",
    "without_teacher_answer",
    "beyond_max_questions",
    "questions",
)
_PAIRED = ("questions", "completions", "questions_paired", "pairs")
_KEPT = frozenset(
    name.replace("_", " ")
    for name in (*_SAMPLED, *_PAIRED, "training_questions", "kept", "trained_on", "held_out")
) | {"rows", "train", "validation", "asked"}

Figures = dict[str, int]


def funnel(runs: Mapping[str, Mapping[str, Counts]]) -> Grid:
    """Return the counts of runs (label -> artifact -> counts): figures down, runs across."""
    return _grid(
        "From questions to training examples",
        {label: _all(records) for label, records in runs.items()},
        "Truncated completions were cut off by the token limit; they have a verdict all the same."
        " What is held out of training decides which of its weights are kept.",
    )


def contamination(runs: Mapping[str, Counts]) -> Grid | None:
    """Return how many test questions were seen in training, from the counts of `questions` of runs
    (label -> counts). None if no record has them: earlier versions did not count them."""
    found: dict[str, Figures] = {}
    for label, counts in runs.items():
        found[label] = {}
        for benchmark, of_benchmark in counts.items():
            seen = of_benchmark.get("contamination")
            if seen:
                found[label] |= {
                    f"{benchmark}: test questions": seen["test_questions"],
                    f"{benchmark}: the text of a training question": seen["same_text"],
                    f"{benchmark}: {seen['ngram']} words in a row of one": seen["overlapping"],
                }
    if not any(found.values()):
        return None
    return _grid(
        "Test questions seen in training",
        found,
        "Without regard to case and punctuation; a shorter question is compared as a whole. They"
        " are counted, and none is left out of the scores.",
    )


def _grid(title: str, runs: Mapping[str, Figures], note: str) -> Grid:
    named = dict.fromkeys(name for figures in runs.values() for name in figures)
    rows = [
        [name, *(f"{figures[name]:,}" if name in figures else "-" for figures in runs.values())]
        for name in named
    ]
    return Grid(title, "figure", [Column(label) for label in runs], rows, note)


def by_artifact(records: Mapping[str, Counts]) -> dict[str, Figures]:
    """Return the figures of each artifact, without reasons that dropped nothing."""
    found: dict[str, Figures] = {}
    for name, counts in records.items():
        figures = _of(name.rsplit("/", maxsplit=1)[-1], counts)
        if name == "round_00/student" and figures:
            kept = records["demonstrations"]["kept"]
            figures["not chosen to tune on"] = kept - sum(figures.values())
        shown = {figure: n for figure, n in figures.items() if n}
        if shown:
            found[name] = shown
    return found


def is_dropped(figure: str) -> bool:
    """Return whether a figure of `by_artifact` counts what is dropped."""
    return figure.rpartition(": ")[2] not in _KEPT


def _all(records: Mapping[str, Counts]) -> Figures:
    return {
        f"{name}: {figure}": n
        for name, figures in by_artifact(records).items()
        for figure, n in figures.items()
    }


def _of(kind: str, counts: Counts) -> Figures:
    match kind:
        case "questions":
            return _questions(counts)
        case "demonstrations":
            sampling = counts.get("sampling", {})
            file = {key: n for key, n in counts.get("file", {}).items() if key.endswith("_rows")}
            dropped = {key: n for key, n in counts.items() if key.startswith("dropped_")}
            questions, kept = _named(counts, ("questions",)), _named(counts, ("kept",))
            unanswered = sampling.get("dropped", {})
            return _worded(
                questions | _named(sampling, _SAMPLED) | unanswered | file | dropped | kept
            )
        case "samples":
            return _worded(_named(counts, (*_SELECTED, *_SAMPLED)) | counts.get("dropped", {}))
        case "evaluation":
            return _worded(counts.get("sampling", {}).get("dropped", {}))
        case "pairs":
            reasons = {pair_reason(key): n for key, n in counts.items() if key not in _PAIRED}
            return _worded(_named(counts, _PAIRED[:2]) | reasons | _named(counts, _PAIRED[2:]))
        case "reference":
            return _worded(counts.get("left_out", {}))
        case "student":
            trained = {"held_out": counts.get("held_out", 0), "trained_on": counts["examples"]}
            return _worded({**counts["left_out"], **trained})
        case _:
            return {}


def _questions(counts: Counts) -> Figures:
    found: Figures = {}
    for benchmark, of_benchmark in counts.items():
        for part in ("training", "test"):
            figures = _worded(of_benchmark.get(f"{part}_rows", {}))
            figures.pop("train also in test", None)
            found |= {f"{benchmark}, {part}: {figure}": n for figure, n in figures.items()}
        if "test" in of_benchmark:
            found[f"{benchmark}, test: asked"] = of_benchmark["test"]["questions"]
    return found


def _named(counts: Counts, names: Iterable[str]) -> Figures:
    return {name: counts[name] for name in names if name in counts}


def _worded(figures: Mapping[str, int]) -> Figures:
    return {name.replace("_", " "): n for name, n in figures.items()}
