"""The smallest possible run on the quickstart's models: an engine behind Ray Serve that answers,
and DeepSpeed in a Ray Train worker that trains on its answers.

It uses the stages of a real run, so what fails here would fail there with the same message.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from sirt_ray.artifacts.store import Store
from sirt_ray.config.job import JobConfig
from sirt_ray.core.interfaces import Model, Policy
from sirt_ray.doctor.findings import Finding
from sirt_ray.errors import SirtError
from sirt_ray.report.progress import LogProgress

_SERVE = "Serve + vLLM"
_DEEPSPEED = "DeepSpeed"
_START_TIMEOUT_SECONDS = 180.0
"""Of the engine, and of the training worker."""
_QUESTIONS = 8


def check_trial() -> list[Finding]:
    """Run the trial on a Ray of its own on this machine. The log is kept if the trial fails."""
    folder = Path(tempfile.mkdtemp(prefix="sirt-doctor-"))
    findings = list(_run_trial(folder))
    if all(finding.level == "ok" for finding in findings):
        shutil.rmtree(folder, ignore_errors=True)
    return findings


def _run_trial(folder: Path) -> Iterator[Finding]:
    """Yield one finding for each part, up to the first that fails."""
    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.on_ray.stages import RayStages

    job, part = _job(folder), "Ray"
    try:
        with connected(None, job.resources, folder / "logs"):
            stages = RayStages(job, folder, LogProgress(Console(quiet=True)))
            store = Store(folder)
            teacher = Model(Policy("teacher", job.teacher.source), "")
            base = Model(Policy("baseline", job.student.model), "")
            try:
                part, started = _SERVE, time.monotonic()
                stages.check_cluster()
                questions = store.once("questions", {}, stages.questions)
                demonstrations = store.once(
                    "demonstrations",
                    {},
                    lambda out: stages.demonstrate(out, teacher=teacher, questions=questions),
                )
                assert demonstrations.counts is not None
                tokens = demonstrations.counts["sampling"]["completion_tokens"]
                yield _passed(part, f"{_QUESTIONS} questions answered, {tokens} tokens", started)
                part, started = _DEEPSPEED, time.monotonic()
                student = store.once(
                    "student",
                    {},
                    lambda out: stages.tune(out, base=base, demonstrations=demonstrations),
                )
                assert student.counts is not None
                yield _passed(part, f"{student.counts['steps']} steps trained", started)
            finally:
                stages.close()
    except SirtError as error:
        yield _failed(part, str(error), folder)
    except Exception as error:  # On a broken machine Ray and its libraries may raise anything.
        yield _failed(part, f"{type(error).__name__}: {error}", folder)


def _passed(part: str, result: str, started: float) -> Finding:
    return Finding(part, "ok", f"{result}, in {time.monotonic() - started:.0f} s")


def _failed(part: str, message: str, folder: Path) -> Finding:
    cure = f"Fix what the other lines report; the whole log is in {folder / 'logs'}"
    return Finding(part, "problem", " ".join(message.split()), cure)


def _job(folder: Path) -> JobConfig:
    return JobConfig.model_validate(
        {
            "name": folder.name,
            "output": str(folder.parent),
            "data": {
                "train": ["word_problems"],
                "evaluate": ["word_problems"],
                "num_train": _QUESTIONS,
                "num_validation": 0,
                "num_test": 1,
            },
            "teacher": {"model": "quickstart:teacher", "sampling": {"max_tokens": 96}},
            "student": {"model": "quickstart:student"},
            # Keep wrong answers, too: a small model may be wrong eight times.
            "demonstrations": {"keep": "all"},
            "tune": {
                "max_steps": 2,
                "batch_size": 4,
                "validation_fraction": 0,
                "select_by": "last",
            },
            "refine": {"rounds": 0},
            "resources": {
                "teacher": {"max_model_len": 256, "start_timeout_s": _START_TIMEOUT_SECONDS},
                "trainer": {"start_timeout_s": _START_TIMEOUT_SECONDS},
                # Too few to prestart the student's engine, which this trial does not use.
                "local_cpus": 2,
            },
        }
    )
