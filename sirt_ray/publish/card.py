"""The model card of a student: README.md with the hub's metadata, and the job that made it.

https://huggingface.co/docs/hub/model-cards has the metadata's fields.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sirt_ray import user_code
from sirt_ray.benchmarks.base import Benchmark, Hub
from sirt_ray.benchmarks.registry import benchmarks_of
from sirt_ray.config.job import JobConfig
from sirt_ray.core import prompts
from sirt_ray.publish.students import Student
from sirt_ray.quickstart import assets
from sirt_ray.report.document import Document, Grid, markdown
from sirt_ray.report.journal import summary
from sirt_ray.report.tables import (
    TRIGGERS,
    Result,
    Row,
    Task,
    accuracy_cell,
    benchmark_columns,
    score_results,
    scores,
    table,
)
from sirt_ray.storage.uri import is_uri
from sirt_ray.types import Question

UNLICENSED = "other"
"""The hub's licence with a custom name: here the request to fill it in."""

_EXAMPLE = Question(
    "example", "example", "Tom has 3 apples and buys 4 more. How many has he?", (), "7"
)
_PRIVATE: Mapping[str, Any] = {
    "output": True,
    "resources": True,
    "tracking": True,
    "data": {"root"},
    "teacher": {"endpoint": {"url", "api_key_env", "cache"}},
}
"""Where and how it ran: not part of the result, and private."""
_ENDPOINT = "https://fill.in/v1"


def public_job(job: JobConfig) -> str:
    """Return the job as YAML that `sirt run` takes, without what is specific to this machine. The
    code that it names is copied next to it, as in a run's folder."""
    stated = job.with_code(user_code.copied_reference).model_dump(
        mode="json", exclude=dict(_PRIVATE)
    )
    teacher = stated["teacher"]
    if teacher["endpoint"] is not None:
        teacher["endpoint"]["url"] = _ENDPOINT
    if teacher["demonstrations"] is not None:
        teacher["demonstrations"]["path"] = _public(teacher["demonstrations"]["path"])
    for section in (teacher, stated["student"]):
        if section["model"] is not None:
            section["model"] = _public(section["model"])
    return yaml.safe_dump(stated, sort_keys=False)


def model_card(student: Student, *, rank: int | None, licence: str, with_data: bool) -> str:
    """Return the card. `rank`: of the adapter in the folder; None: it has the whole model."""
    data = _metadata(student, licence, is_adapter=rank is not None)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(student, rank, with_data)}"))


def base_on_hub(job: JobConfig) -> str | None:
    """Return the base's name on the hub; None if it is a folder, or comes with this package."""
    model = job.student.model
    local = assets.is_quickstart(model) or is_uri(model) or Path(model).expanduser().exists()
    return None if local else model


def _public(model: str) -> str:
    """Return a hub name as it is, and of a local or stored folder the last part."""
    path = Path(model).expanduser()
    return f"./{path.name}" if path.is_absolute() or path.exists() or is_uri(model) else model


def _metadata(student: Student, licence: str, is_adapter: bool) -> ModelCardData:
    job = student.run.job
    known = benchmarks_of(job.data)
    base = base_on_hub(job)
    fields: dict[str, Any] = {"license": licence}
    if licence == UNLICENSED:
        fields["license_name"] = "fill-in"
    if base is not None:
        fields["base_model"] = base
        fields["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return ModelCardData(
        **fields,
        datasets=[hub.dataset for name in job.in_domain if (hub := _hub(known[name]))] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["self-refine-instruction-tuning", "dpo", "sirt-ray"],
        model_name=f"{job.name}, {student.version}",
        eval_results=list(_results(student)) or None,
    )


def _hub(benchmark: Benchmark) -> Hub | None:
    """Return where its rows are on the hub; None for generated and custom ones."""
    return benchmark.source if isinstance(benchmark.source, Hub) else None


def _results(student: Student) -> Iterator[EvalResult]:
    known = benchmarks_of(student.run.job.data)
    for benchmark, kinds in student.run.scores.get(student.version, {}).items():
        hub = _hub(known[benchmark])
        for kind, score in kinds.items():
            yield EvalResult(
                task_type="text-generation",
                dataset_type=benchmark if hub is None else hub.dataset,
                dataset_name=benchmark,
                dataset_revision=None if hub is None else hub.revision,
                dataset_split=known[benchmark].split_names("test")[0],
                metric_type="accuracy",
                metric_name=f"accuracy {TRIGGERS[kind]}",
                metric_value=round(score.accuracy, 4),
                metric_args={"stderr": round(score.stderr, 4), "n": score.n, "prompt": kind},
            )


def _text(student: Student, rank: int | None, with_data: bool) -> str:
    run, job = student.run, student.run.job
    base, teacher = _public(job.student.model), _public(job.teacher.source)
    what = (
        "The whole model" if rank is None else f"A LoRA adapter of rank {rank}, to load on its base"
    )
    made = [] if job.tune.skip else [f"tuned on chain-of-thought demonstrations of `{teacher}`"]
    if student.version != "round_00":
        made.append("refined on its own verified answers")
    intro = (
        f"{what}: `{base}` after Self-refine Instruction-tuning (Ranaldi and Freitas, EMNLP 2024)"
        f" by sirt-ray. It was {', then '.join(made)}; this is `{student.version}` of the run"
        f" `{job.name}`."
    )
    parts = [
        markdown(Document(job.name, [intro, _license(job)], list(_scores(student)))).strip(),
        f"± is the standard error of having so many questions. Answers were written at temperature"
        f" {job.evaluation.sampling.temperature:g}.",
        _use(rank),
        "## What it was made from",
        "\n".join(
            f"- {name}: {summary(name, counts)}"
            for name, counts in run.counts.items()
            if _made_from(name, student.version)
        ),
    ]
    if with_data:
        parts.append(
            "`data/` has the demonstrations and pairs as Parquet, and their entries for"
            " LLaMA-Factory in `data/dataset_info.json`. The prompts are rendered already: in"
            " LLaMA-Factory, give `template: empty`. That puts no end-of-sequence token behind an"
            " answer, so append it to the responses there (TRL does so by itself)."
        )
    return "\n\n".join([*parts, _reproduce(student)]) + "\n"


def _license(job: JobConfig) -> str:
    return (
        f"Licence: fill in `license` above before you publish. The licence of `"
        f"{_public(job.student.model)}`, the terms of the teacher and those of the benchmarks"
        f" ({', '.join(job.in_domain)}) decide what it can be."
    )


def _scores(student: Student) -> Iterator[Grid]:
    """Yield a table for each kind of prompt: the student and what it is compared with."""
    run = student.run
    rows = [
        Row(stage, {run.job.seed: score_results(run.scores[stage])}, run.job.in_domain)
        for stage in dict.fromkeys(("teacher", "baseline", "round_00", student.version))
        if stage in run.scores
    ]
    for kind in run.job.evaluation.prompts:
        columns = benchmark_columns(rows, kind)
        yield table(f"% right {TRIGGERS[kind]}", "stage", columns, rows, _cell)


def _cell(row: Row[Result], tasks: Sequence[Task]) -> str:
    number = "".join(f" (n = {score.n})" for score in scores(row, tasks))
    return f"{accuracy_cell(row, tasks)}{number}"


def _use(rank: int | None) -> str:
    library, kind = (
        ("transformers", "AutoModelForCausalLM")
        if rank is None
        else ("peft", "AutoPeftModelForCausalLM")
    )
    served = (
        "vllm serve NAME"
        if rank is None
        else f"vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules student=NAME"
    )
    return f"""## Use

```python
from {library} import {kind}
from transformers import AutoTokenizer

name = "NAME"  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = {kind}.from_pretrained(name)
text = {json.dumps(prompts.body(_EXAMPLE))}
trigger = {json.dumps(prompts.TRIGGER)}
if tokenizer.chat_template:
    message = {{"role": "user", "content": f"{{text}}\\n{{trigger}}"}}
    inputs = tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
else:
    inputs = tokenizer(f"{{text}}\\nAnswer: {{trigger}}", return_tensors="pt")
inputs = {{key: inputs[key] for key in ("input_ids", "attention_mask")}}
answer = model.generate(**inputs, max_new_tokens=512, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

Served: `{served}`. The student answers questions that are worded as in training, as above."""


def _made_from(name: str, version: str) -> bool:
    """Return whether an artifact precedes the student, and is more than scores or questions."""
    stage, _, kind = name.rpartition("/")
    return kind not in ("questions", "evaluation") and stage <= version


def _code(job: JobConfig) -> str:
    if not job.code:
        return ""
    return (
        f" `{user_code.KEPT}/` has the functions that it names, which are executed"
        " only with `--allow-code`."
    )


def _reproduce(student: Student) -> str:
    trained, evaluated = student.record("student"), student.record("evaluation")
    versions = ", ".join(f"{name} {version}" for name, version in trained["versions"].items())
    inputs = evaluated["inputs"]
    return f"""## How to reproduce

`job.yaml` has every setting that decides the result; where and how fast it runs is yours to set
(`resources`), as are the paths of local models and rows.{_code(student.run.job)}

    sirt run job.yaml

Versions: {versions}. Verifier {inputs["verifier"]}, prompts {inputs["prompts"]}, seed \
{student.run.job.seed}. Fingerprints: student {trained["fingerprint"]}, evaluation \
{evaluated["fingerprint"]}."""
