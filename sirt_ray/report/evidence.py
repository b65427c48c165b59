"""Scores and answers -> grids: one for each question that a reader has about them.

All take one mapping per seed, from a label (a stage of a run, or whatever is compared) to what each
task came to. For one seed an error bar is over questions, for several it is over seeds; the grids'
notes say which.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sirt_ray.core.statistics import MeanPaired, Paired, over_seeds, paired
from sirt_ray.report.answers import Answers, Sampled, Task
from sirt_ray.report.document import Column, Grid
from sirt_ray.types import Score, Scores

TUNED = "round_00"
"""The stage that refinement is compared with: instruction tuning."""

Value = TypeVar("Value")
Labelled = Mapping[str, Mapping[Task, Value]]
"""Label -> task -> value."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a reader should know about the names in a grid."""

    in_domain: Collection[str]
    """Benchmarks that were trained on."""
    rolled_back: Mapping[str, int] = field(default_factory=dict)
    """Label -> in how many runs; those that never were may be left out."""
    same_questions: bool = True
    """All runs were asked the same test questions."""


def accuracies(runs: Sequence[Mapping[str, Scores]], labels: Labels) -> Grid:
    """Labels down, tasks across, % right. For several runs the last row is the gain of the last
    label over instruction tuning, each seed's own difference averaged."""
    by_task = [{label: _by_task(scores) for label, scores in run.items()} for run in runs]
    several = len(runs) > 1
    grid = _grid(
        f"Accuracy, % right ± standard error{' over seeds' if several else ''}",
        by_task,
        labels,
        shown_score,
        _noise(len(runs), labels.same_questions),
    )
    shared = _shared(by_task)
    last = shared[-1] if shared else TUNED
    if not several or TUNED not in shared or last == TUNED:
        return grid
    gains: list[Labelled[float]] = [
        {f"{last} - {TUNED}": _gains(run[TUNED], run[last])} for run in by_task
    ]
    rows = [*grid.rows, *_rows(gains, _tasks(by_task, labels), labels, _signed)]
    return Grid(grid.title, grid.corner, grid.columns, rows, grid.note)


def differences(
    runs: Sequence[Labelled[Answers]], before: str, after: Sequence[str], labels: Labels
) -> Grid:
    """Accuracy of each label of `after` minus that of `before`, on the same questions."""
    compared: list[Labelled[Paired]] = [
        {
            label: {
                task: paired(run[before][task].right, run[label][task].right)
                for task in run[label]
                if task in run[before]
            }
            for label in after
        }
        for run in runs
    ]
    note = (
        "95 % interval (paired bootstrap over questions), p of McNemar's exact test. Each"
        " p is of one comparison: among many, some are small by chance."
        if len(runs) == 1
        else "Mean of each seed's own difference ± standard error over seeds, 95 %"
        f" interval by Student's t (degrees of freedom: {len(runs) - 1})."
    )
    return _grid(f"Difference to {before}, points", compared, labels, shown_difference, note)


def answer_figures(runs: Sequence[Labelled[Answers]], labels: Labels) -> list[Grid]:
    """How the answers to the test questions look."""

    def grid(title: str, of: Callable[[Answers], float | None], note: str = "") -> Grid:
        found: list[Labelled[float | None]] = [
            {
                label: {task: of(answers) for task, answers in tasks.items()}
                for label, tasks in run.items()
            }
            for run in runs
        ]
        return _grid(title, found, labels, _number, note)

    return [
        grid("Length of an answer, mean tokens", lambda answers: answers.tokens),
        grid(
            "Answers with a chain of thought, %",
            lambda answers: 100 * answers.with_chain,
            "Two sentences or more, or an arithmetic step such as 16 - 7 = 9.",
        ),
        grid("Answers without a readable final answer, %", lambda a: 100 * a.unparseable),
        grid("Answers cut off by the token limit, %", lambda a: 100 * a.truncated),
    ]


def sample_figures(runs: Sequence[Labelled[Sampled]], labels: Labels) -> Grid:
    """pass@k and majority@k of each round's samples."""
    return _grid(
        "Samples of a round, % of its questions",
        [_by_estimate(run) for run in runs],
        labels,
        _number,
        "The student that the round starts from answers training questions, judged as the round"
        " judges them. pass@1 is the accuracy of a sample; pass@k of all samples is the oracle's"
        " best; majority@k is the most frequent final answer.",
    )


def _by_estimate(run: Labelled[Sampled]) -> Labelled[float]:
    found: dict[str, dict[Task, float]] = {}
    for label, tasks in run.items():
        for k in sorted({k for sampled in tasks.values() for k in sampled.pass_at}):
            found[f"{label}, pass@{k}"] = {
                task: 100 * sampled.pass_at[k]
                for task, sampled in tasks.items()
                if k in sampled.pass_at
            }
        for k in sorted({sampled.samples for sampled in tasks.values() if sampled.samples > 1}):
            found[f"{label}, majority@{k}"] = {
                task: 100 * sampled.majority
                for task, sampled in tasks.items()
                if sampled.samples == k
            }
    return found


def _by_task(scores: Scores) -> dict[Task, Score]:
    return {(name, kind): score for name, kinds in scores.items() for kind, score in kinds.items()}


def _gains(before: Mapping[Task, Score], after: Mapping[Task, Score]) -> dict[Task, float]:
    return {
        task: 100 * (score.accuracy - before[task].accuracy)
        for task, score in after.items()
        if task in before
    }


def _noise(num_runs: int, same_questions: bool) -> str:
    if num_runs == 1:
        return (
            "± is the binomial error of having so many questions; what a seed changes is not in it."
        )
    if same_questions:
        return (
            f"Mean ± standard error over {num_runs} seeds. The test questions are the same under"
            " every seed, so the noise of having only those is not in it."
        )
    return (
        f"Mean ± standard error over {num_runs} seeds. Each seed asks test questions of its own, so"
        " their noise is in it."
    )


# One grid of many: labels down, tasks across


def _grid(
    title: str,
    runs: Sequence[Labelled[Value]],
    labels: Labels,
    cell: Callable[[Sequence[Value]], str],
    note: str = "",
) -> Grid:
    tasks = _tasks(runs, labels)
    columns = [
        Column(f"{name}, {kind}", "in-domain" if name in labels.in_domain else "out-domain")
        for name, kind in tasks
    ]
    return Grid(title, "stage", columns, _rows(runs, tasks, labels, cell), note)


def _rows(
    runs: Sequence[Labelled[Value]],
    tasks: Sequence[Task],
    labels: Labels,
    cell: Callable[[Sequence[Value]], str],
) -> list[list[str]]:
    """A cell is what `cell` makes of a task's value in each run; `-` where a run has none."""

    def shown(label: str, task: Task) -> str:
        found = [run[label][task] for run in runs if task in run[label]]
        return cell(found) if len(found) == len(runs) else "-"

    return [
        [_marked(label, labels, len(runs)), *(shown(label, task) for task in tasks)]
        for label in _shared(runs)
    ]


def _shared(runs: Sequence[Mapping[str, object]]) -> list[str]:
    """The labels that all runs have, in the first one's order."""
    return [label for label in runs[0] if all(label in run for run in runs)]


def _tasks(runs: Sequence[Labelled[Value]], labels: Labels) -> list[Task]:
    """All tasks of all labels, in-domain ones first."""
    named = dict.fromkeys(task for run in runs for tasks in run.values() for task in tasks)
    return sorted(named, key=lambda task: task[0] not in labels.in_domain)


def _marked(label: str, labels: Labels, num_runs: int) -> str:
    times = labels.rolled_back.get(label, 0)
    if not times:
        return label
    return f"{label}\n(rolled back{f' in {times} of {num_runs}' if num_runs > 1 else ''})"


def shown_score(scores: Sequence[Score]) -> str:
    if len(scores) == 1:
        return f"{100 * scores[0].accuracy:.1f} ± {100 * scores[0].stderr:.1f}"
    return _number([100 * score.accuracy for score in scores])


def _number(values: Sequence[float | None], sign: str = "") -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    if len(known) == 1:
        return f"{known[0]:{sign}.1f}"
    spread = over_seeds(known)
    return f"{spread.mean:{sign}.1f} ± {spread.stderr:.1f}"


def _signed(values: Sequence[float]) -> str:
    return _number(values, sign="+")


def estimate(found: Sequence[Paired | MeanPaired]) -> tuple[float, float, float]:
    """A difference and its 95 % interval, in points: over questions of one seed's comparison, over
    seeds of several."""
    points = [100 * comparison.difference for comparison in found]
    if len(found) == 1:
        return points[0], 100 * found[0].low, 100 * found[0].high
    spread = over_seeds(points)
    return spread.mean, spread.low, spread.high


def shown_difference(found: Sequence[Paired | MeanPaired]) -> str:
    """Of one seed and one benchmark with its p-value."""
    _, low, high = estimate(found)
    shown = f"{_signed([100 * of_seed.difference for of_seed in found])}\n[{low:+.1f}, {high:+.1f}]"
    if len(found) > 1 or isinstance(found[0], MeanPaired):
        return shown
    p = found[0].p_value
    return f"{shown}\np {'<0.001' if p < 0.001 else f'{p:.3f}'}"
