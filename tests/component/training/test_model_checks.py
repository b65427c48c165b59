"""Models that are not what they say, in each way that is known: refused before anything starts, by
the one judge of `sirt run`, `train`, `serve` and `export`, and by the trainer itself."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from sirt_ray.cli.main import main
from sirt_ray.config.load import override
from sirt_ray.config.training import TuneConfig
from sirt_ray.driver.checks import check_model
from sirt_ray.errors import ModelError
from sirt_ray.quickstart import assets
from sirt_ray.training.model import load_model
from sirt_ray.training.model_checks import judge, learned_positions, structure
from sirt_ray.training.tasks import Source

STUDENT = Path(assets.resolve("quickstart:student"))
WEIGHTS = "model.safetensors"
ROWS = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(4)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the quickstart's student, to be spoilt."""
    return Path(shutil.copytree(STUDENT, tmp_path / "model"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    found = load_file(model / WEIGHTS)
    change(found)
    save_file(found, model / WEIGHTS, metadata={"format": "pt"})


def without_a_layer(model: Path) -> None:
    weights(model, lambda w: [w.pop(name) for name in list(w) if "layers.1." in name])


def reshaped(model: Path) -> None:
    weights(model, lambda w: w.update({"model.norm.weight": torch.ones(95)}))


def with_more_layers(model: Path) -> None:
    edit(model / "config.json", num_hidden_layers=2)


def all_at_once(model: Path) -> None:
    without_a_layer(model)
    reshaped(model)
    weights(model, lambda w: w.update({"v_head.weight": torch.ones(1)}))


def without_a_shard(model: Path) -> None:
    named = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    (model / WEIGHTS).rename(model / named["a"])


def with_a_broken_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{}")


def truncated(model: Path) -> None:
    file = model / WEIGHTS
    file.write_bytes(file.read_bytes()[:100_000])


def lfs_pointer(model: Path) -> None:
    (model / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9")


def tokenizer_with_one_more(model: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(model)


def bert(model: Path) -> None:
    edit(model / "config.json", model_type="bert", architectures=["BertForMaskedLM"])


def modern_bert(model: Path) -> None:
    config = hf.ModernBertConfig(vocab_size=557, hidden_size=32, num_hidden_layers=1)
    config.save_pretrained(model)


def t5(model: Path) -> None:
    hf.T5Config(vocab_size=557, d_model=32).save_pretrained(model)


def vision(model: Path) -> None:
    hf.Gemma3Config().save_pretrained(model)


def other_vision(model: Path) -> None:
    hf.Qwen2VLConfig().save_pretrained(model)


def quantised(method: str, **settings: object) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        found = {"quant_method": method, **settings}
        edit(model / "config.json", quantization_config=found)

    spoil.__name__ = f"quantised_{method}"
    return spoil


def adapter(model: Path) -> None:
    for name in ("config.json", "generation_config.json", WEIGHTS):
        (model / name).unlink()
    settings = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/base"}
    (model / "adapter_config.json").write_text(json.dumps(settings))


def adapter_beside_a_model(model: Path) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))


def gguf(model: Path) -> None:
    for file in model.iterdir():
        file.unlink()
    (model / "small.Q4_K_M.gguf").write_bytes(b"GGUF")


def gguf_with_a_config(model: Path) -> None:
    (model / WEIGHTS).rename(model / "small.gguf")


def folder_of_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).mkdir()


def config_of_another_kind(model: Path) -> None:
    edit(model / "config.json", hidden_size="wide")


FOR_ANY_USE: list[tuple[Callable[[Path], None], Sequence[str]]] = [
    (without_a_layer, ["lacks weights", "model.layers.1.", "and 6 more", "Download it again"]),
    (reshaped, ["other shapes", "model.norm.weight is 95 and should be 96"]),
    (without_a_shard, ["1 of the 2 files", "are missing: model-00002-of-00002.safetensors"]),
    (with_a_broken_index, ["index.json cannot be read", "Download the file again"]),
    (truncated, ["holds no complete weights", "Download the file again"]),
    (lfs_pointer, ["is a Git LFS pointer", "`git lfs pull`"]),
    (tokenizer_with_one_more, ["no embeddings for (557 rows)", "<extra> (557)", "resize_token_"]),
    (bert, ["does not write text (bert", "Choose a causal language model"]),
    (modern_bert, ["does not write text (modernbert"]),
    (t5, ["is an encoder-decoder model (t5)"]),
    (adapter, ["is an adapter of org/base", "merge_and_unload"]),
    (adapter_beside_a_model, ["is an adapter of org/base"]),
    (gguf, ["holds a GGUF file (small.Q4_K_M.gguf)", "converted from"]),
    (gguf_with_a_config, ["holds a GGUF file (small.gguf)"]),
    (folder_of_weights, ["model.safetensors holds no complete weights"]),
    (config_of_another_kind, ["cannot be loaded: Validation error for field 'hidden_size'"]),
]
FOR_TRAINING: list[tuple[Callable[[Path], None], Sequence[str]]] = [
    (with_more_layers, ["does not use", "model.layers.2.", "trained without them"]),
    (vision, ["is not a model of text alone (gemma3"]),
    (other_vision, ["is not a model of text alone (qwen2_vl"]),
    (quantised("awq", bits=4), ["is quantised (awq)", "Give the unquantised model"]),
    (quantised("gptq", bits=4), ["is quantised (gptq)"]),
    (quantised("bitsandbytes", load_in_4bit=True), ["is quantised (bitsandbytes)"]),
    (quantised("fp8"), ["is quantised (fp8)"]),
    (quantised("compressed-tensors"), ["is quantised (compressed-tensors)"]),
    (
        all_at_once,
        ["lacks weights", "other shapes", "has weights that its architecture does not use: v_head"],
    ),
]


NOT_SEEN_BY_THE_TRAINER = (
    with_a_broken_index,
    tokenizer_with_one_more,
    adapter,
    adapter_beside_a_model,
    gguf,
)
"""What it is spared by the judge."""


def names(cases: Sequence[tuple[Callable[[Path], None], Any]]) -> list[str]:
    return [spoil.__name__ for spoil, _ in cases]


@pytest.mark.parametrize("use", ["served", "trained"])
@pytest.mark.parametrize(("spoil", "words"), FOR_ANY_USE, ids=names(FOR_ANY_USE))
def test_what_no_one_can_use_is_refused(
    model: Path, spoil: Callable[[Path], None], words: Sequence[str], use: Any
) -> None:
    spoil(model)
    with pytest.raises(ModelError) as refused:
        check_model("the.setting", str(model), use=use)
    said = str(refused.value)
    assert all(line.startswith("the.setting: ") for line in said.splitlines())
    assert len(set(said.splitlines())) == len(said.splitlines())
    for word in words:
        assert word in said


@pytest.mark.parametrize(("spoil", "words"), FOR_TRAINING, ids=names(FOR_TRAINING))
def test_what_cannot_be_trained_is_refused(
    model: Path, spoil: Callable[[Path], None], words: Sequence[str]
) -> None:
    spoil(model)
    with pytest.raises(ModelError) as refused:
        check_model("student.model", str(model), use="trained")
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("spoil", [quantised("awq", bits=4), with_more_layers])
def test_what_only_a_training_cannot_use_is_served(
    model: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(model)
    check_model("MODEL", str(model))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [case for case in FOR_ANY_USE + FOR_TRAINING if case[0] not in NOT_SEEN_BY_THE_TRAINER],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_trainer_itself_refuses_in_one_message(
    model: Path, spoil: Callable[[Path], None], words: Sequence[str]
) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=str(model)):
        load_model(Source(str(model)), TuneConfig())


def test_what_is_whole_is_neither_refused_nor_warned_of(model: Path) -> None:
    found = judge(Source(str(model)), "trained", {"tune": TuneConfig()})
    assert not (found.problems or found.warnings or found.unloadable)


def test_a_token_that_no_text_holds_needs_no_row(model: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(model)
    check_model("student.model", str(model), use="trained")


def train(model: Path, rows: Sequence[object] = ROWS, *settings: str, kind: str = "sft") -> int:
    """`sirt train` on rows; a setting is `a.b=value`."""
    data = model.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = "tune" if kind == "sft" else "refine"
    given = [f"{section}.max_steps=1", f"{section}.validation_fraction=0", *settings]
    overrides = [part for setting in given for part in ("--set", setting)]
    where = ["--model", str(model), "--data", str(data), "--out", str(model.parent / "out")]
    return main(["train", kind, *where, *overrides])


@pytest.mark.parametrize("spoil", [without_a_layer, truncated, adapter, bert, gguf])
def test_a_standalone_training_is_judged_alike(
    model: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(model)
    assert train(model) == 2
    said = capsys.readouterr().err
    assert "model: " in said and "bug of sirt-ray" not in said
    assert not (model.parent / "out").exists()


@pytest.mark.parametrize("below", [".", "folder"])
def test_an_output_that_is_a_file_is_refused(
    model: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model.parent / "file").write_text("")
    where = ["--data", str(model / "config.json"), "--out", str(model.parent / "file" / below)]
    assert main(["train", "sft", "--model", str(model), *where]) == 2
    assert "is a file, so" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nope", ["lora.target_modules ['nope'] does not fit", "not found", "all-linear"]),
        ("layers", ["does not fit", "no linear layers"]),
        ("lm_head,q_proj", ["one matrix (tie_word_embeddings", "another model", "Take them out"]),
        ("embed_tokens,q_proj", ["one matrix (tie_word_embeddings"]),
    ],
)
def test_targets_of_lora_that_cannot_be_are_refused(
    model: Path, kind: str, target: str, words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    section = "tune" if kind == "sft" else "refine"
    assert train(model, ROWS, f"{section}.lora.target_modules=[{target}]", kind=kind) == 2
    said = capsys.readouterr().err
    assert f"model: {section}." in said
    for word in words:
        assert word in said


def test_the_head_of_an_untied_model_may_have_an_adapter(tmp_path: Path) -> None:
    from tests.helpers import tiny

    model = tiny.save_student(tmp_path / "model")
    config = override(TuneConfig(), ["lora.target_modules=[lm_head,q_proj]"])
    found = judge(Source(str(model)), "trained", {"tune": config})
    assert not found.problems


def test_a_target_without_a_layer_is_warned_of(model: Path) -> None:
    config = override(TuneConfig(), ["lora.target_modules=[q_proj,query]"])
    (warning,) = judge(Source(str(model)), "trained", {"tune": config}).warnings
    assert "tune.lora.target_modules" in warning and "no layer 'query'" in warning


GPT = {"n_embd": 32, "n_layer": 1, "n_head": 2}
LAYER = {"hidden_size": 32, "num_hidden_layers": 1}
LIMIT = {"max_position_embeddings": 64}


class TestLengths:
    @pytest.fixture
    def gpt2(self, model: Path) -> Path:
        """A model of 64 positions with the quickstart's tokenizer."""
        config = hf.GPT2Config(vocab_size=557, n_embd=32, n_layer=1, n_head=2, n_positions=64)
        (model / WEIGHTS).unlink()
        hf.GPT2LMHeadModel(config).save_pretrained(model)
        return model

    def test_beyond_its_positions_rows_are_left_out_and_counted(
        self, gpt2: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        long = {"prompt": "word " * 90, "completion": " 3"}
        assert train(gpt2, [*ROWS, long]) == 0
        assert "tune.max_length is 1024, and the model has 64 positions" in caplog.text
        counts = json.loads((gpt2.parent / "out/student/record.json").read_text())["counts"]
        assert (counts["examples"], counts["left_out"]) == (4, {"beyond_positions": 1})

    def test_so_are_pairs_and_their_reference(self, gpt2: Path) -> None:
        pairs = [{"prompt": "2 + 2 =", "chosen": f" {n}", "rejected": " 5"} for n in (3, 4)]
        long = {"prompt": "2 + 2 =", "chosen": "word " * 90, "rejected": " 5"}
        assert train(gpt2, [*pairs, long], kind="dpo") == 0
        counts = json.loads((gpt2.parent / "out/student/record.json").read_text())["counts"]
        assert (counts["examples"], counts["left_out"]) == (2, {"beyond_positions": 1})

    def test_where_all_are_too_long_it_says_so(
        self, gpt2: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert train(gpt2, [{"prompt": "word " * 90, "completion": " 3"}]) == 2
        assert "1 beyond_positions" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("kind", "settings", "positions"),
        [
            ("gpt2", {**GPT, "n_positions": 64}, 64),
            ("gptj", {**GPT, "n_positions": 64, "rotary_dim": 4}, 64),
            ("codegen", {**GPT, "n_positions": 64, "n_head": 4, "rotary_dim": 4}, 64),
            (
                "gpt_neo",
                {**LIMIT, "hidden_size": 32, "num_layers": 1, "attention_types": [[["global"], 1]]},
                64,
            ),
            ("opt", {**LAYER, **LIMIT, "num_attention_heads": 2}, 64),
            ("mpt", {"d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 64}, 64),
            ("llama", {**LAYER, **LIMIT}, None),
            ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2}, None),
            ("mamba", LAYER, None),
        ],
    )
    def test_positions_are_a_limit_only_where_they_are_a_table(
        self, kind: str, settings: dict[str, Any], positions: int | None
    ) -> None:
        config = hf.AutoConfig.for_model(kind, **settings)
        assert learned_positions(structure(config)) == positions

    @pytest.mark.parametrize(
        ("rope", "words"),
        [
            ({}, "made for 1024 tokens"),
            ({"rope_type": "dynamic", "factor": 2.0}, "longest sequence of its batch"),
        ],
    )
    def test_beyond_what_rope_has_seen_is_warned_of(
        self, model: Path, rope: dict[str, object], words: str
    ) -> None:
        if rope:
            edit(model / "config.json", rope_parameters={"rope_theta": 10000.0, **rope})
        config = TuneConfig(max_length=1500)
        (warning,) = judge(Source(str(model)), "trained", {"tune": config}).warnings
        assert "tune.max_length is 1500" in warning and words in warning
        assert not judge(Source(str(model)), "trained", {"tune": TuneConfig()}).warnings


def test_token_ids_without_a_row_are_refused_where_the_tokenizer_is_not_seen(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A padding token needs no row, unless somebody writes it."""
    tokenizer = hf.AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(model)
    assert train(model, [{"prompt": "a <padding> b", "completion": " 3"}] * 3) == 2
    assert "hold the token ids 557, and the model has embeddings" in capsys.readouterr().err


def test_the_home_folder_may_be_written_as_a_tilde(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sirt_ray.config.job import StudentConfig
    from sirt_ray.config.teacher import TeacherConfig

    monkeypatch.setenv("HOME", str(model.parent))
    assert StudentConfig(model="~/model").model == str(model)
    assert TeacherConfig(model="~/model").model == str(model)
    rows = model.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    where = ["--data", str(rows), "--out", str(model.parent / "out")]
    assert main(["train", "sft", "--model", "~/model", *where, "--set", "tune.max_steps=1"]) == 0


class TestEndOfTurn:
    TEMPLATE = (
        "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
    )

    def test_another_token_than_eos_is_warned_of(
        self, model: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (model / "chat_template.jinja").write_text(self.TEMPLATE)
        with caplog.at_level(logging.WARNING):
            check_model("student.model", str(model), use="trained")
        assert "ends an answer in '<end_of_turn>'" in caplog.text
        assert "Set `eos_token`" in caplog.text

    def test_eos_itself_is_not(self, model: Path, caplog: pytest.LogCaptureFixture) -> None:
        template = self.TEMPLATE.replace("<end_of_turn>", "{{ eos_token }}")
        (model / "chat_template.jinja").write_text(template)
        check_model("student.model", str(model), use="trained")
        assert not caplog.text
