"""What there is to say about runs of one job under several seeds, by subject."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sirt_ray.artifacts.store import RECORD
from sirt_ray.report.answers import Answers, Sampled, asked_in, read_answers, read_samples
from sirt_ray.report.document import Document, Grid
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
from sirt_ray.report.runs import RunRecord, same_test_questions
from sirt_ray.storage import object_store


@dataclass(frozen=True, slots=True)
class Findings:
    title: str
    paragraphs: Sequence[str]
    answers: Sequence[Labelled[Answers]]
    """Of each run: stage -> its answers to the test questions."""
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


def find(runs: Sequence[RunRecord]) -> Findings:
    """What runs of one job have come to. What is not there yet is left out, and said."""
    labels = Labels(
        in_domain=runs[0].job.in_domain,
        rolled_back=Counter(version for run in runs for version in run.rolled_back),
        same_questions=same_test_questions(runs),
    )
    answers = [_answers(run) for run in runs]
    by_label = {run.label: run.counts for run in runs}
    seen = contamination({label: found.get("questions", {}) for label, found in by_label.items()})
    return Findings(
        title=f"Report of {runs[0].job.name}",
        paragraphs=_paragraphs(runs, counted=seen is not None),
        answers=answers,
        accuracy=accuracies([run.scores for run in runs], labels),
        differences=_differences(answers, labels),
        forms=answer_figures(answers, labels),
        samples=sample_figures([_samples(run) for run in runs], labels),
        funnel=funnel(by_label),
        contamination=seen,
    )


def _differences(answers: Sequence[Labelled[Answers]], labels: Labels) -> list[Grid]:
    stages = [stage for stage in answers[0] if all(stage in found for found in answers)]
    grids: list[Grid] = []
    for before in (TUNED, "baseline", "teacher"):
        after = [stage for stage in stages if _is_compared(stage, before)]
        if before in stages and after:
            grids.append(differences(answers, before, after, labels))
    return grids


def _is_compared(stage: str, before: str) -> bool:
    """Each two stages are compared once, the later one against the earlier; all against the
    teacher."""
    if before == "teacher":
        return stage != "teacher"
    earlier = ("teacher", "baseline", TUNED) if before == TUNED else ("teacher", "baseline")
    return stage not in earlier


def _answers(run: RunRecord) -> Labelled[Answers]:
    """Stage -> its answers to the test questions."""
    if not run.scores:
        return {}
    asked = asked_in(object_store.fetch(run.path / "questions", RECORD), run.job.data.evaluate)
    prompts = run.job.evaluation.prompts
    return {
        stage: read_answers(
            object_store.fetch(run.path / stage / "evaluation", RECORD), asked, prompts
        )
        for stage in run.scores
    }


def _samples(run: RunRecord) -> Labelled[Sampled]:
    """Round -> its samples."""
    return {
        name.removesuffix("/samples"): read_samples(object_store.fetch(run.path / name, RECORD))
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
        f"{object_store.to_uri(run.path)} is not finished: {', '.join(run.missing)} {_are(run.missing)}"
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
