"""Mistakes with models, rows, settings and paths, as users of such programs report them: none may
be called a bug of this package, whatever library trips over it. Made in this process, on tiny
models.

`tests/helpers/mistakes.py` has the most common ones with their whole messages; here the messages
only have to name what is wrong.
"""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, GPT2Config, GPT2LMHeadModel, T5Config

from sirt_ray.cli.main import main
from tests.helpers import tiny
from tests.helpers.workspace import Workspace, edited

Made = Callable[[Workspace], int]
TABLE: dict[str, tuple[tuple[str, ...], Made]] = {}
"""What the mistake is -> words of its message, and what makes it and returns the exit code."""


def mistake(what: str, *words: str) -> Callable[[Made], Made]:
    def keep(made: Made) -> Made:
        TABLE[what] = words, made
        return made

    return keep


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_student(tmp_path_factory.mktemp("student") / "model")


class Training:
    """A training in one process that would run: a copy of the tiny student, and four rows."""

    student: Path

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.folder
        self.model = Path(shutil.copytree(self.student, self.folder / "model"))
        self.data = self.folder / "rows.jsonl"
        self.rows([{"prompt": f"{n} + 1?", "completion": f" {n + 1}."} for n in range(4)])

    def rows(self, rows: list[dict[str, Any]]) -> None:
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *settings: str, kind: str = "sft", model: str | None = None) -> int:
        section = "tune" if kind == "sft" else "refine"
        given = (
            f"{section}.epochs=1",
            f"{section}.validation_fraction=0",
            "resources.gpus_per_worker=0",
            *settings,
        )
        where = ["--model", model or str(self.model), "--data", str(self.data)]
        overrides = [part for setting in given for part in ("--set", setting)]
        return main(["train", kind, *where, "--out", str(self.folder / "out"), *overrides])


def plan(workspace: Workspace, *settings: str) -> int:
    """Check the job of the workspace: no Ray is started, whatever is accepted."""
    workspace.job.write_text(json.dumps(workspace.document))
    overrides = [part for setting in settings for part in ("--set", setting)]
    return main(["run", str(workspace.job), "--dry-run", *overrides])


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = model / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


# Models


@mistake("a tokenizer with more tokens than the model", "embedding", "model")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    tokenizer = AutoTokenizer.from_pretrained(training.model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(training.model)
    training.rows([{"prompt": "a <extra> b", "completion": " 3"}] * 3)
    return training.run()


@mistake("rows longer than the model's positions", "positions")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    shutil.rmtree(training.model)
    tokenizer = tiny.byte_tokenizer()
    tokenizer.save_pretrained(training.model)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(training.model)
    training.rows([{"prompt": "w " * 150, "completion": " 3"}] * 3)
    return training.run()


@mistake("weights without a layer", "model.layers.1")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    change_weights(
        training.model, lambda w: [w.pop(name) for name in list(w) if "layers.1." in name]
    )
    return training.run()


@mistake("weights of another shape", "model.norm.weight")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    change_weights(training.model, lambda w: w.update({"model.norm.weight": torch.ones(63)}))
    return training.run()


@mistake("weights that are cut off", "model.safetensors", "Download")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    file = training.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    return training.run()


@mistake("weights that were left in Git LFS", "model.safetensors", "git lfs pull")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (training.model / "model.safetensors").write_text(pointer)
    return training.run()


@mistake("an index of weights that are not all there", "model-00002-of-00002.safetensors")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    names = list(load_file(model / "model.safetensors"))
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (model / "model.safetensors").rename(model / files[0])
    index = {"metadata": {}, "weight_map": {name: files[n % 2] for n, name in enumerate(names)}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return plan(workspace, f"student.model={model}")


def only_an_adapter(model: Path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (model / name).unlink(missing_ok=True)
    adapter = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "owner/base"}
    (model / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"x": torch.zeros(1)}, model / "adapter_model.safetensors")


@mistake("an adapter as the model to train", "adapter", "owner/base")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    only_an_adapter(training.model)
    return training.run()


@mistake("an adapter as the student", "student.model", "adapter", "owner/base")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    only_an_adapter(model)
    return plan(workspace, f"student.model={model}")


@mistake("a folder with a GGUF file", "student.model", "GGUF")
def _(workspace: Workspace) -> int:
    folder = workspace.folder / "gguf"
    folder.mkdir()
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    return plan(workspace, f"student.model={folder}")


def of_type(model: Path, config: Any) -> None:
    config.save_pretrained(model)


@mistake("an encoder as the student", "student.model", "bert")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    of_type(model, BertConfig(architectures=["BertForMaskedLM"]))
    return plan(workspace, f"student.model={model}")


@mistake("an encoder as the model to train", "bert")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    of_type(training.model, BertConfig(architectures=["BertForMaskedLM"]))
    return training.run()


@mistake("an encoder with a decoder as the student", "student.model", "t5")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    of_type(model, T5Config(architectures=["T5ForConditionalGeneration"]))
    return plan(workspace, f"student.model={model}")


@mistake("a quantized model as the student", "student.model", "awq")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    edited(model / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    return plan(workspace, f"student.model={model}")


@mistake("a quantized model to train", "awq")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    quantized = {"quant_method": "awq", "bits": 4}
    edited(training.model / "config.json", quantization_config=quantized)
    return training.run()


@mistake("a model below a home folder that is not there", "/home/nobody/models/s")
def _(workspace: Workspace) -> int:
    workspace.patch.setenv("HOME", "/home/nobody")
    return plan(workspace, "student.model=~/models/s")


@mistake("a model to train below a home folder that is not there", "/home/nobody/models/s")
def _(workspace: Workspace) -> int:
    workspace.patch.setenv("HOME", "/home/nobody")
    return Training(workspace).run(model="~/models/s")


# Settings


@mistake("modules that the model does not have", "lora.target_modules", "nope")
def _(workspace: Workspace) -> int:
    return Training(workspace).run("tune.lora.target_modules=[nope]")


@mistake("training forever", "tune.epochs")
def _(workspace: Workspace) -> int:
    return Training(workspace).run("tune.epochs=.inf")


@mistake("an infinite learning rate", "tune.learning_rate")
def _(workspace: Workspace) -> int:
    return Training(workspace).run("tune.learning_rate=.inf")


@mistake("a learning rate that leaves no number", "learning_rate")
def _(workspace: Workspace) -> int:
    return Training(workspace).run("tune.learning_rate=1e38")


@mistake("an infinite weight decay", "tune.weight_decay")
def _(workspace: Workspace) -> int:
    return Training(workspace).run("tune.weight_decay=.inf")


@mistake("an output that is a file", "out", "file")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    (workspace.folder / "out").write_text("")
    return training.run()


# Rows


@mistake("a row with half a character", "row 2")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    training.rows([{"prompt": "a", "completion": text} for text in (" b", " \ud83d")])
    return training.run()


@mistake("rows in Latin-1", "rows.jsonl", "UTF-8")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    training.data.write_bytes('{"prompt": "für", "completion": " 3"}\n'.encode("latin-1"))
    return training.run()


@mistake("a Parquet file that is none", "rows.parquet")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    training.data = workspace.folder / "rows.parquet"
    training.data.write_bytes(b"PAR0 and more that is no table")
    return training.run()


@mistake("rows of an unknown kind", "rows.xlsx", ".jsonl")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    training.data = workspace.folder / "rows.xlsx"
    training.data.write_bytes(b"PK\x03\x04")
    return training.run()


@mistake("compressed rows that are cut off", "rows.jsonl.gz")
def _(workspace: Workspace) -> int:
    training = Training(workspace)
    content = gzip.compress(training.data.read_bytes())
    training.data = workspace.folder / "rows.jsonl.gz"
    training.data.write_bytes(content[: len(content) // 2])
    return training.run()


@mistake("a row of CSV that is too short", "answers.csv")
def _(workspace: Workspace) -> int:
    path = workspace.folder / "answers.csv"
    path.write_text("id,response,answer\n1,The answer is 4.,4\n2,5\n")
    return main(["grade", str(path), "--benchmark", "gsm8k"])


@mistake("a broken file of benchmark rows", "train.parquet")
def _(workspace: Workspace) -> int:
    (workspace.folder / "rows/gsm8k/train.parquet").write_bytes(b"PAR1 no table PAR1")
    return plan(workspace)


@mistake("benchmark rows without a column", "answer")
def _(workspace: Workspace) -> int:
    table = pa.Table.from_pylist([{"question": "What is 2 + 2?"}])
    pq.write_table(table, workspace.folder / "rows/gsm8k/train.parquet")
    return plan(workspace)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: Path) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Training, "student", student, raising=False)
    return Workspace(tmp_path, monkeypatch)


@pytest.mark.parametrize("what", TABLE)
def test_it_is_said_to_whom_it_belongs(
    what: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    words, made = TABLE[what]
    code = made(workspace)
    stderr = capsys.readouterr().err
    message = " ".join(stderr.split())
    assert code in (1, 2), stderr
    assert len([line for line in stderr.splitlines() if line.startswith("error: ")]) == 1, stderr
    assert "bug of sirt-ray" not in message and "Traceback" not in message, stderr
    assert re.search(r"[.:;] [A-Z]|should be", message), f"there is nothing to do in {stderr!r}"
    for word in words:
        assert word in message, f"{word!r} is not in {stderr!r}"
