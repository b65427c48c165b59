"""The most common mistakes, and the message that each of them gets.

`MISTAKES` is the one list of them: tests provoke each and look for its message, and
`docs/guide/troubleshooting.md` is generated from it (`tests/helpers/mistakes_page.py`).
"""

from dataclasses import dataclass
from typing import Literal

Where = Literal["command", "cluster"]
"""Which test provokes it: `tests/component/cli/test_mistakes.py`, or, where it needs a running Ray,
`tests/integration/cli/test_mistakes.py`."""


@dataclass(frozen=True, slots=True)
class Mistake:
    what: str
    exit_code: int
    says: tuple[str, ...]
    """Pieces of the message, in their order: what is wrong, and why it cannot work."""
    cure: str
    """The piece of the message with what to do."""
    where: Where = "command"

    @property
    def id(self) -> str:
        """The name of its test."""
        return self.what.lower().replace(" ", "_").replace(",", "").replace("`", "")


JOB_FILE = (
    Mistake(
        "a setting that does not exist",
        2,
        ("job.yaml:", "refine.betta: no such setting"),
        "Check the spelling; `sirt plan` prints all settings of a job",
    ),
    Mistake(
        "a setting that is there twice",
        2,
        ("job.yaml:3: refine.beta: is set 2 times, in lines 2 and 3",),
        "only one of them can count. Remove the others",
    ),
    Mistake(
        "a value of the wrong type",
        2,
        ("1 problem in the job file; nothing was started", "--set tune.epochs=many: tune.epochs"),
        "input should be a valid number",
    ),
    Mistake(
        "a benchmark that is not known",
        2,
        ("train names no known benchmark: gsm9k",),
        "Known are commonsense_qa, gsm8k",
    ),
    Mistake(
        "a folder of rows that is not there",
        2,
        ("data.root: there is no folder",),
        "Correct the path, or leave data.root out to load the rows from the hub",
    ),
    Mistake(
        "answers as long as the engine's whole context",
        2,
        ("refine.sampling.max_tokens is 512", "max_model_len is 256", "no question fits"),
        "Lower max_tokens, or raise max_model_len",
    ),
    Mistake(
        "a run folder that cannot be made",
        2,
        ("output:", "is a file, so the run cannot have the folder"),
        "Set `output` to a folder",
    ),
)
MODELS = (
    Mistake(
        "a wrong model path",
        2,
        ("student.model: there is no folder",),
        "Give the folder of a Hugging Face model (config.json, *.safetensors, tokenizer.json), or a"
        " name on the hub",
    ),
    Mistake(
        "a name that the hub does not know",
        2,
        ("student.model: org/none cannot be loaded", "has no model of this name, or it is private"),
        "Check the spelling (owner/name); for a private one set a token in HF_TOKEN",
    ),
    Mistake(
        "a gated model",
        2,
        ("student.model: org/gated cannot be loaded: it is gated, and no token is set",),
        "set a token of the same account in HF_TOKEN, or with `hf auth login`",
    ),
    Mistake(
        "a revision that does not exist",
        2,
        ("student.model: org/open cannot be loaded", "not this revision"),
        "Correct or remove `revision`",
    ),
    Mistake(
        "no network, or the hub is down",
        2,
        ("it is not in the hub's cache on this machine", "does not answer"),
        "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or download the model on another"
        " machine and give its folder",
    ),
    Mistake(
        "a model that was not fully downloaded",
        2,
        ("model.safetensors holds no complete weights",),
        "Download the file again",
    ),
    Mistake(
        "a model without all of its weights",
        2,
        ("lacks weights of its architecture: model.layers.1.",),
        "Download it again, or correct its config.json",
    ),
    Mistake(
        "an adapter in place of a model",
        2,
        ("is an adapter of org/base, not a whole model",),
        "Merge it into its base",
    ),
    Mistake(
        "a quantised model as the student",
        2,
        ("is quantised (awq), and quantised weights cannot be updated",),
        "Give the unquantised model",
    ),
    Mistake(
        "an encoder as the student",
        2,
        ("does not write text (bert",),
        "Choose a causal language model",
    ),
    Mistake(
        "a tokenizer with more tokens than the model",
        2,
        ("has tokens that the model has no embeddings for",),
        "Enlarge the model",
    ),
    Mistake(
        "LoRA on a head that is tied",
        2,
        ("tune.lora.target_modules ['lm_head'] reaches the embeddings or the head", "one matrix"),
        "Take them out of target_modules, or untie them in the model's folder",
    ),
    Mistake(
        "a model with code of its own",
        2,
        ("it brings code of its own, which is never run",),
        "Choose a model whose architecture `transformers` itself has",
    ),
    Mistake(
        "a model without a tokenizer",
        2,
        ("it has no tokenizer that can be read",),
        "Put one next to config.json with `tokenizer.save_pretrained`, or copy tokenizer.json and"
        " tokenizer_config.json there",
    ),
    Mistake(
        "a tokenizer without EOS",
        2,
        ("has no end-of-sequence token, so answers would never end",),
        "Set `eos_token` in its tokenizer_config.json",
    ),
    Mistake(
        "a chat template that changes a prompt once it is answered",
        2,
        ("cannot be trained", "training sequences would not begin with its prompts"),
        "Give the model's folder a chat template whose generation prompt is how an answer begins,"
        " or remove it to use plain prompts",
    ),
    Mistake(
        "pairs of a student with another tokenizer",
        2,
        ("holds the token ids of another tokenizer or chat template",),
        "Train the student that sampled these pairs, or provide them as text",
    ),
)
RUNNING = (
    Mistake(
        "settings that are changed under a finished run",
        2,
        ("runs/mine/questions is finished, and was made with other settings",),
        "Either set these back, or choose another folder (a job's `name`, or --out), or run with"
        " --force",
    ),
    Mistake(
        "two drivers of one run",
        2,
        ("another driver is running in", "runs/mine"),
        "Wait until it ends or stop it, or give this job another name",
    ),
    Mistake(
        "all demonstrations are rejected",
        1,
        ("none of the teacher's answers to 6 questions can be learned from", "dropped_wrong 6"),
        "A larger teacher.sampling.max_tokens helps against truncated ones, demonstrations.keep:"
        " all keeps the wrong ones",
        "cluster",
    ),
    Mistake(
        "no pairs",
        1,
        ("round 1 made no preference pair from 4 questions",),
        "Raise refine.num_cot or sampling.temperature",
    ),
    Mistake(
        "questions longer than the engine's context",
        1,
        ("none of the 4 questions could be sampled. The first, ", "is above the engine's 100"),
        "Lower max_tokens or raise max_model_len under resources",
        "cluster",
    ),
    Mistake(
        "too little memory for the engine",
        1,
        ("engine could not be started with", "memory"),
        "Lower this engine's kv_cache_gib, max_model_len or max_num_seqs under resources",
        "cluster",
    ),
    Mistake(
        "too little memory for the training",
        1,
        ("ran out of memory: CUDA out of memory",),
        "Lower resources.trainer.max_tokens_per_micro_batch, set gradient_checkpointing, raise"
        " zero_stage, set offload, or train with LoRA",
    ),
    Mistake(
        "too little memory for a training in one process",
        1,
        ("The GPU ran out of memory: CUDA out of memory",),
        "Lower resources.max_tokens_per_micro_batch, set resources.gradient_checkpointing, or train"
        " with LoRA",
    ),
    Mistake(
        "a full disk",
        1,
        ("config.yaml cannot be written: No space left on device",),
        "Free some space there; the same command continues behind what is finished",
    ),
    Mistake(
        "a disk that gets full in a training",
        1,
        ("The training cannot write", "no space is left"),
        "Free some there; the same command continues from the last checkpoint",
    ),
    Mistake(
        "a package of an extra that is missing",
        1,
        ("lora.quantize is set (QLoRA), which needs", "the package bitsandbytes"),
        "pip install 'sirt-ray[qlora]'",
    ),
    Mistake(
        "vLLM is not installed",
        1,
        ("vLLM is not installed, and no model can answer without it",),
        "pip install 'sirt-ray[cpu]', or 'sirt-ray[gpu]' where there is a GPU",
    ),
    Mistake(
        "an endpoint's key that is not set",
        2,
        ("teacher.endpoint.api_key_env: the environment variable MY_KEY is not set",),
        "Set it there before Ray is started, name another variable",
    ),
    Mistake(
        "an endpoint that refuses the key",
        1,
        ("refuses all requests, HTTP 401",),
        "Check the key in TEACHER_KEY under teacher.endpoint; then the same command resumes",
    ),
    Mistake(
        "an endpoint that does not support a field",
        1,
        ("has answered none of the last 3 requests", "HTTP 400", "Unsupported parameter"),
        "write under teacher.endpoint `extra_body: {max_tokens: null, max_completion_tokens: 20}`",
    ),
)
CLUSTERS = (
    Mistake(
        "a port that is taken",
        1,
        ("is taken: another program listens there",),
        "Stop it, or choose another port with --port",
    ),
    Mistake(
        "a temporary folder with a long name",
        1,
        ("Ray cannot be started on this machine: the names of its sockets would be too long",),
        "Set RAY_TMPDIR to a folder with a short name, such as /tmp",
    ),
    Mistake(
        "a temporary folder with an umlaut",
        1,
        ("it keeps its files in /tmp/für (TMPDIR)", "only use a path of ASCII characters"),
        "Set RAY_TMPDIR to another folder, such as /tmp",
    ),
    Mistake(
        "a machine without a loopback interface",
        1,
        ("its processes reach each other at 127.0.0.1", "Network is unreachable"),
        "Bring the loopback interface up (`ip link set lo up` as root)",
    ),
    Mistake(
        "no cluster at the address",
        1,
        ("cannot reach the cluster at 127.0.0.1:1", "Connection refused"),
        "Give --address the head node and its port, as in HEAD:6379",
    ),
    Mistake(
        "the dashboard's address for `sirt run`",
        1,
        ("is the address of a cluster's dashboard",),
        "Hand the job to the cluster with `sirt submit`, or give the head node's own address",
    ),
    Mistake(
        "a cluster that is too small",
        1,
        ("no node of the cluster can hold the student engine: it needs 1 CPU, 1 GPU on one node",),
        "Lower resources.student, or add a node",
        "cluster",
    ),
    Mistake(
        "a cluster with another version of Ray",
        1,
        ("runs another Ray or Python, and this process cannot join it", "Ray: 2.1.0"),
        "Use the same versions on both sides: the cluster's image needs ray==",
        "cluster",
    ),
)
CHAPTERS = {
    "The job file": JOB_FILE,
    "Models and tokenizers": MODELS,
    "While a job runs": RUNNING,
    "Ports and clusters": CLUSTERS,
}
MISTAKES = [mistake for chapter in CHAPTERS.values() for mistake in chapter]


def check(mistake: Mistake, code: int, stderr: str) -> None:
    """Assert that the command ended as the list has it; `stderr` is all of its standard error."""
    message = " ".join(stderr.split())
    assert code == mistake.exit_code, stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in message, stderr
    for piece in (*mistake.says, mistake.cure):
        assert piece in message, f"{piece!r} is not in {stderr!r}"
