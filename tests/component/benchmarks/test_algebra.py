"""The process that compares expressions: what it says, and that no text stops it."""

import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from sirt_ray.benchmarks import algebra
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.types import Judgement, Question
from sirt_ray.verifier import answers

BOUND_S = 10.0
"""On the busiest machine, the worker's start counted; `make bench-grading` measures a row."""

HOSTILE = [
    "9^{9^{9^9}}",
    "9!!!!!!!",
    "\\sum_{n=1}^{10^{12}} \\frac{1}{n^{n}}",
    "\\int_0^{\\pi} \\sin(x^{x^{x}}) \\cos(\\ln x^{7}) dx",
    "(" * 200 + "x" + ")" * 199,
    "{" * 399,
    "\\frac{" * 66,
    "\\sqrt{" * 50 + "2" + "}" * 50,
    "\\boxed{" * 50,
    "\u0661\u0662\u00b2\u2460",
    "\x00\ud800\u202e",
    "\n$$\n",
    "(x+1)^{9999}(y+1)^{9999}",
]


@pytest.fixture(scope="module", autouse=True)
def started() -> None:
    """SymPy takes a second to import; what is measured comes after that."""
    assert algebra.equivalent("x+1", "1+x")


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("x+1", "1+x", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("\\sqrt{8}", "2\\sqrt{2}", True),
        ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}", True),
        ("\\frac{7}{2}", "3\\frac{1}{2}", True),
        ("2\\pi", "\\pi \\cdot 2", True),
        (
            "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
            "\\begin{pmatrix} 2/2 \\\\ 2 \\end{pmatrix}",
            True,
        ),
        ("x+1", "x+2", False),
        ("(1,2)", "(2,1)", False),
        ("[0,1)", "(0,1)", False),
        ("\\text{Evelyn}", "\\text{Bob}", False),
        ("5", "7 apples and 5 pears", False),
        ("5", "", False),
    ],
)
def test_algebra(reference: str, answer: str, same: bool) -> None:
    assert algebra.equivalent(reference, answer) is same


@pytest.mark.parametrize(
    ("same", "expected"),
    [
        (True, Judgement("right", "1+x", True)),
        (False, Judgement("wrong", "1+x", True)),
        (None, Judgement("wrong", "1+x", True, undecided=True)),
    ],
)
def test_algebra_is_asked_where_expressions_look_different(
    same: bool | None, expected: Judgement
) -> None:
    asked: list[tuple[str, str]] = []

    def equivalent(reference: str, answer: str) -> bool | None:
        asked.append((reference, answer))
        return same

    for text in ("\\boxed{x + 1}", "no idea", "\\boxed{1+x}"):
        found = answers.grade(text, "x+1", "expression", (), equivalent)
    assert asked == [("x+1", "1+x")]
    assert found == expected


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda answer: ascii(answer)[1:20])
def test_no_answer_takes_for_ever(answer: str) -> None:
    began = time.monotonic()
    assert not algebra.equivalent("\\frac{x+1}{7}", answer)
    assert time.monotonic() - began < BOUND_S
    assert algebra.equivalent("y+1", f"1+y+{len(answer)}-{len(answer)}")


def test_what_takes_too_long_is_wrong_and_undecided() -> None:
    question = Question("", "math", "", (), "2^x")
    found = REGISTRY["math"].grade("\\boxed{9^{9^{9^9}}}", question)
    assert found == Judgement("wrong", "9^{9^{9^9}}", stated=True, undecided=True)


def test_nor_does_a_whole_hostile_response() -> None:
    question = Question("", "math", "", (), "2^x")
    for text in ("\\boxed{" * 14_000, "$" + "{" * 100_000 + "$", "\\boxed{" + "x+" * 50_000 + "1}"):
        began = time.monotonic()
        assert REGISTRY["math"].grade(text, question).verdict != "right"
        assert time.monotonic() - began < BOUND_S


def test_threads_are_answered_one_after_the_other() -> None:
    found: dict[int, bool | None] = {}

    def ask(number: int) -> None:
        found[number] = algebra.equivalent(f"z+{number}", f"{number}+z")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(2, 10), True)


def test_a_forked_process_has_a_worker_of_its_own() -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = [algebra.equivalent("w+1", "1+w"), algebra.equivalent("w+1", "w")]
            os.write(write, json.dumps(said).encode())
        finally:
            os._exit(0)
    assert algebra.equivalent("v+1", "1+v")
    os.waitpid(child, 0)
    assert json.loads(os.read(read, 100)) == [True, False]
    assert algebra.equivalent("u+1", "1+u")


def test_the_worker_ends_with_its_owner_however_that_ends() -> None:
    code = (
        "import psutil; from sirt_ray.benchmarks import algebra;"
        "algebra.equivalent('x+1', '1+x'); me = psutil.Process();"
        "print(*[child.pid for child in me.children(recursive=True)], flush=True); me.kill()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    workers = [int(pid) for pid in done.stdout.split()]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(_runs, workers)):
        pass
    assert workers and not any(map(_runs, workers))


def test_number_and_choice_benchmarks_start_no_process() -> None:
    code = (
        "import psutil, sys; from sirt_ray.benchmarks import registry;"
        "from sirt_ray.types import Question;"
        "registry.grade('The answer is 3.', Question('', 'gsm8k', '', (), '4'));"
        "registry.grade('\\\\boxed{3}', Question('', 'math', '', (), '3'));"
        "print(len(psutil.Process().children()), 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
