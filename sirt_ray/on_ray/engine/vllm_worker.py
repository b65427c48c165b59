"""Extension of vLLM's own worker process (`worker_extension_cls`): replacing all weights.

collective_rpc("load_weights_from", args=(folder,))
"""

from typing import Any

from sirt_ray.on_ray import _compat

EXTENSION = f"{__name__}.WeightLoader"


class WeightLoader:
    """Mixed into vLLM's worker class, which gives it `reload_weights` and `get_model`."""

    def load_weights_from(self, folder: str) -> None:
        """Replace all weights by those in `folder`, also where they were repacked at the start."""
        worker: Any = self
        worker.reload_weights(weights_path=folder)
        _compat.repack_output_heads(worker.get_model())
