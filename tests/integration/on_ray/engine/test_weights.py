"""Adapters and whole models on one running engine, which starts with an adapter. What it says is
what `transformers` says with the adapter merged into its base."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from sirt_ray.config.resources import EngineConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import ModelError
from sirt_ray.on_ray.engine.protocol import SampleRequest
from sirt_ray.on_ray.engine.server import ModelServer
from sirt_ray.publish.adapters import combine
from tests.helpers.sampling import start_server
from tests.helpers.tiny import save_talker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

Prompt = tuple[int, ...]
Tokens = tuple[int, ...]

MAX_TOKENS = 16
RANK = 4
MORE_THAN_THERE_IS_ROOM_FOR = 9
"""vLLM makes room for 8 where the first adapter has 4."""
PROMPTS: list[Prompt] = [
    (1, *range(first, first + length)) for first, length in ((40, 20), (90, 3), (140, 70))
]


@dataclass(frozen=True)
class Room:
    """A base, another model, and adapters of both."""

    folder: Path

    def policy(self, name: str) -> Policy:
        return Policy(name, str(self.folder / name))

    def save_adapter(self, name: str, base: str, seed: int, rank: int = RANK) -> None:
        """Matrices that change what the model says, as a long training would."""
        model = AutoModelForCausalLM.from_pretrained(self.folder / base, dtype=torch.float32)
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        adapted = peft.get_peft_model(model, config)
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(self.folder / name)

    def expected(self, name: str) -> list[Tokens]:
        folder = self.folder / name
        if (folder / "adapter_config.json").exists():
            model = peft.AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            model = model.merge_and_unload()
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        said: list[Tokens] = []
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
            )
            said.append(tuple(out[0, len(prompt) :].tolist()))
        return said


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """In a folder with wildcards in its name, which vLLM takes for a pattern."""
    room = Room(tmp_path_factory.mktemp("models") / "my [1] *?")
    for seed, name in enumerate(("base", "other")):
        save_talker(room.folder / name, seed, tied=False)
    room.save_adapter("first", "base", seed=1)
    room.save_adapter("second", "base", seed=2)
    room.save_adapter("large", "base", seed=3, rank=MORE_THAN_THERE_IS_ROOM_FOR)
    room.save_adapter("foreign", "other", seed=4)
    return room


@pytest.fixture(scope="module")
def server(
    ray_cluster: None, room: Room, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    server = start_server(
        "student",
        room.policy("first"),
        EngineConfig(num_cpus=0.5),
        run="weights",
        pointers=tmp_path_factory.mktemp("pointers"),
    )
    yield server
    server.stop()


def said(server: ModelServer) -> list[Tokens]:
    requests = tuple(
        SampleRequest("", prompt, 1, 0, 0.0, 1.0, MAX_TOKENS, server.version) for prompt in PROMPTS
    )
    replies = server.handle.sample.remote(requests).result(timeout_s=60)
    return [reply.choices[0].completion_ids for reply in replies]


def processes(server: ModelServer) -> tuple[int, ...]:
    return server.handle.facts.remote().result(timeout_s=60).process_ids


def test_adapters_and_whole_models_follow_each_other_on_the_running_engine(
    server: ModelServer, room: Room
) -> None:
    before = processes(server)
    way = ["first", "second", "base", "first", "other", "foreign", "base", "second"]
    expected = {name: room.expected(name) for name in way}
    assert len({str(tokens) for tokens in expected.values()}) == 5
    for name in way:
        if name != server.version:
            server.load(room.policy(name))
        assert (name, said(server)) == (name, expected[name])
    assert processes(server) == before


def test_adapters_of_two_rounds_that_leave_as_one_say_what_the_merged_student_says(
    server: ModelServer, room: Room
) -> None:
    """`sirt export` of a student that LoRA has made twice: merged, and not."""
    base = AutoModelForCausalLM.from_pretrained(room.folder / "base", dtype=torch.float32)
    first = peft.PeftModel.from_pretrained(base, room.folder / "first").merge_and_unload()
    shutil.copytree(room.folder / "base", room.folder / "once")
    first.save_pretrained(room.folder / "once")
    room.save_adapter("again", "once", seed=6)
    shutil.copytree(room.folder / "base", room.folder / "twice")
    once = AutoModelForCausalLM.from_pretrained(room.folder / "once", dtype=torch.float32)
    twice = peft.PeftModel.from_pretrained(once, room.folder / "again").merge_and_unload()
    twice.save_pretrained(room.folder / "twice")
    (room.folder / "sum").mkdir()
    config = combine([room.folder / "first", room.folder / "again"], room.folder / "sum")
    assert config["r"] == 2 * RANK

    expected = room.expected("twice")
    assert expected == room.expected("sum") and expected != room.expected("first")
    for name in ("twice", "base", "sum"):
        server.load(room.policy(name))
        assert name == "base" or said(server) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [("foreign", "belongs to .*other.*serves .*base"), ("large", "rank 9.*memory for rank 8")],
)
def test_an_adapter_that_does_not_fit_is_refused_and_nothing_changes(
    server: ModelServer, room: Room, name: str, reason: str
) -> None:
    server.load(room.policy("first"))
    with pytest.raises(ModelError, match=reason):
        server.load(room.policy(name))
    assert server.version == "first"
    assert said(server) == room.expected("first")


def test_an_adapter_whose_file_is_broken_is_refused_and_nothing_changes(
    server: ModelServer, room: Room
) -> None:
    room.save_adapter("broken", "base", seed=5)
    (room.folder / "broken" / "adapter_model.safetensors").write_bytes(b"these are no weights")
    server.load(room.policy("first"))
    with pytest.raises(ModelError, match=r"broken cannot be loaded.*(?i:header)"):
        server.load(room.policy("broken"))
    assert said(server) == room.expected("first")
