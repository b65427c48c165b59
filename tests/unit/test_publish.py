"""What leaves a run: a folder that others load, and a repository of the hub."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from fakes import job
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM
from written_runs import WrittenStages, write_run

from sirt_ray import cli, jobfile
from sirt_ray.artifacts import Artifact
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.core.interfaces import Counts, Policy
from sirt_ray.errors import DataError, ModelError
from sirt_ray.publish.card import UNLICENSED, public_job
from sirt_ray.publish.folder import export_student
from sirt_ray.publish.students import find_student
from tests.hub_receiver import receiver
from tests.tiny import save_student, save_talker, write_demonstrations, write_pairs

TOKEN = "hf_write_0123456789"
TESTS = {
    "teacher": {"gsm8k": "1111", "multiarith": "111"},
    "baseline": {"gsm8k": "0000", "multiarith": "000"},
    "round_00": {"gsm8k": "1000", "multiarith": "100"},
    "round_01": {"gsm8k": "1110", "multiarith": "110"},
    "round_02": {"gsm8k": "1111", "multiarith": "111"},
}
PROMPT = torch.tensor([[1, *range(40, 60)]])


class TrainedStages(WrittenStages):
    """Students of tiny models. `lora`: the trainings that made an adapter, as the trainer leaves
    it: beside the model that it is merged into."""

    def __init__(self, lora: tuple[int, ...] = (), **known: Any) -> None:
        super().__init__(TESTS, **known)
        self.lora = lora

    def demonstrate(self, out: Path, *given: Any) -> Counts:
        write_demonstrations(out, range(4))
        return super().demonstrate(out, *given)

    def pair(self, out: Path, samples: Artifact, *given: Any) -> Counts:
        write_pairs(out, range(4))
        return super().pair(out, samples, *given)

    def tune(self, out: Path, base: Policy, demonstrations: Artifact) -> Counts:
        self._train(out, base.path, 0)
        return {"steps": 1, "chosen_step": 1, "left_out": {}, "examples": 1}

    def refine(self, out: Path, start: Policy, *given: Any) -> Counts:
        self._train(out, start.path, given[-1])
        return {"steps": 1, "chosen_step": 1, "left_out": {}, "examples": 1}

    def _train(self, out: Path, start: str, number: int) -> None:
        (out / "metrics.jsonl").write_text("{}\n")
        if number not in self.lora:
            save_talker(out, seed=10 + number)
            return
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
        torch.manual_seed(number)
        # Not the same layers each time: a sum has to take both as they are.
        layers = ["q_proj", "up_proj"] if number % 2 else ["q_proj", "down_proj", "o_proj"]
        config = peft.LoraConfig(r=2 + number, lora_alpha=7, target_modules=layers)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        adapted.save_pretrained(out / "adapter")
        save_student(out)  # its tokenizer stays
        adapted.merge_and_unload().save_pretrained(out)


def write(root: Path, stages: TrainedStages, rounds: int = 1) -> Path:
    """Adapters need a real base; the others have one that is on the hub."""
    base = str(save_talker(root / "base", seed=1)) if stages.lora else "me/base"
    return write_run(
        root / "mine", stages, student={"model": base}, refine={"rounds": rounds, "roll_back": True}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("full"), TrainedStages())


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lora"), TrainedStages(lora=(0, 1, 2)), rounds=2)


def export(run_dir: Path, out: Path, *more: str) -> int:
    return cli.main(["export", str(run_dir), str(out), *more])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=PROMPT).logits


def test_a_whole_model_leaves_as_it_was_evaluated(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(run, out) == 0
    student = run / "round_01" / "student"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (student / name).read_bytes()
    assert not {"record.json", "metrics.jsonl", "adapter", "data"} & {
        path.name for path in out.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_card_says_what_the_run_has_measured(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "--license", "apache-2.0")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.base_model == "me/base"
    assert card.data["base_model_relation"] == "finetune"
    assert card.data.datasets == [REGISTRY["gsm8k"].source.dataset]
    scores = json.loads((run / "scores.json").read_text())["round_01"]
    said = {
        (result.dataset_name, result.metric_args["prompt"]): (
            result.metric_value,
            result.metric_args["stderr"],
            result.metric_args["n"],
        )
        for result in card.data.eval_results
    }
    assert said == {
        (name, kind): (round(score["accuracy"], 4), round(score["stderr"], 4), score["n"])
        for name, kinds in scores.items()
        for kind, score in kinds.items()
    }
    record = json.loads((run / "round_01/student/record.json").read_text())
    assert record["fingerprint"] in card.content
    assert "| round_01 | 75.0 ± 21.7 (n = 4) | 66.7 ± 27.2 (n = 3) |" in card.content


def test_a_licence_that_nobody_has_given_is_asked_for(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.license_name) == (UNLICENSED, "fill-in")


def test_the_job_leaves_without_what_only_this_machine_knows(
    lora_run: Path, tmp_path: Path
) -> None:
    export(lora_run, tmp_path / "out", "--merge")
    told = (tmp_path / "out/job.yaml").read_text() + (tmp_path / "out/README.md").read_text()
    assert str(lora_run.parent) not in told
    theirs = jobfile.load(tmp_path / "out/job.yaml", (), REGISTRY)
    ours = jobfile.load(lora_run / "config.yaml", (), REGISTRY)
    assert theirs.student.model == "./base"
    for section in ("tune", "refine", "evaluation", "demonstrations", "seed", "data"):
        assert getattr(theirs, section) == getattr(ours, section)


def test_where_a_teacher_was_asked_is_not_told(tmp_path: Path) -> None:
    endpoint = {"url": "http://10.9.8.7/v1", "model": "large", "api_key_env": "OUR_KEY"}
    text = public_job(job(teacher={"endpoint": endpoint}))
    assert "10.9.8.7" not in text and "OUR_KEY" not in text
    (tmp_path / "job.yaml").write_text(text)
    theirs = jobfile.load(tmp_path / "job.yaml", (), REGISTRY).teacher.endpoint
    assert theirs is not None and theirs.model == "large"


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "note").write_text("mine")
    assert export(run, tmp_path) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    (tmp_path / "empty").mkdir()
    assert export(run, tmp_path / "empty") == 0


def test_what_fails_half_way_leaves_nothing(run: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(run, tmp_path / "run")
    (broken / "round_01/student/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="no whole weights"):
        export_student(find_student(broken), tmp_path / "out", False, False, UNLICENSED)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_student_that_was_rolled_back_or_is_not_finished_is_refused(tmp_path: Path) -> None:
    worse = TrainedStages(held_out={"round_00": 80, "round_01": 20})
    run_dir = write(tmp_path, worse)
    assert find_student(run_dir).version == "round_00"
    with pytest.raises(ModelError, match=r"round_01 .* was rolled back.*--stage round_00"):
        find_student(run_dir, "round_01")
    with pytest.raises(ModelError, match=r"no student round_07.*round_00, round_01"):
        find_student(run_dir, "round_07")
    shutil.rmtree(run_dir / "round_00" / "evaluation")
    with pytest.raises(ModelError, match=r"round_00/evaluation is missing"):
        find_student(run_dir, "round_00")
    with pytest.raises(DataError, match="no run"):
        find_student(tmp_path)


def test_adapters_on_adapters_leave_as_one_that_says_what_the_merged_student_says(
    lora_run: Path, tmp_path: Path
) -> None:
    assert export(lora_run, tmp_path / "adapter") == 0
    assert export(lora_run, tmp_path / "merged", "--merge") == 0
    assert not (tmp_path / "adapter/config.json").exists()
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["r"] == 2 + 3 + 4
    assert Path(config["base_model_name_or_path"]) == lora_run.parent / "base"
    expected = logits(AutoModelForCausalLM.from_pretrained(lora_run / "round_02/student"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(merged), expected)
    assert torch.allclose(logits(adapted), expected, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(lora_run.parent / "base")
    assert not torch.allclose(logits(base), expected, atol=1e-1)


def test_a_single_adapter_leaves_as_it_is(lora_run: Path, tmp_path: Path) -> None:
    assert export(lora_run, tmp_path / "out", "--stage", "round_00") == 0
    name = "adapter_model.safetensors"
    ours, theirs = (
        peft.utils.load_peft_weights(str(folder), device="cpu")
        for folder in (lora_run / "round_00/student/adapter", tmp_path / "out")
    )
    assert (tmp_path / "out" / name).is_file() and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "peft" and "AutoPeftModelForCausalLM" in card.content


def test_an_adapter_on_weights_of_the_run_has_to_be_merged(tmp_path: Path) -> None:
    run_dir = write(tmp_path, TrainedStages(lora=(1,)))
    with pytest.raises(ModelError, match=r"weights of round_00.*--merge"):
        export_student(find_student(run_dir), tmp_path / "out", False, False, UNLICENSED)
    assert export(run_dir, tmp_path / "out", "--merge") == 0


def test_data_leaves_with_its_entries_for_llama_factory(run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export(run, tmp_path / "out", "--data")
    folder = tmp_path / "out" / "data"
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(info) == {"demonstrations", "pairs_round_01"}
    assert info["pairs_round_01"]["ranking"] is True
    for entry in info.values():
        columns = pq.read_schema(folder / entry["file_name"]).names
        assert set(entry["columns"].values()) <= set(columns)
    for name, ours in (
        ("demonstrations", run / "demonstrations/demonstrations.parquet"),
        ("pairs_round_01", run / "round_01/pairs/pairs.parquet"),
    ):
        assert (folder / f"{name}.parquet").read_bytes() == ours.read_bytes()


def push(
    monkeypatch: pytest.MonkeyPatch, address: str, token: str | None, *arguments: object
) -> int:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return cli.main(["push", *map(str, arguments)])


def files(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_pushed_run_is_what_would_have_been_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    export(run, tmp_path / "out", "--data")
    with receiver({TOKEN: "me"}) as hub:
        assert push(monkeypatch, hub.address, TOKEN, run, "me/new", "--private", "--data") == 0
        assert hub.repositories["me/new"] == {"main": files(tmp_path / "out")}
        assert hub.private == {"me/new"}
        said = capsys.readouterr()
        assert f"{hub.address}/me/new" in said.out and TOKEN not in said.out + said.err

        assert push(monkeypatch, hub.address, TOKEN, run, "me/new") == 1
        assert "me/new exists already" in capsys.readouterr().err
        (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\nMine")
        pushed = push(monkeypatch, hub.address, TOKEN, tmp_path / "out", "me/new", "--revision=b")
        assert pushed == 0
        assert hub.repositories["me/new"]["b"] == files(tmp_path / "out")
        assert hub.repositories["me/new"]["main"]["README.md"] != b"---\nlicense: mit\n---\nMine"


@pytest.mark.parametrize(
    ("token", "repo", "status", "reason"),
    [
        (None, "me/new", 2, "there is no token.*hf auth login"),
        (TOKEN, "other/new", 1, "the token may not write to other/new"),
        ("hf_read_0123456789", "me/new", 1, "the token may not write to me/new"),
        ("hf_unknown_0123456789", "me/new", 1, "does not know the token"),
        (TOKEN, "new", 2, "new has no owner.*me/new"),
        (TOKEN, "me/a b", 2, "me/a b is no name of a repository"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    token: str | None,
    repo: str,
    status: int,
    reason: str,
) -> None:
    with receiver({TOKEN: "me"}, readers=("hf_read_0123456789",)) as hub:
        folder = run / "round_01" / "student"
        assert push(monkeypatch, hub.address, token, folder, repo) == status
        assert hub.repositories == {}
    said = capsys.readouterr().err
    assert re.search(reason, said) and (token is None or token not in said)


def test_a_hub_that_cannot_be_reached_is_named_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with receiver({TOKEN: "me"}) as hub:
        address = hub.address
    assert push(monkeypatch, address, TOKEN, run / "round_01/student", "me/new") == 1
    assert "the hub cannot be reached" in capsys.readouterr().err


def test_an_adapter_on_a_local_base_stays_here(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with receiver({TOKEN: "me"}) as hub:
        assert push(monkeypatch, hub.address, TOKEN, lora_run, "me/new") == 2
        assert hub.repositories == {}
    assert "--merge" in capsys.readouterr().err


def test_the_metadata_is_yaml_of_plain_values(run: Path, tmp_path: Path) -> None:
    """As the hub reads it: between two lines of dashes, and nothing that only Python knows."""
    export(run, tmp_path / "out")
    front = (tmp_path / "out/README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["model-index"][0]["results"]
