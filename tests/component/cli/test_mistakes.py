"""Each mistake of `tests/helpers/mistakes.py` that takes no Ray, made for real, and what is said
about it.

The hub is not ours, and a server on this machine stands in for it.
"""

import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import tests.helpers.training_mistakes  # noqa: F401  It makes those of a training.
from sirt_ray import exit_codes
from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import Artifact, Store
from sirt_ray.cli.main import main
from sirt_ray.config.job import JobConfig
from sirt_ray.on_ray import cluster
from sirt_ray.on_ray.sampling import pairs
from tests.helpers import tiny
from tests.helpers.fake_endpoint import FakeEndpoint, send, send_many
from tests.helpers.full_disk import fsync_without_room
from tests.helpers.mistakes import MISTAKES, Mistake, check
from tests.helpers.mistakes_page import page
from tests.helpers.paths import ROOT
from tests.helpers.workspace import MADE, Workspace, edited, makes


@makes("a setting that does not exist")
def _(workspace: Workspace) -> int:
    workspace.document["refine"] = {"betta": 1}
    return workspace.run()


@makes("a setting that is there twice")
def _(workspace: Workspace) -> int:
    workspace.job.write_text("refine:\n  beta: 0.1\n  beta: 0.2\n")
    return main(["run", str(workspace.job)])


@makes("a value of the wrong type")
def _(workspace: Workspace) -> int:
    return workspace.run("tune.epochs=many")


@makes("a benchmark that is not known")
def _(workspace: Workspace) -> int:
    return workspace.run("data.train=[gsm9k]")


@makes("a folder of rows that is not there")
def _(workspace: Workspace) -> int:
    return workspace.run("data.root=elsewhere")


@makes("answers as long as the engine's whole context")
def _(workspace: Workspace) -> int:
    return workspace.run("resources.student.max_model_len=256")


@makes("a run folder that cannot be made")
def _(workspace: Workspace) -> int:
    return workspace.run(f"output={workspace.job}")


@makes("a wrong model path")
def _(workspace: Workspace) -> int:
    return workspace.run("student.model=./nowhere")


@makes("a name that the hub does not know")
def _(workspace: Workspace) -> int:
    return workspace.run_from_hub("org/none")


@makes("a gated model")
def _(workspace: Workspace) -> int:
    return workspace.run_from_hub("org/gated")


@makes("a revision that does not exist")
def _(workspace: Workspace) -> int:
    return workspace.run_from_hub("org/open", "student.revision=v9")


@makes("no network, or the hub is down")
def _(workspace: Workspace) -> int:
    return workspace.run_at("http://127.0.0.1:1", "org/open")


@makes("a model that was not fully downloaded")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return workspace.run_model(model)


@makes("a model without all of its weights")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    weights = load_file(model / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    return workspace.run_model(model)


@makes("an adapter in place of a model")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    (model / "config.json").rename(model / "adapter_config.json")
    edited(model / "adapter_config.json", base_model_name_or_path="org/base")
    return workspace.run_model(model)


@makes("a quantised model as the student")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    edited(model / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    return workspace.run_model(model)


@makes("an encoder as the student")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    edited(model / "config.json", model_type="bert")
    return workspace.run_model(model)


@makes("a tokenizer with more tokens than the model")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(model)
    return workspace.run_model(model)


@makes("LoRA on a head that is tied")
def _(workspace: Workspace) -> int:
    return workspace.run("tune.lora.target_modules=[lm_head]")


@makes("a model with code of its own")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    edited(model / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"})
    return workspace.run_model(model)


@makes("a model without a tokenizer")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    for file in model.glob("tokenizer*"):
        file.unlink()
    return workspace.run_model(model)


@makes("a tokenizer without EOS")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    edited(model / "tokenizer_config.json", eos_token=None)
    return workspace.run_model(model)


@makes("a chat template that changes a prompt once it is answered")
def _(workspace: Workspace) -> int:
    model = workspace.model()
    thinking = tiny.CHAT_TEMPLATE.replace("|>\n{% endif", "|>\n<think>{% endif")
    (model / "chat_template.jinja").write_text(thinking)
    return workspace.run_model(model)


@makes("vLLM is not installed")
def _(workspace: Workspace) -> int:
    workspace.patch.setitem(sys.modules, "vllm", None)
    return workspace.run()


@makes("settings that are changed under a finished run")
def _(workspace: Workspace) -> int:
    Store(workspace.run_dir).once("questions", {"rows": "others"}, lambda out: {})
    return workspace.run()


@makes("two drivers of one run")
def _(workspace: Workspace) -> int:
    workspace.run_dir.mkdir(parents=True)
    with (workspace.run_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return workspace.run()


@makes("no pairs")
def _(workspace: Workspace) -> int:
    """All of the student's answers are right and the same: none is to be rejected."""
    samples = workspace.folder / "samples"
    rows = [parquet.to_row(tiny.answer(number, "4")) for number in range(4)]
    parquet.write(samples / "part-0.parquet", rows, parquet.GRADED)
    artifact = Artifact("round_01/samples", samples, "", {})
    job = JobConfig.model_validate(workspace.document)
    return exit_codes.run_command(
        lambda: len(pairs.pair(workspace.folder, job, artifact, None, 1)), False, "stopped"
    )


@makes("a full disk")
def _(workspace: Workspace) -> int:
    workspace.patch.setattr(os, "fsync", fsync_without_room("config.yaml"))
    return workspace.run()


@makes("an endpoint's key that is not set")
def _(workspace: Workspace) -> int:
    workspace.patch.delenv("MY_KEY", raising=False)
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "MY_KEY"}
    workspace.document["teacher"] = {"endpoint": endpoint}
    return workspace.run()


@makes("an endpoint that refuses the key")
def _(workspace: Workspace) -> int:
    workspace.patch.setenv("TEACHER_KEY", "sk-very-secret")

    def asked() -> int:
        return len(send(workspace.folder, FakeEndpoint([401]), api_key_env="TEACHER_KEY").choices)

    return exit_codes.run_command(asked, False, "stopped")


@makes("an endpoint that does not support a field")
def _(workspace: Workspace) -> int:
    error = {"message": "Unsupported parameter: 'max_tokens' is not supported with this model."}
    endpoint = FakeEndpoint(answer=lambda body: (400, {}, {"error": error}))
    return exit_codes.run_command(
        lambda: len(send_many(workspace.folder, endpoint, 3)), False, "stopped"
    )


@makes("a port that is taken")
def _(workspace: Workspace) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return main(["serve", "quickstart:student", "--port", str(server.getsockname()[1])])


@makes("a temporary folder with a long name")
def _(workspace: Workspace) -> int:
    """Ray looks at the names before it starts anything."""
    workspace.patch.setenv("RAY_TMPDIR", str(workspace.folder / ("long" * 20)))
    return workspace.run()


@makes("a temporary folder with an umlaut")
def _(workspace: Workspace) -> int:
    workspace.patch.delenv("RAY_TMPDIR", raising=False)
    workspace.patch.setenv("TMPDIR", "/tmp/für")
    return workspace.run()


@makes("a machine without a loopback interface")
def _(workspace: Workspace) -> int:
    """As where it is down, which takes a machine of its own."""

    def unreachable(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    workspace.patch.setattr(cluster.socket, "create_connection", unreachable)
    return workspace.run()


@makes("no cluster at the address")
def _(workspace: Workspace) -> int:
    return workspace.run(address="127.0.0.1:1")


@makes("the dashboard's address for `sirt run`")
def _(workspace: Workspace) -> int:
    return workspace.run(address="http://127.0.0.1:8265")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path, monkeypatch)


OURS = [mistake for mistake in MISTAKES if mistake.where == "command"]


@pytest.mark.parametrize("mistake", OURS, ids=lambda mistake: mistake.id)
def test_a_mistake_gets_its_message(
    mistake: Mistake, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    code = MADE[mistake.what](workspace)
    check(mistake, code, capsys.readouterr().err)


def test_every_mistake_is_made() -> None:
    assert set(MADE) == {mistake.what for mistake in OURS}


def test_the_page_is_that_of_the_list() -> None:
    written = (ROOT / "docs/guide/troubleshooting.md").read_text()
    assert written == page(), (
        "write it again: python -m tests.helpers.mistakes_page > docs/guide/troubleshooting.md"
    )


def test_what_is_no_mistake(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Padding that is EOS, and a teacher with another tokenizer and a chat template."""
    student = workspace.model()
    edited(student / "tokenizer_config.json", pad_token="</s>")
    teacher = tiny.save_student(workspace.folder / "teacher")
    (teacher / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    workspace.job.write_text(json.dumps(workspace.document))
    models = ["--set", f"student.model={student}", "--set", f"teacher.model={teacher}"]
    assert main(["run", str(workspace.job), "--dry-run", *models]) == 0, capsys.readouterr().err


def test_ray_is_never_asked_for_an_address_where_nobody_is(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would try for minutes, and then end the process."""
    monkeypatch.setattr(cluster.ray, "init", lambda **_: pytest.fail("Ray was asked"))
    assert workspace.run(address="127.0.0.1:1") == 1
