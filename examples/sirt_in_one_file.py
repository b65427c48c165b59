"""Self-refine Instruction-tuning in one file, without Ray, vLLM or DeepSpeed.

    python examples/sirt_in_one_file.py

The method of Ranaldi and Freitas (EMNLP 2024) as a flat script on one CPU: `generate` of
transformers, a verifier of one regular expression, instruction tuning and one round of DPO, on the
package's word problems and its two models (413,568 parameters each; nothing is downloaded). It
prints the accuracy on held-out questions of

    baseline  the student as it was pretrained
    tuned     after instruction tuning on the teacher's right answers
    refined   after DPO on the student's own right and wrong answers

The package does the same at scale and with everything this file leaves out: several benchmarks, a
verifier that reads free text, packing, resume, replicas, rounds that are rolled back. Read
`sirt_ray/core/loop.py` next.
"""

import argparse
import random
import re

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from sirt_ray.quickstart import assets, tasks

NUM_TRAIN, NUM_DEMONSTRATIONS, NUM_TEST = 300, 30, 128
SAMPLES, PAIRS_PER_QUESTION = 8, 3
TEMPERATURE, MAX_NEW_TOKENS = 0.9, 96
BETA, NLL_WEIGHT = 0.1, 4.0
BATCH = 16

Example = tuple[list[int], list[int]]
"""Token ids of a prompt and of a completion, which ends with EOS."""


# --- questions, prompts, verifier ---------------------------------------------------------------


def questions(split, count):
    """Return `count` pairs (prompt, reference answer). A prompt ends with the zero-shot trigger."""
    problems = [tasks.problem("word_problems", split, number, seed=0) for number in range(count)]
    instruction, trigger = "Answer the math question with a number.", "Let's think step by step."
    return [(f"{instruction}\nQuestion: {p.text}\nAnswer: {trigger}", p.answer) for p in problems]


def is_right(text, reference):
    """Return whether the final answer of a completion, its last number, equals the reference."""
    numbers = re.findall(r"-?\d+", text)
    return bool(numbers) and numbers[-1] == reference


# --- models: sampling and log-probabilities -----------------------------------------------------


def load(name):
    """Load `teacher` or `student` from the package."""
    return AutoModelForCausalLM.from_pretrained(assets.resolve(f"quickstart:{name}"))


@torch.no_grad()
def generate(model, tokenizer, prompts, samples=0):
    """Return a greedy completion of each prompt, or `samples` drawn ones, as token ids with EOS."""
    options = {"do_sample": False}
    if samples:
        options = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0}
        options["num_return_sequences"] = samples
    completions = []
    for start in range(0, len(prompts), 128):
        batch = tokenizer(prompts[start : start + 128], return_tensors="pt", padding=True)
        out = model.generate(**batch, **options, max_new_tokens=MAX_NEW_TOKENS)
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            ended = tokenizer.eos_token_id in row
            completions.append(row[: row.index(tokenizer.eos_token_id) + 1] if ended else row)
    return completions


def logps(model, examples):
    """Return log-probabilities of E completions, in nats, and lengths in tokens; each [E]."""
    rows = [torch.tensor(prompt + completion) for prompt, completion in examples]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    positions = torch.arange(ids.shape[1])
    starts = torch.tensor([len(prompt) for prompt, _ in examples])[:, None]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    completion = ((positions >= starts) & (positions < ends))[:, 1:]
    scores = model(input_ids=ids, attention_mask=(positions < ends).long()).logits[:, :-1]
    tokens = scores.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (tokens * completion).sum(1), completion.sum(1)


def train(model, data, loss, epochs, learning_rate):
    """Train with AdamW, a cosine schedule and shuffled batches; return the model."""
    steps = epochs * -(-len(data) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        order = random.sample(data, len(data))
        for start in range(0, len(order), BATCH):
            loss(model, order[start : start + BATCH]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


# --- the two losses -----------------------------------------------------------------------------


def sft_loss(model, batch):
    """Return the mean negative log-likelihood of a completion token (section 2.1 of the paper)."""
    logp, lengths = logps(model, batch)
    return -logp.sum() / lengths.sum()


def dpo_loss(model, batch):
    """Return DPO's loss (Rafailov et al. 2023, equation 7) with the NLL of what is chosen.

    The NLL term is that of Iterative RPO (Pang et al. 2024, equation 2). A row of `batch` is
    (chosen, rejected, reference log-probabilities of both).
    """
    logp, lengths = logps(model, [row[side] for side in (0, 1) for row in batch])
    policy = logp.view(2, -1)
    reference = torch.stack([row[2] for row in batch], dim=1)
    chosen, rejected = policy - reference
    nll = -policy[0] / lengths.view(2, -1)[0]
    return (-F.logsigmoid(BETA * (chosen - rejected)) + NLL_WEIGHT * nll).mean()


# --- the method ---------------------------------------------------------------------------------


def accuracy(name, model, tokenizer, test):
    """Print and return the share of the test questions that the model answers right."""
    answers = tokenizer.batch_decode(generate(model, tokenizer, [q for q, _ in test]), True)
    right = sum(is_right(text, ref) for text, (_, ref) in zip(answers, test, strict=True))
    print(f"{name:9} {100 * right / len(test):5.1f} % right of {len(test)} questions", flush=True)
    return right / len(test)


def main(seed=0):
    """Run the method; return the accuracy of each stage."""
    logging.disable_progress_bar()
    random.seed(seed)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(
        assets.resolve("quickstart:student"), padding_side="left"
    )
    train_set, test = questions("train", NUM_TRAIN), questions("test", NUM_TEST)
    prompts = [prompt for prompt, _ in train_set]
    prompt_ids = tokenizer(prompts)["input_ids"]
    student, scores = load("student").eval(), {}
    scores["baseline"] = accuracy("baseline", student, tokenizer, test)

    # 1. The teacher writes demonstrations; only right ones are kept.
    written = generate(load("teacher").eval(), tokenizer, prompts)
    demonstrations: list[Example] = [
        (ids, completion)
        for ids, completion, (_, reference) in zip(prompt_ids, written, train_set, strict=True)
        if is_right(tokenizer.decode(completion, True), reference)
    ]
    print(f"{len(demonstrations)} right demonstrations, {NUM_DEMONSTRATIONS} are used")

    # 2. Instruction tuning.
    train(student, demonstrations[:NUM_DEMONSTRATIONS], sft_loss, epochs=12, learning_rate=2e-3)
    scores["tuned"] = accuracy("tuned", student, tokenizer, test)

    # 3. The student answers the training questions, several times each; a right answer is
    #    preferred to a wrong one to the same question.
    sampled = generate(student, tokenizer, prompts, SAMPLES)
    pairs = []
    for number, (_, reference) in enumerate(train_set):
        answers = {tuple(a) for a in sampled[number * SAMPLES : (number + 1) * SAMPLES]}
        sides: tuple[list, list] = ([], [])
        for answer in sorted(answers):
            if answer[-1] != tokenizer.eos_token_id:
                continue  # A completion that was cut off is neither chosen nor rejected.
            wrong = not is_right(tokenizer.decode(answer, True), reference)
            sides[wrong].append((prompt_ids[number], list(answer)))
        both = [(chosen, rejected) for chosen in sides[0] for rejected in sides[1]]
        pairs += random.sample(both, min(len(both), PAIRS_PER_QUESTION))
    print(f"{len(pairs)} pairs")

    # 4. DPO against the student that wrote the answers.
    with torch.no_grad():
        rows = [(*pair, logps(student, pair)[0]) for pair in pairs]
    train(student, rows, dpo_loss, epochs=2, learning_rate=6e-4)
    scores["refined"] = accuracy("refined", student, tokenizer, test)
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Self-refine Instruction-tuning in one file.")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args().seed)
