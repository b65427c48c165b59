"""The report of one run, or of one job's runs under several seeds."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import RECORD
from sirt_ray.config.job import JobConfig
from sirt_ray.core.repetition import repeated_share_of
from sirt_ray.core.statistics import majority, pass_at_k
from sirt_ray.report.document import Document, Grid
from sirt_ray.report.funnel import contamination, funnel
from sirt_ray.report.records import RunRecord, same_test_questions
from sirt_ray.report.tables import (
    TUNED,
    AnswerForm,
    Result,
    Results,
    Row,
    Task,
    Value,
    accuracy_cell,
    difference_cell,
    format_mean,
    mean_cell,
    scores,
    table,
    task_columns,
)
from sirt_ray.storage import object_store
from sirt_ray.types import PromptKind

# A run's stored answers


_VERDICT = ("question_id", "benchmark", "prompt_kind", "verdict")
_TEXT = ("completion", "completion_ids", "stop_reason")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|\Z)|\n")
_WORD = re.compile(r"\w+")
_FEWEST_WORDS = 3
"""Of a sentence: `A) Venice.` and `Mr.` are none."""
# Every part is bounded: model output is untrusted, and must not take more than linear time.
_STEP = re.compile(
    r"[0-9)%]\s{0,3}[-+*/x\u00d7\u00f7\u2212]\s{0,3}[$(]{0,2}[0-9][^=\n]{0,40}=\s{0,3}[-$(]{0,2}[0-9]"
)


def has_chain_of_thought(text: str) -> bool:
    """Return whether a text reasons before it concludes: it has two sentences or more, or an
    arithmetic step.

    A sentence ends in `.`, `!`, `?` or at the line's end and has three words or more; of two, one
    precedes the conclusion. An arithmetic step is an operation on numbers with its result, as in
    `16 - 7 = 9`. Whether the reasoning is sound is not checked.

    Examples::

        has_chain_of_thought("The answer is 18.") is False
        has_chain_of_thought("16 - 7 = 9, so the answer is 9.") is True
        has_chain_of_thought("Venice is built on canals. The answer is D.") is True
    """
    sentences = [
        part for part in _SENTENCE_END.split(text) if len(_WORD.findall(part)) >= _FEWEST_WORDS
    ]
    return len(sentences) > 1 or _STEP.search(text) is not None


ResultsReader = Callable[[RunRecord, str], Results]
"""A run and one of its stages -> its results."""


def results_reader(with_forms: bool = False) -> ResultsReader:
    """Return a reader of results that reads what runs share once. `with_forms`: also how the
    answers look, for which their texts are read."""

    @cache
    def question_ids(questions: Path, benchmarks: tuple[str, ...]) -> Mapping[str, Sequence[str]]:
        return {
            name: [row["id"] for row in parquet.rows(questions / name / "test.parquet", ["id"])]
            for name in benchmarks
        }

    @cache
    def results(
        evaluation: Path,
        questions: Path,
        benchmarks: tuple[str, ...],
        kinds: tuple[PromptKind, ...],
    ) -> Results:
        return _read_results(evaluation, question_ids(questions, benchmarks), kinds, with_forms)

    def read(run: RunRecord, stage: str) -> Results:
        return results(
            object_store.fetch(run.path / stage / "evaluation", RECORD).resolve(),
            object_store.fetch(run.path / "questions", RECORD).resolve(),
            tuple(run.job.data.evaluate),
            tuple(run.job.evaluation.prompts),
        )

    return read


def _read_results(
    evaluation: Path,
    question_ids: Mapping[str, Sequence[str]],
    kinds: Sequence[PromptKind],
    with_forms: bool,
) -> dict[Task, Result]:
    """Return one model's results on the test questions; a question that has no answer counts as
    wrong. The answers to validation questions, which are in the same files, are left out."""
    wanted = {question for ids in question_ids.values() for question in ids}
    right: set[tuple[PromptKind, str]] = set()
    forms: defaultdict[Task, list[AnswerForm]] = defaultdict(list)
    for row in parquet.rows(evaluation, [*_VERDICT, *_TEXT] if with_forms else _VERDICT):
        if row["verdict"] == "right":
            right.add((row["prompt_kind"], row["question_id"]))
        if with_forms and row["question_id"] in wanted:
            forms[row["benchmark"], row["prompt_kind"]].append(_form(row))
    return {
        (name, kind): Result.of(
            {question: (kind, question) in right for question in question_ids[name]},
            _mean_form(forms[name, kind]) if with_forms else None,
        )
        for name, kind in product(question_ids, kinds)
    }


def _form(row: Mapping[str, Any]) -> AnswerForm:
    """Return the form of one answer, in place of its text and tokens, which would fill memory."""
    return AnswerForm(
        tokens=len(row["completion_ids"]),
        with_chain=has_chain_of_thought(row["completion"]),
        unparseable=row["verdict"] == "unparseable",
        truncated=row["stop_reason"] == "length",
        repeated=repeated_share_of(row["completion"]),
    )


def _mean_form(forms: Sequence[AnswerForm]) -> AnswerForm:
    if not forms:
        return AnswerForm(None, 0.0, 0.0, 0.0, 0.0)
    tokens = [form.tokens for form in forms if form.tokens]
    return AnswerForm(
        fmean(tokens) if tokens else None,
        fmean(form.with_chain for form in forms),
        fmean(form.unparseable for form in forms),
        fmean(form.truncated for form in forms),
        fmean(form.repeated for form in forms),
    )


Estimates = Mapping[tuple[str, int], float]
"""(`pass` or `majority`, k) -> share of a task's questions."""


def _read_samples(samples: Path) -> dict[Task, Estimates]:
    """Read the figures of a round's samples."""
    found: defaultdict[Task, defaultdict[str, list[tuple[str | None, bool]]]]
    found = defaultdict(lambda: defaultdict(list))
    for row in parquet.rows(samples, [*_VERDICT, "extracted"]):
        of_task = found[row["benchmark"], row["prompt_kind"]]
        of_task[row["question_id"]].append((row["extracted"], row["verdict"] == "right"))
    return {task: _estimates(list(questions.values())) for task, questions in found.items()}


def _estimates(questions: Sequence[Sequence[tuple[str | None, bool]]]) -> Estimates:
    """Return pass@k for the powers of two up to the samples of a question (the fewest where that
    differs) and for their number, and majority@k for their number."""
    fewest = min(map(len, questions))
    counted = [(len(samples), sum(right for _, right in samples)) for samples in questions]
    found = {
        ("pass", k): fmean(pass_at_k(n, right, k) for n, right in counted)
        for k in sorted({2**power for power in range(fewest.bit_length())} | {fewest})
    }
    if fewest > 1:
        found["majority", fewest] = fmean(map(majority, questions))
    return found


# The report


@dataclass(frozen=True, slots=True)
class RunReport:
    """The report of one run, or of several seeds."""

    title: str
    paragraphs: Sequence[str]
    stages: Mapping[str, Row[Result]]
    """Stage -> its results, of the stages that are evaluated in every run."""
    accuracy: Grid
    differences: Sequence[Grid]
    forms: Sequence[Grid]
    """How the answers look."""
    samples: Grid
    funnel: Grid
    contamination: Grid | None

    @property
    def document(self) -> Document:
        grids = [
            *(self.accuracy, *self.differences, *self.forms),
            *(self.samples, self.funnel, self.contamination),
        ]
        shown = [grid for grid in grids if grid is not None and grid.rows]
        return Document(self.title, self.paragraphs, shown)


def report_runs(runs: Sequence[RunRecord]) -> RunReport:
    """Return the report of one job's runs. What is not finished is left out, and named."""
    read = results_reader(with_forms=True)
    stages = _rows(runs, [{stage: read(run, stage) for stage in run.scores} for run in runs])
    by_label = {run.label: run.counts for run in runs}
    seen = contamination({label: found.get("questions", {}) for label, found in by_label.items()})
    return RunReport(
        title=f"Report of {runs[0].job.name}",
        paragraphs=_paragraphs(runs, counted=seen is not None),
        stages=stages,
        accuracy=_accuracies(runs, stages),
        differences=_differences(runs, stages),
        forms=_forms(stages),
        samples=_samples(runs),
        funnel=funnel(by_label),
        contamination=seen,
    )


def _rows(
    runs: Sequence[RunRecord], values: Sequence[Mapping[str, Mapping[Task, Value]]]
) -> dict[str, Row[Value]]:
    """Return a row for each label of `values` that all runs have, in the order of the first run."""
    rolled_back = Counter(version for run in runs for version in run.rolled_back)

    def marked(label: str) -> str:
        if label not in rolled_back:
            return label
        times = f" in {rolled_back[label]} of {len(runs)}" if len(runs) > 1 else ""
        return f"{label}\n(rolled back{times})"

    return {
        label: Row(
            marked(label),
            {run.job.seed: of_run[label] for run, of_run in zip(runs, values, strict=True)},
            runs[0].job.in_domain,
        )
        for label in values[0]
        if all(label in of_run for of_run in values)
    }


def _table(title: str, rows: Sequence[Row], cell: Callable[..., str], note: str = "") -> Grid:
    return table(title, "stage", task_columns(rows), rows, cell, note)


def _accuracies(runs: Sequence[RunRecord], stages: Mapping[str, Row[Result]]) -> Grid:
    """Stages down, tasks across. The last row of several runs is the gain of the last stage over
    instruction tuning, each seed's own difference averaged."""
    several = len(runs) > 1
    title = f"Accuracy, % right ± standard error{' over seeds' if several else ''}"
    grid = _table(title, list(stages.values()), accuracy_cell, _accuracy_note(runs))
    last = [TUNED, *stages][-1]
    if not several or TUNED not in stages or last == TUNED:
        return grid

    def gain(row: Row[Result], tasks: Sequence[Task]) -> str:
        before, after = scores(stages[TUNED], tasks), scores(row, tasks)
        if not len(before) == len(after) == len(runs):
            return "-"
        pairs = zip(before, after, strict=True)
        return format_mean([100 * (new.accuracy - old.accuracy) for old, new in pairs], "+")

    gained = replace(stages[last], label=f"{last} - {TUNED}")
    return replace(grid, rows=[*grid.rows, *_table("", [gained], gain).rows])


def _accuracy_note(runs: Sequence[RunRecord]) -> str:
    if len(runs) == 1:
        return (
            "± is the binomial error of having so many questions; what a seed changes is not in it."
        )
    if same_test_questions(runs):
        return (
            f"Mean ± standard error over {len(runs)} seeds. The test questions are the same under"
            " every seed, so the noise of having only those is not in it."
        )
    return (
        f"Mean ± standard error over {len(runs)} seeds. Each seed has test questions of its own, so"
        " their noise is in it."
    )


def _differences(runs: Sequence[RunRecord], stages: Mapping[str, Row[Result]]) -> list[Grid]:
    """Accuracy of each later stage minus that of an earlier one, on the same questions."""
    note = (
        "95 % interval (paired bootstrap over questions), p of McNemar's exact test. Each"
        " p is of one comparison: among many, some are small by chance."
        if len(runs) == 1
        else "Mean of each seed's own difference ± standard error over seeds, 95 %"
        f" interval by Student's t (degrees of freedom: {len(runs) - 1})."
    )
    grids: list[Grid] = []
    for before in (TUNED, "baseline", "teacher"):
        after = [row for stage, row in stages.items() if _is_compared(stage, before)]
        if before in stages and after:
            title = f"Difference to {before}, points"
            grids.append(_table(title, after, difference_cell(stages[before]), note))
    return grids


def _is_compared(stage: str, before: str) -> bool:
    """Each two stages are compared once, the later one against the earlier; all against the
    teacher."""
    if before == "teacher":
        return stage != "teacher"
    earlier = ("teacher", "baseline", TUNED) if before == TUNED else ("teacher", "baseline")
    return stage not in earlier


def _forms(stages: Mapping[str, Row[Result]]) -> list[Grid]:
    def grid(title: str, of: Callable[[AnswerForm], float | None], note: str = "") -> Grid:
        def value(result: Result) -> float | None:
            return None if result.form is None else of(result.form)

        return _table(title, list(stages.values()), mean_cell(value), note)

    return [
        grid("Length of an answer, mean tokens", lambda form: form.tokens),
        grid(
            "Answers with a chain of thought, %",
            lambda form: 100 * form.with_chain,
            "Two sentences or more, or an arithmetic step such as 16 - 7 = 9.",
        ),
        grid("Answers without a readable final answer, %", lambda form: 100 * form.unparseable),
        grid("Answers cut off by the token limit, %", lambda form: 100 * form.truncated),
        grid(
            "Repeated 4-grams of an answer, mean %",
            lambda form: 100 * form.repeated,
            "Four words in a row that the answer has had before.",
        ),
    ]


def _samples(runs: Sequence[RunRecord]) -> Grid:
    """pass@k and majority@k of each round's samples."""

    def percent(share: float) -> float:
        return 100 * share

    return _table(
        "Samples of a round, % of its questions",
        list(_rows(runs, [_estimates_of(run) for run in runs]).values()),
        mean_cell(percent),
        "The student that the round starts from answers training questions, judged as the round"
        " judges them. pass@1 is the accuracy of a sample; pass@k of all samples is the oracle's"
        " best; majority@k is the most frequent final answer.",
    )


def _estimates_of(run: RunRecord) -> dict[str, dict[Task, float]]:
    """Return the rows of a run's samples: `round_01, pass@4` -> task -> share."""
    found: dict[str, dict[Task, float]] = {}
    for name in run.counts:
        if name.endswith("/samples"):
            tasks = _read_samples(object_store.fetch(run.path / name, RECORD))
            known = {key for estimates in tasks.values() for key in estimates}
            for what, k in sorted(known, key=lambda key: (key[0] != "pass", key[1])):
                found[f"{name.removesuffix('/samples')}, {what}@{k}"] = {
                    task: estimates[what, k]
                    for task, estimates in tasks.items()
                    if (what, k) in estimates
                }
    return found


def domains(job: JobConfig, in_domain: Sequence[str]) -> str:
    """Return which benchmarks are in-domain and which out-domain, in sentences."""
    far = [name for name in job.data.evaluate if name not in in_domain]
    return f"In-domain, trained on: {', '.join(in_domain)}. Out-domain: {', '.join(far) or 'none'}."


def _paragraphs(runs: Sequence[RunRecord], counted: bool) -> list[str]:
    job = runs[0].job
    seeds = ", ".join(str(run.job.seed) for run in runs)
    found = [
        f"Student {job.student.model}, teacher {job.teacher.source},"
        f" {'seed' if len(runs) == 1 else 'seeds'} {seeds}. {domains(job, job.in_domain)}"
    ]
    found += [
        f"{object_store.to_uri(run.path)} is not finished: {', '.join(run.missing)}"
        f" {_are(run.missing)} missing. `sirt run` with the same job continues it."
        for run in runs
        if run.missing
    ]
    all_stages = dict.fromkeys(stage for run in runs for stage in run.scores)
    partly = [stage for stage in all_stages if any(stage not in run.scores for run in runs)]
    if partly:
        found.append(
            f"{', '.join(partly)} {_are(partly)} not evaluated in every run, and left out of the"
            " comparisons."
        )
    if not counted and any("questions" in run.counts for run in runs):
        found.append(
            "Test questions seen in training were not counted when the questions were made: an"
            " earlier version made them."
        )
    return found


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
