"""Probe of what a model supports: packed rows, and a separate head.

Architectures differ in ways that no setting describes: a model may drop a keyword that it does not
know, change its logits after the head, or mix in layers that are not attention. A wrong assumption
would silently train on something else.
"""

import torch

from sirt_ray.core.encoding import TokenSequence, TrainingExample
from sirt_ray.training import attention
from sirt_ray.training.batching import Group, MicroBatch, grouped, micro_batch
from sirt_ray.training.forward import CompletionLogps, ModelCapabilities
from sirt_ray.training.model import Model

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Largest difference between log-probabilities of one token, computed in two ways."""


def probe(model: Model) -> ModelCapabilities:
    """Compare the model's own logits with its head's and with a packed row's, on a few tokens."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        padded, packed = (micro_batch(_groups(model), kind, device) for kind in (False, True))
        usual = _token_logps(model, padded, ModelCapabilities(packed=False, separate_head=False))
        separate_head = _agree(
            usual, model, padded, ModelCapabilities(packed=False, separate_head=True)
        )
        with attention.counted() as layers:
            same = _agree(
                usual, model, packed, ModelCapabilities(packed=True, separate_head=separate_head)
            )
        # Untrained weights hardly attend to other tokens, so the layers are counted, too.
        everywhere = layers[0] == model.config.get_text_config().num_hidden_layers
    return ModelCapabilities(packed=same and everywhere, separate_head=separate_head)


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


def _token_logps(model: Model, batch: MicroBatch, capabilities: ModelCapabilities) -> torch.Tensor:
    return CompletionLogps(model, capabilities).token_logps(batch)


def _agree(
    usual: torch.Tensor, model: Model, batch: MicroBatch, capabilities: ModelCapabilities
) -> bool:
    """Return whether the model runs with `capabilities` and gives the usual log-probabilities."""
    try:
        other = _token_logps(model, batch, capabilities)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    tolerance = _TOLERANCE[next(model.parameters()).dtype]
    return torch.allclose(usual, other, rtol=0, atol=tolerance)
