"""The parts of a run put to work on the quickstart's models, as small as they can be: an engine
behind Ray Serve that answers, and DeepSpeed in a Ray Train worker that learns from its answers.

They are a run's own stages, so what goes wrong here would go wrong there, with the same words.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from sirt_ray.artifacts.store import Store
from sirt_ray.config.job import JobConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.doctor.findings import Finding
from sirt_ray.errors import SirtError
from sirt_ray.report.progress import LogProgress

_SERVE = "Serve + vLLM"
_DEEPSPEED = "DeepSpeed"
_MOST_SECONDS = 180.0
"""For the start of the engine, and of the training worker."""
_QUESTIONS = 8


def check_trial() -> list[Finding]:
    """Start a Ray on this machine, use it, and end it. The log of a trial that failed stays."""
    folder = Path(tempfile.mkdtemp(prefix="sirt-doctor-"))
    findings = list(_tried(folder))
    if all(finding.level == "ok" for finding in findings):
        shutil.rmtree(folder, ignore_errors=True)
    return findings


def _tried(folder: Path) -> Iterator[Finding]:
    """One finding for each part, up to the first that fails."""
    from sirt_ray.on_ray.cluster import connected
    from sirt_ray.on_ray.stages import RayStages

    job, part = _job(folder), "Ray"
    try:
        with connected(None, job.resources, folder / "logs"):
            stages = RayStages(job, folder, LogProgress(Console(quiet=True)))
            store = Store(folder)
            teacher = Policy("teacher", job.teacher.source)
            base = Policy("baseline", job.student.model)
            try:
                part, began = _SERVE, time.monotonic()
                stages.check_cluster()
                asked = store.once("questions", {}, stages.questions)
                shown = store.once(
                    "demonstrations", {}, lambda out: stages.demonstrate(out, teacher, asked)
                )
                written = shown.counts["sampling"]["completion_tokens"]
                yield _went(part, f"{_QUESTIONS} questions answered, {written} tokens", began)
                part, began = _DEEPSPEED, time.monotonic()
                student = store.once("student", {}, lambda out: stages.tune(out, base, shown))
                yield _went(part, f"{student.counts['steps']} steps trained", began)
            finally:
                stages.close()
    except SirtError as error:
        yield _failed(part, str(error), folder)
    except Exception as error:  # what a broken machine makes of Ray and its libraries
        yield _failed(part, f"{type(error).__name__}: {error}", folder)


def _went(part: str, what: str, began: float) -> Finding:
    return Finding(part, "ok", f"{what}, in {time.monotonic() - began:.0f} s")


def _failed(part: str, message: str, folder: Path) -> Finding:
    said = " ".join(message.split())
    cure = f"Mend what the other lines name; the whole log is in {folder / 'logs'}"
    return Finding(part, "problem", said, cure)


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
            # Whether it is right is not asked here, and a small model may be wrong eight times.
            "demonstrations": {"keep": "all"},
            "tune": {"max_steps": 2, "batch_size": 4, "validation_fraction": 0, "choose": "last"},
            "refine": {"rounds": 0},
            "resources": {
                "teacher": {"max_model_len": 256, "start_timeout_s": _MOST_SECONDS},
                "trainer": {"start_timeout_s": _MOST_SECONDS},
                # Too few for a student's engine beside the teacher's: it is not asked anything.
                "local_cpus": 2,
            },
        }
    )
