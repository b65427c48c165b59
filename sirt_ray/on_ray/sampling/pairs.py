"""A round's preference pairs, from graded samples and demonstrations in the student's tokens."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sirt_ray import user_code
from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import Artifact
from sirt_ray.config.job import JobConfig
from sirt_ray.core.demonstrations import select_for_tuning
from sirt_ray.core.encoding import as_student_answer
from sirt_ray.core.interfaces import Counts
from sirt_ray.core.pairs import CustomPairRule, make_pairs
from sirt_ray.errors import DataError, StageError
from sirt_ray.on_ray.engine.weights import located
from sirt_ray.quickstart import assets
from sirt_ray.training.tasks import Source
from sirt_ray.types import Demonstration, Graded


def pair(
    out: Path,
    job: JobConfig,
    samples: Artifact,
    demonstrations: Artifact | None,
    round_number: int,
) -> Counts:
    """Write `out/pairs.parquet` by the rule of the job's `refine`. `demonstrations`: None if the
    rule uses none. Raises StageError if there is no pair."""
    unlike: Counter[str] = Counter()
    shown: list[Graded] = []
    if demonstrations is not None:
        stored = parquet.records(Demonstration, demonstrations.fetched())
        shown = list(_in_student_tokens(select_for_tuning(stored, job), job, unlike))
    rule = job.refine.pairs.custom_rule
    pairs, counts = make_pairs(
        parquet.records(Graded, samples.fetched()),
        job.refine.pairs,
        f"{job.seed}/{round_number}",
        shown,
        None if rule is None else CustomPairRule(user_code.read(rule)),
    )
    counts |= unlike
    if not pairs:
        raise StageError(
            f"round {round_number} made no preference pair from {counts['questions']} questions"
            f" ({', '.join(f'{name} {n}' for name, n in counts.items() if n)}). Raise"
            " refine.num_cot or sampling.temperature, look at the texts in"
            f" {samples.path}, or try another pairs.rule"
        )
    parquet.write(out / "pairs.parquet", map(parquet.to_row, pairs), parquet.PAIR, counts)
    return counts


def _in_student_tokens(
    demonstrations: list[Demonstration], job: JobConfig, unlike: Counter[str]
) -> Iterator[Graded]:
    """Yield demonstrations in the student's token ids; count those that cannot be encoded, as in
    tuning."""
    # Imports torch, which planning a run does not need.
    from sirt_ray.training.model import load_tokenizer

    student = job.student
    source = Source(str(assets.resolve(student.model)), student.revision)
    tokenizer = load_tokenizer(located(source, weights=False))
    for demonstration in demonstrations:
        try:
            yield as_student_answer(demonstration, tokenizer)
        except DataError:
            unlike["demonstrations_end_of_sequence_inside"] += 1
