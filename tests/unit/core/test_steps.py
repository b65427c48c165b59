"""The settings in the records of artifacts keep their names, so that existing runs resume."""

from pathlib import Path
from typing import Any

from sirt_ray.artifacts.store import Artifact, canonical, fingerprint
from sirt_ray.config.job import JobConfig
from sirt_ray.config.training import TuneConfig
from sirt_ray.core import steps
from sirt_ray.core.interfaces import Model, Policy, ReferenceLogps

COMMON: dict[str, Any] = {
    "adam_betas": [0.9, 0.999],
    "choose": "best",
    "dtype": "float32",
    "evaluate_every_steps": 50,
    "lora": None,
    "max_grad_norm": 1.0,
    "max_length": 1024,
    "patience": None,
    "schedule": "cosine",
    "validation_fraction": 0.05,
}
TUNE: dict[str, Any] = COMMON | {
    "batch_size": 32,
    "epochs": 4,
    "learning_rate": 2e-05,
    "max_demonstrations": None,
    "max_steps": None,
    "prompt": "cot",
    "warmup_ratio": 0.03,
    "warmup_steps": 0,
    "weight_decay": 0.0001,
}
REFINE: dict[str, Any] = COMMON | {
    "batch_size": 128,
    "beta": 0.1,
    "desirable_weight": 1.0,
    "epochs": 1,
    "label_smoothing": 0.0,
    "learning_rate": 1e-06,
    "length_normalised": False,
    "loss": "sigmoid",
    "max_steps": 1000,
    "nll_weight": 0.0,
    "simpo_margin": 0.0,
    "undesirable_weight": 1.0,
    "warmup_ratio": 0.0,
    "warmup_steps": 100,
    "weight_decay": 0.0,
}
"""What version 0.1.0 records of a job with default settings."""

JOB = JobConfig.model_validate(
    {
        "name": "n",
        "data": {"train": ["gsm8k"], "evaluate": ["gsm8k"]},
        "teacher": {"model": "big"},
        "student": {"model": "small"},
    }
)


BASE = Model(Policy("baseline", "small"), "base")


def artifact(name: str, key: str) -> Artifact:
    return Artifact(name, Path(name), key * 16, {})


def test_a_tuning_has_the_inputs_and_the_fingerprint_of_the_first_version() -> None:
    inputs = steps.tuned(JOB, BASE, artifact("demonstrations", "f")).inputs
    assert canonical(inputs)["tune"] == TUNE
    assert fingerprint(inputs) == "efb6fb9eab30a89f"


def test_a_refinement_has_the_inputs_and_the_fingerprint_of_the_first_version() -> None:
    student = Model(BASE.policy, artifact("demonstrations", "f"))
    pairs, logps = artifact("round_01/pairs", "a"), artifact("round_01/reference", "b")
    inputs = steps.refined(JOB, 1, student, pairs, ReferenceLogps(BASE, logps)).inputs
    assert canonical(inputs)["refine"] == REFINE
    assert fingerprint(inputs) == "43a48b78be3580d2"


def test_a_training_without_a_run_has_the_fingerprint_of_the_first_version() -> None:
    settings = steps.training_settings(TuneConfig())
    assert canonical(settings) == TUNE | {"skip": False, "tasks": None}
    assert fingerprint({"tune": settings}) == "a065b9bb321aab11"
