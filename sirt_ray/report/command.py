"""`sirt report`: run folders, or a study's -> one document."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from sirt_ray import storage
from sirt_ray.artifacts import RECORD
from sirt_ray.errors import DataError
from sirt_ray.report.answers import Answers, Sampled, asked_in, read_answers, read_samples
from sirt_ray.report.document import Document, Grid, markdown, print_text
from sirt_ray.report.evidence import (
    TUNED,
    Labelled,
    Labels,
    accuracies,
    answer_figures,
    differences,
    sample_figures,
)
from sirt_ray.report.funnel import contamination, funnel
from sirt_ray.report.runs import RunRecord, read_runs, same_test_questions
from sirt_ray.report.studies import is_study, read_study
from sirt_ray.report.study_report import study_report

FORMATS: Mapping[str, Callable[[Document, Console], None]] = {
    "text": print_text,
    "markdown": lambda document, console: console.out(markdown(document), end="", highlight=False),
}
"""Format -> what prints a document in it."""


def write_report(folders: Sequence[Path], format: str, out: Path | None) -> None:
    """Print the report of a study, of a run, or of one job's runs under several seeds, or write it
    to `out`.

    Raises DataError for a folder that is neither, for a study among others, for runs of different
    jobs, and where `out` cannot be written.
    """
    studies = [folder for folder in folders if is_study(folder)]
    if studies and len(folders) > 1:
        raise DataError(
            f"{studies[0]} is a study's folder, which is reported by itself: its cells are compared"
            " with each other. Give it alone, or give folders of runs alone"
        )
    document = study_report(read_study(folders[0])) if studies else report(read_runs(folders))
    if out is None:
        FORMATS[format](document, Console())
        return
    try:
        with out.open("w", encoding="utf-8") as file:
            FORMATS[format](document, Console(file=file, width=100))
    except OSError as error:
        raise DataError(f"cannot write the report to {out}: {error}. Give another --out") from error


def report(runs: Sequence[RunRecord]) -> Document:
    """What runs of one job have come to. What is not there yet is left out, and said."""
    job = runs[0].job
    labels = Labels(
        in_domain=job.in_domain,
        rolled_back=Counter(version for run in runs for version in run.rolled_back),
        same_questions=same_test_questions(runs),
    )
    by_label = {run.label: run.counts for run in runs}
    seen = contamination({label: found.get("questions", {}) for label, found in by_label.items()})
    grids = [*_tested(runs, labels), *_sampled(runs, labels), funnel(by_label), seen]
    shown = [grid for grid in grids if grid is not None and grid.rows]
    return Document(f"Report of {job.name}", _paragraphs(runs, counted=seen is not None), shown)


def _tested(runs: Sequence[RunRecord], labels: Labels) -> list[Grid]:
    """Test questions: scores, differences, and how the answers look."""
    answers = [_answers(run) for run in runs]
    stages = [stage for stage in answers[0] if all(stage in found for found in answers)]
    grids = [accuracies([run.scores for run in runs], labels)]
    for before in (TUNED, "baseline", "teacher"):
        after = [stage for stage in stages if _is_compared(stage, before)]
        if before in stages and after:
            grids.append(differences(answers, before, after, labels))
    return grids + answer_figures(answers, labels)


def _is_compared(stage: str, before: str) -> bool:
    """Each two stages are compared once, the later one against the earlier; all against the
    teacher."""
    if before == "teacher":
        return stage != "teacher"
    earlier = ("teacher", "baseline", TUNED) if before == TUNED else ("teacher", "baseline")
    return stage not in earlier


def _sampled(runs: Sequence[RunRecord], labels: Labels) -> list[Grid]:
    """What the rounds sampled of training questions."""
    return [sample_figures([_samples(run) for run in runs], labels)]


def _answers(run: RunRecord) -> Labelled[Answers]:
    """Stage -> its answers to the test questions."""
    if not run.scores:
        return {}
    asked = asked_in(storage.fetch(run.path / "questions", RECORD), run.job.data.evaluate)
    prompts = run.job.evaluation.prompts
    return {
        stage: read_answers(storage.fetch(run.path / stage / "evaluation", RECORD), asked, prompts)
        for stage in run.scores
    }


def _samples(run: RunRecord) -> Labelled[Sampled]:
    """Round -> its samples."""
    return {
        name.removesuffix("/samples"): read_samples(storage.fetch(run.path / name, RECORD))
        for name in run.counts
        if name.endswith("/samples")
    }


def _paragraphs(runs: Sequence[RunRecord], counted: bool) -> list[str]:
    job = runs[0].job
    seeds = ", ".join(str(run.job.seed) for run in runs)
    far = [name for name in job.data.evaluate if name not in job.in_domain]
    found = [
        f"Student {job.student.model}, teacher {job.teacher.source},"
        f" {'seed' if len(runs) == 1 else 'seeds'} {seeds}. In-domain, trained on:"
        f" {', '.join(job.in_domain)}. Out-domain: {', '.join(far) or 'none'}."
    ]
    found += [
        f"{storage.place(run.path)} is not finished: {', '.join(run.missing)} {_are(run.missing)}"
        " missing. `sirt run` with the same job goes on with it."
        for run in runs
        if run.missing
    ]
    all_stages = dict.fromkeys(stage for run in runs for stage in run.scores)
    partly = [stage for stage in all_stages if any(stage not in run.scores for run in runs)]
    if partly:
        found.append(
            f"{', '.join(partly)} {_are(partly)} not evaluated in every run, and left out of what"
            " is compared."
        )
    if not counted and any("questions" in run.counts for run in runs):
        found.append(
            "Test questions seen in training were not counted when the questions were made: an"
            " earlier version made them."
        )
    return found


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
