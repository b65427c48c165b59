"""Each mistake of `tests/mistakes.py` that takes no Ray, made for real, and what is said about it.

Three boundaries are not ours and are stood in for: the hub, by a server on this machine; a GPU
that is full, by torch's own error out of the optimizer's step; a disk that is full in the middle of
a training, by the error of safetensors.
"""

import contextlib
import fcntl
import json
import shutil
import socket
import sys
from argparse import _SubParsersAction
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import tiny
import torch
from fake_endpoint import FakeEndpoint, ask
from ray.exceptions import RayTaskError
from safetensors import SafetensorError

from sirt_ray import cli, ending, tables
from sirt_ray.artifacts import Artifact, Store
from sirt_ray.cli import main
from sirt_ray.config import JobConfig
from sirt_ray.errors import SirtError
from sirt_ray.on_ray import cluster, pairing, trainer
from sirt_ray.quickstart import assets
from sirt_ray.recipes import TuneConfig
from sirt_ray.resources import TrainerResources
from sirt_ray.training.__main__ import main as train_alone
from sirt_ray.training.tasks import Source, TuneTask
from sirt_ray.training.workfolder import WorkFolder
from tests.hub_stand_in import Repository, hub
from tests.mistakes import MISTAKES, Mistake, check, page

Made = Callable[["Desk"], int]
MADE: dict[str, Made] = {}
"""By the mistake's name, what makes it and returns the exit code."""


def makes(what: str) -> Callable[[Made], Made]:
    def keep(made: Made) -> Made:
        MADE[what] = made
        return made

    return keep


class Desk:
    """A folder with a job that would run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = monkeypatch
        row = {"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}
        for split in ("train", "test"):
            path = folder / "rows" / "gsm8k" / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist([row] * 4), path)
        self.job = folder / "job.yaml"
        self.document = {
            "name": "mine",
            "output": str(folder / "runs"),
            "data": {
                "train": ["gsm8k"],
                "evaluate": ["gsm8k"],
                "root": str(folder / "rows"),
                "num_validation": 1,
            },
            "teacher": {"model": "quickstart:teacher"},
            "student": {"model": "quickstart:student"},
        }

    def run(self, *settings: str, address: str | None = None) -> int:
        """`sirt run` of the job; a setting is `a.b=value`."""
        self.job.write_text(json.dumps(self.document))
        where = [] if address is None else ["--address", address]
        given = [part for setting in settings for part in ("--set", setting)]
        return main(["run", str(self.job), *given, *where])

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "mine"

    def model(self) -> Path:
        """A copy of the quickstart's student, to be spoilt."""
        return Path(shutil.copytree(assets.resolve("quickstart:student"), self.folder / "model"))

    def run_model(self, model: Path) -> int:
        return self.run(f"student.model={model}")

    def run_from_hub(self, model: str, *settings: str) -> int:
        config = (assets.resolve("quickstart:student") / Path("config.json")).read_bytes()
        there = Repository("main", {"config.json": config})
        gated = Repository("main", {"config.json": config}, gated=True)
        with hub({"org/open": there, "org/gated": gated}) as url:
            return self.run_at(url, model, *settings)

    def run_at(self, url: str, model: str, *settings: str) -> int:
        from huggingface_hub import constants

        self.patch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        self.patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        self.patch.setattr(constants, "HF_HUB_CACHE", str(self.folder / "cache"))
        self.patch.setattr(constants, "HF_HUB_OFFLINE", False)
        self.patch.delenv("HF_TOKEN", raising=False)
        return self.run(f"student.model={model}", *settings)


def edited(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


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


def refine_alone(desk: Desk, *settings: str) -> int:
    """Pairs of a tiny student, in its own token ids."""
    pairs = tiny.write_pairs(desk.folder / "pairs", range(4)) / "pairs.parquet"
    given = [part for setting in settings for part in ("--set", setting)]
    out = ["--data", str(pairs), "--out", str(desk.folder / "out")]
    return train_alone(["dpo", *out, *given])


@makes("pairs of a student with another tokenizer")
def _(desk: Desk) -> int:
    return refine_alone(desk, f"model={assets.resolve('quickstart:student')}")


def fill_the_gpu(desk: Desk) -> Path:
    """The first optimizer step finds no memory. Returns a student."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    desk.patch.setattr(torch.optim.AdamW, "step", full)
    return tiny.save_student(desk.folder / "model")


def tune_as_a_worker(desk: Desk, student: Path) -> int:
    """One step, as a worker of Ray Train does it, in this process. The driver reads its error."""
    task = TuneTask(
        desk.folder / "out",
        Source(str(student)),
        tiny.write_demonstrations(desk.folder / "shown", range(4)),
        TuneConfig(max_steps=1, validation_fraction=0.0),
        TrainerResources(),
        seed=0,
    )
    desk.patch.setattr(trainer, "_device", lambda resources: torch.device("cpu"))
    work = WorkFolder(task.out)
    attempt = work.claim(task.resources)
    with contextlib.suppress(SirtError):
        trainer._work(task, attempt)
    assert not list(work.path.rglob("*.partial"))
    error = trainer._met_by_worker(work)
    assert error is not None

    def met() -> int:
        raise error

    return ending.ended(met, False, "stopped")


@makes("too little memory for the training")
def _(desk: Desk) -> int:
    return tune_as_a_worker(desk, fill_the_gpu(desk))


@makes("a disk that gets full in a training")
def _(desk: Desk) -> int:
    def full(tensors: object, path: Path) -> None:
        Path(path).write_text("the beginning")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    desk.patch.setattr(safetensors.torch, "save_file", full)
    return tune_as_a_worker(desk, tiny.save_student(desk.folder / "model"))


@makes("too little memory for a training in one process")
def _(desk: Desk) -> int:
    return refine_alone(desk, f"model={fill_the_gpu(desk)}")


@makes("a package of an extra that is missing")
def _(desk: Desk) -> int:
    student = tiny.save_student(desk.folder / "model")
    return refine_alone(desk, f"model={student}", "refine.lora.quantize=nf4")


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
    rows = [tables.graded_row(tiny.answer(number, "4")) for number in range(4)]
    tables.write(samples / "part-0.parquet", rows, tables.GRADED)
    artifact = Artifact("round_01/samples", samples, "", {})
    job = JobConfig.model_validate(desk.document)
    return ending.ended(
        lambda: len(pairing.pair(desk.folder, job, artifact, artifact, 1)), False, "stopped"
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

    return ending.ended(asked, False, "stopped")


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
    written = (Path(__file__).parents[2] / "jobs" / "mistakes.md").read_text()
    assert written == page(), "write it anew: python -m tests.mistakes > jobs/mistakes.md"


def test_what_is_no_mistake(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Padding that is EOS, and a teacher with another tokenizer and a chat template."""
    student = desk.model()
    edited(student / "tokenizer_config.json", pad_token="</s>")
    teacher = tiny.save_student(desk.folder / "teacher")
    (teacher / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    desk.job.write_text(json.dumps(desk.document))
    models = ["--set", f"student.model={student}", "--set", f"teacher.model={teacher}"]
    assert main(["run", str(desk.job), "--dry-run", *models]) == 0, capsys.readouterr().err


class TestErrorsThatNobodyHasThoughtOf:
    def broken(self) -> int:
        raise KeyError("sk-very-secret is no stage")

    def test_they_say_so_and_leave_their_trace_without_secrets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MY_KEY", "sk-very-secret")
        monkeypatch.setattr(ending.tempfile, "tempdir", str(tmp_path))
        assert ending.ended(self.broken, False, "stopped") == 1
        told = capsys.readouterr().err
        (trace,) = tmp_path.glob("sirt-error-*.log")
        assert "a bug of sirt-ray: KeyError" in told and "sirt doctor --json" in told
        assert str(trace) in told and "Traceback" not in told
        written = trace.read_text()
        assert "in broken" in written and "'sirt-ray'" in written
        assert "very-secret" not in told + written

    def test_with_debug_they_are_raised(self) -> None:
        with pytest.raises(KeyError):
            ending.ended(self.broken, True, "stopped")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "a"), "a cannot be written: No space left"),
        (OSError(13, "Permission denied", "a"), "a cannot be used: Permission denied. Give"),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another process"])
def test_what_the_machine_refuses_is_no_bug(
    error: OSError, said: str, elsewhere: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> int:
        raise RayTaskError("write", "Traceback ...", error) if elsewhere else error

    assert ending.ended(refused, False, "stopped") == 1
    assert f"error: {said}" in capsys.readouterr().err


def test_every_command_can_be_debugged() -> None:
    (commands,) = (
        action for action in cli._parser()._actions if isinstance(action, _SubParsersAction)
    )
    for name, command in commands.choices.items():
        assert "--debug" in command.format_help(), name


def test_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert ending.ended(interrupted, True, "stopped; the same command continues") == 130
    assert "the same command continues" in capsys.readouterr().err


def test_ray_is_never_asked_for_an_address_where_nobody_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would try for minutes, and then end the process."""
    monkeypatch.setattr(cluster.ray, "init", lambda **_: pytest.fail("Ray was asked"))
    assert desk.run(address="127.0.0.1:1") == 1
