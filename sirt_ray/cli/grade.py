"""`sirt grade`: grade a file of responses with the verifier that runs use."""

import argparse
import json
import sys

from sirt_ray.benchmarks.grading import grade_file
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli.options import add_debug, examples
from sirt_ray.storage.uri import user_path

DESCRIPTION = """\
Grade responses against a benchmark's gold answers, with the verifier that runs use.

Each row of FILE (.jsonl, .csv, .parquet, ...) has
  "response"   what a model wrote
  "reference"  the gold answer as the benchmark gives it: a number, an expression, or an option's
               label (its letter is accepted as well)
  "choices"    the options' texts in order, or a record of labels and texts, where the benchmark
               has options

One JSON object is printed: {"right": n, "wrong": n, "unparseable": n, "accuracy": x}. Wrong and
unparseable (no final answer, or several) both count as not right.
"""
EXAMPLES = """\
examples:
  echo '{"response": "9 * 2 = 18. The answer is $18.", "reference": "18"}' > responses.jsonl
  sirt grade --benchmark gsm8k responses.jsonl
  sirt grade --benchmark gsm8k responses.jsonl --out graded.jsonl   # and each row with its verdict
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    grade = commands.add_parser(
        "grade",
        help="grade a file of responses against a benchmark's gold answers",
        description=DESCRIPTION,
        **examples(EXAMPLES),
    )
    grade.add_argument("file", type=user_path, metavar="FILE")
    grade.add_argument(
        "--benchmark", required=True, metavar="NAME", help=f"one of {', '.join(REGISTRY)}"
    )
    grade.add_argument(
        "--out",
        type=user_path,
        metavar="OUT.jsonl",
        help='write each row with its "verdict", the "extracted" final answer, whether the response'
        ' "stated" it (or it was guessed, from the last number for instance), and whether comparing'
        ' it took too long ("undecided"; it counts as wrong)',
    )
    add_debug(grade)
    grade.set_defaults(command=_run, stopped="stopped; nothing is written")


def _run(arguments: argparse.Namespace) -> int:
    counts = grade_file(arguments.benchmark, arguments.file, arguments.out)
    graded = counts["right"] + counts["wrong"] + counts["unparseable"]
    shown = {verdict: counts[verdict] for verdict in ("right", "wrong", "unparseable")}
    sys.stdout.write(json.dumps({**shown, "accuracy": counts["right"] / graded}) + "\n")
    if counts["guessed"]:
        sys.stderr.write(
            f"note: {counts['guessed']:,} of {graded:,} responses do not state their final"
            " answer; the last number, formula or option that they mention was taken for it\n"
        )
    if counts["undecided"]:
        sys.stderr.write(
            f"note: {counts['undecided']:,} of {graded:,} answers could not be compared with their"
            " reference in time and count as wrong\n"
        )
    return 0
