"""Whole runs with trackers, written by the real loop without models."""

import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from sirt_ray.artifacts.store import Store
from sirt_ray.config import load
from sirt_ray.config.job import JobConfig
from sirt_ray.core.interfaces import Counts
from sirt_ray.logs import attached_handler, log_event
from sirt_ray.report.journal import RunJournal
from sirt_ray.tracking.sender import Trackers
from tests.helpers.fakes import job, run_fake
from tests.helpers.written_runs import WrittenStages

TESTS = {
    "teacher": {"gsm8k": "1111"},
    "baseline": {"gsm8k": "0000"},
    "round_00": {"gsm8k": "1000"},
    "round_01": {"gsm8k": "1110"},
}
STEPS = [{"step": n, "total_steps": 3, "loss": 1 / n, "margin": 0.1 * n} for n in (1, 2, 3)]


class SteppingStages(WrittenStages):
    """Tells the steps of its trainings, as the driver does that watches the workers, all but the
    last; `metrics.jsonl` has them all."""

    def tune(self, out: Path, **needs: Any) -> Counts:
        self._train(out, "round_00/student")
        return super().tune(out, **needs)

    def refine(self, out: Path, **needs: Any) -> Counts:
        self._train(out, "round_01/student")
        return super().refine(out, **needs)

    def _train(self, out: Path, name: str) -> None:
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STEPS))
        for line in STEPS[:-1]:
            log_event(logging.DEBUG, "a step", "step", artifact=name, line=line)


def tracked_job(*names: str) -> JobConfig:
    return job(refine={"rounds": 1}, tracking=list(names))


def run(root: Path, *names: str) -> list[str]:
    """A run with these trackers, from beginning to end; what it warned of."""
    resolved, warnings = tracked_job(*names), list[str]()
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(load.dump(resolved))
    journal = RunJournal(root, Console(quiet=True))

    def warn(name: str, text: str) -> None:
        journal.event("tracker_failed", text)
        warnings.append(text)

    # Longer than a test may take: no tracker here is to be waited for.
    journal.also.append(Trackers(resolved, root, warn, end_seconds=600))
    with attached_handler(journal):
        store = Store(root, on_artifact=journal.artifact)
        outcome = run_fake(resolved, SteppingStages(TESTS), store, journal)
    journal.finish(outcome.scores)
    return warnings
