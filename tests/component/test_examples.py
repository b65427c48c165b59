"""The method in one file, `examples/sirt_in_one_file.py`: it agrees with the package where both do
the same, and runs. `make test-newcomer` runs it at its full size."""

import importlib.util
from types import ModuleType

import pytest
import torch

from sirt_ray.core import losses, prompts
from sirt_ray.quickstart import tasks
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def example() -> ModuleType:
    path = ROOT / "examples/sirt_in_one_file.py"
    spec = importlib.util.spec_from_file_location("sirt_in_one_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_prompts_are_those_of_the_package(example: ModuleType) -> None:
    prompt, reference = example.questions("test", 1)[0]
    question = tasks.problem("word_problems", "test", 0, 0).question()
    assert (prompt, reference) == (prompts.render(question, "cot"), question.reference)


def test_its_dpo_loss_is_that_of_the_package(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three pairs; log-probabilities and lengths are as its `logps` returns them."""
    policy = torch.tensor([[-5.0, -7.0], [-3.0, -2.0], [-9.0, -4.0]])
    reference = torch.tensor([[-6.0, -6.0], [-3.0, -3.0], [-8.0, -5.0]])
    lengths = torch.tensor([[4, 5], [2, 3], [6, 7]])
    monkeypatch.setattr(example, "logps", lambda *_: (policy.T.flatten(), lengths.T.flatten()))
    loss = example.dpo_loss(None, [(None, None, row) for row in reference])
    settings = losses.PairSettings("sigmoid", example.BETA, nll_weight=example.NLL_WEIGHT)
    expected, _ = losses.preference_loss(policy, reference, lengths, settings, 3)
    torch.testing.assert_close(loss, expected)


def test_it_runs(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With few questions: each step has work, and scores are shares of the questions."""
    for name, value in {
        "NUM_TRAIN": 24,
        "NUM_DEMONSTRATIONS": 8,
        "NUM_TEST": 8,
        "SAMPLES": 4,
    }.items():
        monkeypatch.setattr(example, name, value)
    scores = example.main()
    assert list(scores) == ["baseline", "tuned", "refined"]
    assert all(0 <= score <= 1 and (score * 8).is_integer() for score in scores.values())
    printed = capsys.readouterr().out
    assert "8 are used" in printed and "0 pairs" not in printed.splitlines()
