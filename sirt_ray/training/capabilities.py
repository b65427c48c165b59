"""Probe of how a model is trained: with packed rows, and with a separate head, or as it is.

Architectures differ in ways that no setting describes: a model may drop a keyword that it does not
know, add sinks or a soft cap to its attention, change its logits after the head, or mix in layers
that are not attention. Trained by an attention that leaves these out, a student would be another
function than the one that the engine samples from. So each way is compared, on a few tokens, with
the model's own eager attention on one unpadded sequence after the other, and the first that agrees
is used:

    packed rows  ->  padded rows, the same attention  ->  padded rows, eager attention
"""

import logging
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from sirt_ray.core.encoding import TokenSequence, TrainingExample
from sirt_ray.errors import ModelError
from sirt_ray.logs import log_event
from sirt_ray.training import attention
from sirt_ray.training.attention import EAGER, PACKED
from sirt_ray.training.batching import Group, grouped, micro_batch
from sirt_ray.training.engine import Workers
from sirt_ray.training.forward import AttentionRecord, CompletionLogps, ModelCapabilities
from sirt_ray.training.model import Model

_TOLERANCE = 1e-4
"""Largest difference between log-probabilities of one token, computed in two ways, in nats, where
the model's own noise is below half of it."""
_NOISE_FACTOR = 2.0
_NOT_CAUSAL = 10.0
"""Multiple of the tolerance by which padded rows differ only if tokens see what follows them."""


def probe(model: Model) -> ModelCapabilities:
    """Return how to train the model, after setting the attention that it is trained with.

    All workers call it together and come to the same result. Raises ModelError if no way of
    computing a batch agrees with computing its sequences one by one.
    """
    attention.register()
    model.eval()
    with torch.no_grad():
        return _Probe(model).capabilities()


class _Probe:
    """The comparison of one model, on its device."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._workers = Workers(self._device)
        self._groups = _groups(model)
        with _attending(model, EAGER):
            self._exact = self._one_by_one()
            if not self._exact.isfinite().all():
                raise ModelError(
                    f"{_name(model)} cannot be trained: its log-probabilities are not finite, so"
                    " its weights hold inf or NaN, or numbers too large for its dtype. Look for the"
                    " training that made them, or download the model again"
                )
            self._tolerance = self._tolerance_of_noise()

    def capabilities(self) -> ModelCapabilities:
        """Choose the attention, and whether the head is called by itself."""
        packed, is_whole = self._packed_difference()
        is_packed = self._accepts(packed if is_whole else None)
        if is_packed:
            self._model.set_attn_implementation(PACKED)
        difference = packed if is_packed else self._padded_difference()
        assert difference is not None
        chosen = AttentionRecord(
            self._model.config._attn_implementation, difference, packed, self._tolerance
        )
        if not is_packed:
            _report(self._model, chosen)
        separate_head = self._accepts(self._difference(is_packed, separate_head=True))
        return ModelCapabilities(is_packed, separate_head, chosen)

    def _packed_difference(self) -> tuple[float | None, bool]:
        """Return the difference of packed rows, and whether each layer gets all that it asks for.

        Numbers alone do not show that: untrained weights hardly attend to other tokens, bfloat16
        hides a soft cap, and the probe is shorter than most windows.
        """
        if not self._model._supports_attention_backend:
            return None, False
        with _attending(self._model, PACKED), attention.counted() as calls:
            difference = self._difference(packed=True)
        return difference, calls == _expected_calls(self._model)

    def _padded_difference(self) -> float:
        """Return the difference of padded rows, after switching to eager attention if the current
        one leaves something out. Raises ModelError if that differs, too."""
        difference = self._difference(packed=False)
        if not self._accepts(difference):
            self._model.set_attn_implementation(EAGER)
            difference = self._difference(packed=False)
        if difference is None or difference > _NOT_CAUSAL * self._tolerance:
            raise ModelError(
                f"{_name(self._model)} cannot be trained: a batch of sequences gives other"
                f" log-probabilities than one sequence after the other ({_nats(difference)} a"
                " token), so its tokens see what comes after them, or another sequence. Choose a"
                " causal language model"
            )
        return difference

    def _accepts(self, difference: float | None) -> bool:
        """Return whether a difference is rounding, on every worker."""
        within = difference is not None and difference <= self._tolerance
        return self._workers.sum_over_workers([float(within)]) == [float(self._workers.world_size)]

    def _difference(self, packed: bool, separate_head: bool = False) -> float | None:
        """Return how far a micro-batch is from the sequences one by one; None if the model cannot
        compute it."""
        batch = micro_batch(self._groups, packed, self._device)
        computed = CompletionLogps(self._model, ModelCapabilities(packed, separate_head))
        try:
            return self._distance(computed.token_logps(batch))
        except (
            AttributeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            return None

    def _one_by_one(self) -> Tensor:
        """Return the log-probabilities of the completions' tokens, one sequence after the other."""
        found: list[Tensor] = []
        for group in self._groups:
            for completion in group.completions:
                ids = torch.tensor([[*group.prompt_ids, *completion]], device=self._device)
                logits = self._model(input_ids=ids, use_cache=False).logits[0, :-1]
                logps = torch.log_softmax(_at_least_float32(logits), -1)
                found.append(logps.gather(-1, ids[0, 1:, None])[len(group.prompt_ids) - 1 :, 0])
        return torch.cat(found)

    def _tolerance_of_noise(self) -> float:
        """Return the most by which another way of computing may differ: a multiple of the model's
        own noise, which one rounding of its embeddings shows."""
        draw = torch.Generator().manual_seed(0)

        def rounded_otherwise(_module: object, _args: object, out: Tensor) -> Tensor:
            signs = torch.randint(2, out.shape, generator=draw).to(out) * 2 - 1
            return out * (1 + signs * torch.finfo(out.dtype).eps)

        hook = self._model.get_input_embeddings().register_forward_hook(rounded_otherwise)
        try:
            noise = self._distance(self._one_by_one())
        finally:
            hook.remove()
        return max(_TOLERANCE, _NOISE_FACTOR * noise)

    def _distance(self, logps: Tensor) -> float:
        """Return the distance from the sequences one by one: the largest of a token, and in 16
        bits, where a single token may be far off, the mean."""
        apart = (logps - self._exact).abs()
        in_16_bits = self._model.get_input_embeddings().weight.element_size() < 4
        distance = float(apart.mean() if in_16_bits else apart.max())
        return distance if math.isfinite(distance) else math.inf


def _report(model: Model, chosen: AttentionRecord) -> None:
    log_event(
        logging.INFO,
        f"{_name(model)} is trained in padded rows with the attention {chosen.used!r}, which is"
        f" {_nats(chosen.difference)} a token away from its own eager attention. Packed rows do not"
        f" offer all that it asks for; they would be {_nats(chosen.packed_difference)} away, and up"
        f" to {_nats(chosen.tolerance)} is rounding",
    )


@contextmanager
def _attending(model: Model, name: str) -> Generator[None]:
    """Use an attention of `transformers` while the block runs."""
    before = model.config._attn_implementation
    set_attention: Callable[[str], None] = model.set_attn_implementation
    set_attention(name)
    try:
        yield
    finally:
        set_attention(before)


def _expected_calls(model: Model) -> attention.Calls | None:
    """Return the calls of a packed pass; None for an architecture with layers of another kind."""
    config = model.config.get_text_config()
    layers: int = config.num_hidden_layers
    kinds: list[str] | None = getattr(config, "layer_types", None)
    if kinds is None:
        windows = layers if getattr(config, "sliding_window", None) else 0
        return attention.Calls(layers, windows)
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        return None
    return attention.Calls(layers, kinds.count("sliding_attention"))


def _groups(model: Model) -> list[Group]:
    """Return groups of two prompts, with completions of several lengths."""
    size = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(size, (count,), generator=draw).tolist())

    examples = [
        TrainingExample("", tuple(TokenSequence(prompt, ids(n)) for n in lengths))
        for prompt, lengths in ((ids(7), (5, 9)), (ids(4), (3, 1)))
    ]
    return grouped(examples, range(len(examples)), max_tokens=10**6)


def _name(model: Model) -> str:
    return model.config.name_or_path or type(model).__name__


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.element_size() < 4 else logits


def _nats(difference: float | None) -> str:
    return "any number of nats" if difference is None else f"{difference:.1e} nats"
