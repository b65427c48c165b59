"""The commands of the README and of docs/, as someone types them who has nothing but a clone.

Placeholders for the reader's own files are replaced, and what would take hours is made small.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sirt_ray.artifacts import parquet
from sirt_ray.quickstart import tasks


@dataclass(frozen=True, slots=True)
class Step:
    command: str
    """As the document shows it."""
    prints: str = ""
    """A regular expression that its output has to match."""
    replacements: Mapping[str, str] = field(default_factory=dict)
    """What is typed in place of a word of the command."""
    extra: str = ""
    """Words appended to the command that make it small."""
    until: str = ""
    """A command that does not end by itself is stopped by Ctrl-C when its output matches this."""
    creates: str = ""
    """A file that exists afterwards."""


MINE = {
    "/path/to/rows": "rows",
    "/models/large": "sirt_ray/quickstart/assets/teacher",
    "/models/small": "sirt_ray/quickstart/assets/student",
}
"""The reader's own folders in the documents' job files and commands."""
SMALL = "--set data.num_train=60 --set data.num_test=20 --set data.num_validation=0"
TWO_METHODS = "--set 'only=[{method: [instruction_tuning, rft], seed: 0}]'"
ON_CLUSTER = {"HEAD:8265": "127.0.0.1:{dashboard}"}
LAST_ROUND = r"round_02 │ 73\.0 ± 2\.6 │ 50\.0 ± 2\.9 │ 35\.3 ± 2\.8 │ 25\.3 ± 2\.5"
"""As the README shows it."""
ONE_TRIAL = "--set 'only=[{student: small, method: tuned, seed: 0}]'"
RIGHT = re.escape('{"right": 1, "wrong": 0, "unparseable": 0, "accuracy": 1.0}')
SERVED = "curl "

STEPS = (
    Step("make quickstart", LAST_ROUND),
    Step("sirt run jobs/quickstart.yaml", "The report is runs/quickstart/report.html"),
    Step("make quickstart-seeds", r"\| round_01 \|", extra="JOB=small SEEDS='0 1'"),
    Step(
        "make quickstart-seeds JOB=quickstart_paper_rule",
        r"\| round_01",
        {"JOB=quickstart_paper_rule": "JOB=small"},
        extra="SEEDS='0 1'",
    ),
    Step(
        "python -m sirt_ray.quickstart.pretrain --out DIR",
        extra="--steps-scale 0.001",
        creates="DIR/teacher/model.safetensors",
    ),
    Step("sirt report runs/quickstart --open", "runs/quickstart/report.html"),
    Step("sirt report runs/quickstart --format text", "Report of quickstart"),
    Step(
        "sirt report runs/a-seed0 runs/a-seed1 --format markdown --out a.md",
        replacements={"runs/a-seed0": "runs/small-seed0", "runs/a-seed1": "runs/small-seed1"},
        creates="a.md",
    ),
    Step(
        "sirt compare runs/a runs/b --open",
        r"\.html",
        {"runs/a": "runs/small-seed0", "runs/b": "runs/small-seed1"},
    ),
    Step("sirt watch runs/quickstart", "round_02"),
    Step("sirt export runs/quickstart OUT --data", creates="OUT/model.safetensors"),
    Step(
        "sirt push runs/quickstart OWNER/NAME --private", "me/student", {"OWNER/NAME": "me/student"}
    ),
    Step("python examples/sirt_in_one_file.py", r"refined +\d+\.\d % right of"),
    Step("sirt doctor", "this machine can run jobs"),
    Step("sirt completion bash", "complete "),
    Step("sirt run mine.yaml --dry-run", "demonstrations"),
    Step(
        "sirt run mine.yaml",
        "The report is runs/mine/report.html",
        extra=f"{SMALL} --set refine.rounds=1",
    ),
    Step(
        "sirt run mine.yaml --set refine.rounds=5",
        "round_02",
        {"refine.rounds=5": "refine.rounds=2"},
        extra=SMALL,
    ),
    Step("sirt plan mine.yaml", "learning_rate", extra=f"{SMALL} --set refine.rounds=2"),
    Step(
        "sirt plan mine.yaml --cluster 4x48GB",
        "trainer: 1 GPU of node 1",
        extra=f"{SMALL} --set refine.rounds=2",
    ),
    Step(
        "sirt run jobs/quickstart.yaml --set name=wider --set refine.num_cot=16",
        "The report is runs/wider/report.html",
        extra=f"{SMALL} --set refine.rounds=1",
    ),
    Step(
        "sirt run jobs/gsm8k_cpu.yaml --set data.root=/path/to/rows",
        "The report is runs/gsm8k_cpu/report.html",
        MINE,
    ),
    Step("sirt plan jobs/own_task.yaml", "own_task.py"),
    Step("sirt run jobs/own_task.yaml --allow-code", "The report is runs/own_task/report.html"),
    Step("sirt plan jobs/study_quickstart.yaml", "27 (cells|trials)"),
    Step("sirt run jobs/study_quickstart.yaml", "rft", extra=f"{SMALL} {TWO_METHODS}"),
    Step("sirt plan my_study.yaml", "8 (cells|trials)"),
    Step("sirt run my_study.yaml", "tuned", extra=f"{SMALL} {ONE_TRIAL}"),
    Step("sirt run my_study.yaml --cells 4", "tuned", extra=f"{SMALL} {ONE_TRIAL}"),
    Step(
        "sirt run my_study.yaml --set 'only=[{method: rft}]'",
        "rft",
        {"{method: rft}": "{student: small, method: rft, seed: 0}"},
        extra=SMALL,
    ),
    Step("sirt report runs/study_quickstart", "study_quickstart"),
    Step("sirt report runs/study_quickstart --format markdown", r"\| rft \|"),
    Step("sirt grade --benchmark gsm8k responses.jsonl --out graded.jsonl", RIGHT),
    Step("sirt evaluate runs/quickstart", r"73\.0"),
    Step(
        "sirt evaluate runs/mine --benchmarks mmlu,math",
        "multiarith",
        {"mmlu,math": "multiarith,gsm8k"},
    ),
    Step(
        "sirt evaluate /models/small --benchmarks gsm8k --root /path/to/rows --num 200"
        " --prompts cot",
        "gsm8k",
        MINE | {"200": "20"},
    ),
    Step(
        "sirt train sft --model /models/small --data answers.jsonl --out runs/sft",
        replacements=MINE,
        creates="runs/sft/student/model.safetensors",
    ),
    Step(
        "sirt train dpo --model runs/sft/student --data pairs.jsonl --out runs/dpo"
        " --set refine.beta=0.2",
        creates="runs/dpo/student/model.safetensors",
    ),
    Step("sirt serve runs/quickstart", until=SERVED, extra="--port {port}"),
    Step("sirt serve /models/small --port 8080", "", MINE | {"8080": "{port}"}, until=SERVED),
    Step("sirt serve runs/mine", until=SERVED, extra="--port {port}"),
    Step(
        "sirt serve runs/mine --host 0.0.0.0",
        "",
        {"0.0.0.0": "127.0.0.1"},
        extra="--port {port}",
        until=SERVED,
    ),
)

CLUSTER_STEPS = (
    Step(
        "sirt run mine.yaml --address auto",
        "The report is runs/apart/report.html",
        extra=f"{SMALL} --set refine.rounds=1 --set name=apart",
    ),
    Step(
        "sirt serve runs/mine --address auto --set max_replicas=4 --set max_model_len=2048",
        "",
        {"max_replicas=4": "max_replicas=1", "max_model_len=2048": "max_model_len=256"},
        extra="--port {port}",
        until=SERVED,
    ),
    Step(
        "sirt submit jobs/mine.yaml --address http://HEAD:8265 --set output=/shared/runs",
        "report",
        ON_CLUSTER | {"/shared/runs": "{clone}/shared"},
        extra=f"{SMALL} --set refine.rounds=1",
    ),
    Step("sirt status --address http://HEAD:8265", "mine", ON_CLUSTER),
    Step("sirt logs mine --address http://HEAD:8265 --follow", "round_01", ON_CLUSTER),
    Step("sirt stop mine --address http://HEAD:8265", "mine", ON_CLUSTER),
)
"""Run on a Ray cluster started by `ray start`."""

EXPORTED = Step(
    "sirt evaluate OUT --benchmarks word_problems,letter_choices_ood --num 40 --out exported",
    extra="--set sampling.max_tokens=96 --set engine.max_model_len=256",
    creates="exported/scores.json",
)
"""Run on what `sirt export` wrote of the quickstart, after the quickstart was evaluated."""

NOT_RUN = {
    "make setup": "by every other one",
    "make test": "is what runs the tests",
    "make docs": "is built by tests/component/test_docs.py",
    "sirt plan JOB.yaml": "is `sirt plan mine.yaml`",
    "make study": "is `sirt run jobs/study_quickstart.yaml`",
    "make test-gpu": "needs a GPU",
    "make bench-gpu": "needs a GPU",
    "make test-cluster": "long, by hand",
    "make test-faults": "long, by hand",
    "make test-component": "is part of `make test`",
    "make test-newcomer": "runs the others",
    "python -m tests.bench.memory": "needs a GPU",
    "python -m tests.bench.training --units 60 --repeats 1 --trl-at-once 1": "measures, by hand",
    "make bench-grading": "measures, by hand",
    "make bench-training": "measures, by hand",
    "make bench-sampling": "measures, by hand",
    "make bench-control-plane": "measures, by hand",
}
"""Commands that no newcomer's test runs, and why."""


def commands() -> set[str]:
    return {step.command for step in STEPS + CLUSTER_STEPS} | set(NOT_RUN)


def answers(evaluation: Path) -> dict[tuple[str, str], str]:
    """Return what a model answered to each question, with the trigger and without it."""
    rows = parquet.read(evaluation)
    return {(row["question_id"], row["prompt_kind"]): row["completion"] for row in rows}


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    for word, ours in replacements.items():
        text = text.replace(word, ours)
    return text


def prepare(clone: Path) -> None:
    """Write the files that the documents' commands take as the reader's own."""
    readme = (clone / "README.md").read_text()
    job = readme.partition("```yaml\nname: mine\n")[2].partition("```")[0]
    (clone / "mine.yaml").write_text(f"name: mine\n{replaced(job, MINE)}")
    seen_by_all_nodes = {word: str(clone / ours) for word, ours in MINE.items()}
    (clone / "jobs/mine.yaml").write_text(f"name: mine\n{replaced(job, seen_by_all_nodes)}")
    small = yaml.safe_load((clone / "jobs/quickstart.yaml").read_text())
    small["data"] |= {"num_train": 60, "num_validation": 0, "num_test": 20}
    small["refine"]["rounds"] = 1
    (clone / "jobs/small.yaml").write_text(yaml.safe_dump(small))
    rows(clone / "rows")
    guide = (clone / "docs/guide/methods_and_studies.md").read_text()
    study = guide.partition("```yaml\nstudy: my_study\n")[2].partition("```")[0]
    study = replaced(f"study: my_study\n{study}", MINE | {"/models/medium": MINE["/models/small"]})
    study_settings = yaml.safe_load(study)
    study_settings["job"]["data"]["root"] = MINE["/path/to/rows"]
    (clone / "my_study.yaml").write_text(yaml.safe_dump(study_settings, sort_keys=False))
    jsonl(clone / "responses.jsonl", [{"response": "So it is 18.", "reference": "18"}])
    solved = [tasks.problem("word_problems", "train", number, 0) for number in range(32)]
    asked = [(f"{item.text}\nAnswer:", item.cot_completion) for item in solved]
    jsonl(clone / "answers.jsonl", [{"prompt": q, "completion": a} for q, a in asked])
    pairs = [{"prompt": q, "chosen": a, "rejected": " No."} for q, a in asked]
    jsonl(clone / "pairs.jsonl", pairs)


def rows(root: Path) -> None:
    """Write rows in the columns of the benchmarks that the documents' jobs name."""
    for split in ("train", "test"):
        worded: list[dict[str, Any]] = tasks.rows("word_problems", split, 120)
        jsonl(root / f"gsm8k/{split}.jsonl", worded)
        numbers = [
            {"question": row["question"], "final_ans": row["answer"].rpartition("#### ")[2]}
            for row in tasks.rows("word_problems_ood", split, 40)
        ]
        jsonl(root / f"multiarith/{split}.jsonl", numbers)
        lettered = tasks.rows("letter_choices", split, 40)
        jsonl(root / f"commonsense_qa/{split}.jsonl", lettered)


def jsonl(path: Path, found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in found))
