"""What is added to vLLM's own worker process (`worker_extension_cls`): taking new weights whole.

collective_rpc("load_weights_from", args=(folder,))
"""

from typing import Any

EXTENSION = f"{__name__}.WeightLoader"


class WeightLoader:
    """Mixed into vLLM's worker class, which gives it `reload_weights` and `get_model`."""

    def load_weights_from(self, folder: str) -> None:
        """Replace all weights by those in `folder`, also where they were repacked at the start."""
        worker: Any = self
        worker.reload_weights(weights_path=folder)
        _repack_output_heads(worker.get_model())


def _repack_output_heads(model: Any) -> None:
    """On CPU a linear layer multiplies by a repacked copy of its weight, made when the layer is
    loaded. An output head that is tied to the input embedding has no weight of its own in the
    checkpoint, so vLLM's reload skips it (0.29, model_executor/model_loader/reload/layerwise.py)
    and it would go on with a copy of the old weights. To be removed once the reload covers it."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
    )
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            method: Any = layer.quant_method
            if isinstance(method, UnquantizedEmbeddingMethod):
                method.process_weights_after_loading(layer)
