"""Methods to compare, as settings of a job: `method: NAME` puts a method's settings under those of
the job file, which override them, as `--set` overrides all.

Every method starts from instruction tuning on the teacher's demonstrations and uses the same
stages, prompts and verifier, so that methods differ in their idea only. Numbers are those of the
papers for models of 6 to 70 billion parameters, learning rates too; a small model needs larger
ones. `departs` lists the differences of a preset from its paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Method:
    """A preset."""

    source: str
    """The paper."""
    idea: str
    """What a round does, in one sentence."""
    departs: tuple[str, ...]
    """Differences from the paper."""
    settings: Mapping[str, Any]
    """Settings of a job file: everything that defines the method, including defaults."""


_TEACHER = "the rationales to start from are the teacher's, not the benchmark's own"
_IMITATE = {"loss": "rft", "start": "base", "num_plain": 0, "warmup_steps": 0, "max_steps": None}

METHODS: Mapping[str, Method] = {
    "instruction_tuning": Method(
        source="Ranaldi and Freitas 2024, section 2.1",
        idea="The student imitates the teacher's demonstrations; no round follows.",
        departs=(),
        settings={"refine": {"rounds": 0}},
    ),
    "rft": Method(
        source="Yuan et al. 2023 (arXiv 2308.01825), rejection sampling fine-tuning",
        idea="The base imitates the demonstrations and the tuned student's distinct right samples.",
        departs=(
            _TEACHER,
            "samples are distinct by their tokens, not by their list of equations",
            "arithmetic inside a sample is not checked, only its final answer",
        ),
        settings={
            "refine": {
                **_IMITATE,
                "rounds": 1,
                "num_cot": 100,
                "sampling": {"temperature": 0.7},
                "ground_truth": "gold",
                "pairs": {"rule": "right", "with_demonstrations": True, "max_per_question": 100},
                "learning_rate": 2e-5,
                "epochs": 3,
                "roll_back": False,
            }
        },
    ),
    "star": Method(
        source="Zelikman et al. 2022 (arXiv 2203.14465), STaR without rationalisation",
        idea="Each round trains the base anew on the last student's right greedy answers.",
        departs=(
            "the first student is tuned on demonstrations, not prompted with a few of them",
            "a fixed number of rounds and epochs, where the paper raises the steps from round to"
            " round and goes on while it helps",
        ),
        settings={
            "refine": {
                **_IMITATE,
                "rounds": 3,
                "num_cot": 1,
                "sampling": {"temperature": 0.0},
                "ground_truth": "gold",
                "pairs": {"rule": "right", "with_demonstrations": False, "max_per_question": 1},
                "learning_rate": 2e-5,
                "epochs": 3,
                "roll_back": False,
            }
        },
    ),
    "rest_em": Method(
        source="Singh et al. 2023 (arXiv 2312.06585), ReST-EM",
        idea="Each round trains the base anew on many right samples of the last student.",
        departs=(
            "the first samples are a tuned student's, not a base's that is prompted with examples",
            "tokens are not restricted to the 40 likeliest",
        ),
        settings={
            "refine": {
                **_IMITATE,
                "rounds": 2,
                "num_cot": 32,
                "sampling": {"temperature": 0.7},
                "ground_truth": "gold",
                "pairs": {"rule": "right", "with_demonstrations": False, "max_per_question": 10},
                "learning_rate": 2e-5,
                "epochs": 3,
                "roll_back": False,
            }
        },
    ),
    "iterative_rpo": Method(
        source="Pang et al. 2024 (arXiv 2404.19733), Iterative RPO",
        idea="Right samples over wrong ones by DPO with an NLL term; the student continues.",
        departs=(
            "the first student is tuned on demonstrations, not a chat model that is prompted",
            "one temperature for all rounds, where the paper raises it for the later ones",
        ),
        settings={
            "refine": {
                "rounds": 4,
                "num_cot": 30,
                "num_plain": 0,
                "sampling": {"temperature": 0.8},
                "ground_truth": "gold",
                "pairs": {"rule": "correctness", "max_per_question": 10},
                "loss": "sigmoid",
                "reference": "previous",
                "beta": 0.1,
                "nll_weight": 1.0,
                "learning_rate": 7e-7,
                "batch_size": 16,
                "max_steps": 5000,
                "roll_back": False,
            }
        },
    ),
    "spin": Method(
        source="Chen et al. 2024 (arXiv 2401.01335), SPIN",
        idea="The demonstration is preferred to the student's own sample, right or wrong.",
        departs=(
            "the preferred side is the teacher's demonstration, not a person's answer",
            "a round uses its own pairs only, where the paper's code adds those of the last one",
            "one learning rate for all rounds, where the paper lowers it for the later ones",
        ),
        settings={
            "refine": {
                "rounds": 3,
                "num_cot": 1,
                "num_plain": 0,
                "sampling": {"temperature": 1.0},
                "pairs": {"rule": "spin", "max_per_question": 1},
                "loss": "sigmoid",
                "reference": "previous",
                "beta": 0.1,
                "nll_weight": 0.0,
                "learning_rate": 5e-7,
                "batch_size": 64,
                "epochs": 2,
                "max_steps": None,
                "roll_back": False,
            }
        },
    ),
    "dpo_st": Method(
        source="Wang et al. 2024 (arXiv 2407.18248), self-training with DPO",
        idea="By turns: right samples over wrong ones by DPO, then the base imitates the"
        " demonstrations and the right samples of what came out.",
        departs=(
            _TEACHER,
            "the pairs of a question are drawn at random, where the paper's code takes the least"
            " similar ones",
            "no calculator",
        ),
        settings={
            "refine": {
                "rounds": 6,  # Three of the paper's iterations, of two rounds each.
                "num_cot": 5,
                "num_plain": 0,
                "sampling": {"temperature": 0.7},
                "ground_truth": "gold",
                "pairs": {
                    "rule": "correctness",
                    "with_demonstrations": True,
                    "max_per_question": 3,
                },
                "loss": "sigmoid",
                "reference": "previous",
                "beta": 0.1,
                "learning_rate": 3e-7,
                "max_steps": 150,
                "roll_back": False,
                "even_rounds": {
                    **_IMITATE,
                    "pairs": {"rule": "right", "max_per_question": 5},
                    "learning_rate": 2e-5,
                    "epochs": 3,
                },
            }
        },
    ),
    "self_refine": Method(
        source="Ranaldi and Freitas 2024, section 2.2 (DPO_CoT)",
        idea="One round: right CoT-Answers of the student over its plain Answers, by DPO.",
        departs=("demonstrations are filtered by their final answer (`demonstrations.keep`)",),
        settings={
            "refine": {
                "rounds": 1,
                "sampling": {"temperature": 0.7},
                "ground_truth": "teacher",
                "pairs": {"rule": "dpo_cot"},
                "loss": "sigmoid",
                "reference": "previous",
                "beta": 0.1,
                "roll_back": False,
            }
        },
    ),
    "self_refine_rounds": Method(
        source="this project's",
        idea="Rounds of the paper's pairs and of right over wrong CoT-Answers, by DPO with an NLL"
        " term; a round that makes the student worse is rolled back.",
        departs=("of the paper: rounds, the second kind of pairs, the NLL term, the roll-back",),
        settings={
            "refine": {
                "rounds": 3,
                "num_cot": 8,
                "num_plain": 1,
                "sampling": {"temperature": 0.7},
                "ground_truth": "teacher",
                "pairs": {"rule": "both", "max_per_question": 2},
                "loss": "sigmoid",
                "reference": "previous",
                "beta": 0.1,
                "nll_weight": 1.0,
                "roll_back": True,
            }
        },
    ),
}
