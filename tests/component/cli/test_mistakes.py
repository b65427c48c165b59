"""Each mistake of `tests/helpers/mistakes.py` that takes no Ray, made for real, and what is said about it.

The hub is not ours, and a server on this machine stands in for it.
"""

import fcntl
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.helpers.training_mistakes  # noqa: F401  It makes those of a training.
from sirt_ray import exit_codes
from sirt_ray.artifacts import parquet
from sirt_ray.artifacts.store import Artifact, Store
from sirt_ray.cli.main import main
from sirt_ray.config.job import JobConfig
from sirt_ray.on_ray import cluster
from sirt_ray.on_ray.sampling import pairs
from tests.helpers import tiny
from tests.helpers.desk import MADE, Desk, edited, makes
from tests.helpers.fake_endpoint import FakeEndpoint, ask
from tests.helpers.mistakes import MISTAKES, Mistake, check
from tests.helpers.mistakes_page import page
from tests.helpers.paths import ROOT


@makes("a setting that does not exist")
def _(desk: Desk) -> int:
    desk.document["refine"] = {"betta": 1}
    return desk.run()


@makes("a value of the wrong type")
def _(desk: Desk) -> int:
    return desk.run("tune.epochs=many")


@makes("a benchmark that is not known")
def _(desk: Desk) -> int:
    return desk.run("data.train=[gsm9k]")


@makes("a folder of rows that is not there")
def _(desk: Desk) -> int:
    return desk.run("data.root=elsewhere")


@makes("answers as long as the engine's whole context")
def _(desk: Desk) -> int:
    return desk.run("resources.student.max_model_len=256")


@makes("a run folder that cannot be made")
def _(desk: Desk) -> int:
    return desk.run(f"output={desk.job}")


@makes("a wrong model path")
def _(desk: Desk) -> int:
    return desk.run("student.model=./nowhere")


@makes("a name that the hub does not know")
def _(desk: Desk) -> int:
    return desk.run_from_hub("org/none")


@makes("a gated model")
def _(desk: Desk) -> int:
    return desk.run_from_hub("org/gated")


@makes("a revision that does not exist")
def _(desk: Desk) -> int:
    return desk.run_from_hub("org/open", "student.revision=v9")


@makes("no network, or the hub is down")
def _(desk: Desk) -> int:
    return desk.run_at("http://127.0.0.1:1", "org/open")


@makes("a model that was not fully downloaded")
def _(desk: Desk) -> int:
    model = desk.model()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return desk.run_model(model)


@makes("a model with code of its own")
def _(desk: Desk) -> int:
    model = desk.model()
    edited(model / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"})
    return desk.run_model(model)


@makes("a model without a tokenizer")
def _(desk: Desk) -> int:
    model = desk.model()
    for file in model.glob("tokenizer*"):
        file.unlink()
    return desk.run_model(model)


@makes("a tokenizer without EOS")
def _(desk: Desk) -> int:
    model = desk.model()
    edited(model / "tokenizer_config.json", eos_token=None)
    return desk.run_model(model)


@makes("a chat template that changes a prompt once it is answered")
def _(desk: Desk) -> int:
    model = desk.model()
    thinking = tiny.CHAT_TEMPLATE.replace("|>\n{% endif", "|>\n<think>{% endif")
    (model / "chat_template.jinja").write_text(thinking)
    return desk.run_model(model)


@makes("vLLM is not installed")
def _(desk: Desk) -> int:
    desk.patch.setitem(sys.modules, "vllm", None)
    return desk.run()


@makes("settings that are changed under a finished run")
def _(desk: Desk) -> int:
    Store(desk.run_dir).once("questions", {"rows": "others"}, lambda out: {})
    return desk.run()


@makes("two drivers of one run")
def _(desk: Desk) -> int:
    desk.run_dir.mkdir(parents=True)
    with (desk.run_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return desk.run()


@makes("no pairs")
def _(desk: Desk) -> int:
    """All of the student's answers are right and the same: none is to be rejected."""
    samples = desk.folder / "samples"
    rows = [parquet.to_row(tiny.answer(number, "4")) for number in range(4)]
    parquet.write(samples / "part-0.parquet", rows, parquet.GRADED)
    artifact = Artifact("round_01/samples", samples, "", {})
    job = JobConfig.model_validate(desk.document)
    return exit_codes.run_command(
        lambda: len(pairs.pair(desk.folder, job, artifact, artifact, 1)), False, "stopped"
    )


@makes("a full disk")
def _(desk: Desk) -> int:
    """The kernel's own full device stands in the place of the first file."""
    desk.run_dir.mkdir(parents=True)
    (desk.run_dir / ".config.yaml.partial").symlink_to("/dev/full")
    return desk.run()


@makes("an endpoint's key that is not set")
def _(desk: Desk) -> int:
    desk.patch.delenv("MY_KEY", raising=False)
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "MY_KEY"}
    desk.document["teacher"] = {"endpoint": endpoint}
    return desk.run()


@makes("an endpoint that refuses the key")
def _(desk: Desk) -> int:
    desk.patch.setenv("TEACHER_KEY", "sk-very-secret")

    def asked() -> int:
        return len(ask(desk.folder, FakeEndpoint([401]), api_key_env="TEACHER_KEY").choices)

    return exit_codes.run_command(asked, False, "stopped")


@makes("a port that is taken")
def _(desk: Desk) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return main(["serve", "quickstart:student", "--port", str(server.getsockname()[1])])


@makes("a temporary folder with a long name")
def _(desk: Desk) -> int:
    """Ray looks at the names before it starts anything."""
    desk.patch.setenv("RAY_TMPDIR", str(desk.folder / ("long" * 20)))
    return desk.run()


@makes("no cluster at the address")
def _(desk: Desk) -> int:
    return desk.run(address="127.0.0.1:1")


@makes("the dashboard's address for `sirt run`")
def _(desk: Desk) -> int:
    return desk.run(address="http://127.0.0.1:8265")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    yield Desk(tmp_path, monkeypatch)


OURS = [mistake for mistake in MISTAKES if mistake.where == "command"]


@pytest.mark.parametrize("mistake", OURS, ids=lambda mistake: mistake.id)
def test_a_mistake_gets_its_message(
    mistake: Mistake, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    code = MADE[mistake.what](desk)
    check(mistake, code, capsys.readouterr().err)


def test_every_mistake_is_made() -> None:
    assert set(MADE) == {mistake.what for mistake in OURS}


def test_the_page_is_that_of_the_list() -> None:
    written = (ROOT / "docs/guide/troubleshooting.md").read_text()
    assert written == page(), (
        "write it again: python -m tests.helpers.mistakes_page > docs/guide/troubleshooting.md"
    )


def test_what_is_no_mistake(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Padding that is EOS, and a teacher with another tokenizer and a chat template."""
    student = desk.model()
    edited(student / "tokenizer_config.json", pad_token="</s>")
    teacher = tiny.save_student(desk.folder / "teacher")
    (teacher / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    desk.job.write_text(json.dumps(desk.document))
    models = ["--set", f"student.model={student}", "--set", f"teacher.model={teacher}"]
    assert main(["run", str(desk.job), "--dry-run", *models]) == 0, capsys.readouterr().err


def test_ray_is_never_asked_for_an_address_where_nobody_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would try for minutes, and then end the process."""
    monkeypatch.setattr(cluster.ray, "init", lambda **_: pytest.fail("Ray was asked"))
    assert desk.run(address="127.0.0.1:1") == 1
