"""How the tests on a GPU train: fields of a training's settings, by name."""

from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 1e-3},
    "lora": {"learning_rate": 1e-2, "lora": {"rank": 8}},
    "qlora": {"learning_rate": 1e-2, "lora": {"rank": 8, "quantize": "nf4"}},
}
