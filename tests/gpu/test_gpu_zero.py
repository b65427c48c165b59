"""DeepSpeed's ZeRO stages on one GPU train what plain torch trains there."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sirt_ray.config.resources import TrainerResources
from sirt_ray.config.training import TuneConfig
from sirt_ray.training.run import run
from sirt_ray.training.tasks import Source, TuneTask
from sirt_ray.training.workdir import read_lines
from tests.helpers.gpu_trainings import KINDS

pytest.importorskip("deepspeed")

NEAR = {"float32": 1e-4, "bfloat16": 2e-2}
LAYOUTS = (
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (3, "none"),
    (1, "optimizer"),
    (2, "optimizer"),
    (3, "parameters"),
)


@pytest.fixture(scope="module")
def plain(
    assets: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return losses and gradient norms of plain torch, for each kind and dtype."""
    folder = tmp_path_factory.mktemp("plain")
    kinds = [kind for kind in KINDS if kind != "qlora" or find_spec("bitsandbytes") is not None]
    trainings = [("full", "float32"), *((kind, "bfloat16") for kind in kinds)]
    return {
        (kind, dtype): losses(assets, folder / kind / dtype, kind, dtype)
        for kind, dtype in trainings
    }


@pytest.fixture(scope="module")
def group(plain: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process as the only worker of a process group, named as Ray Train names it. One for all
    tests: DeepSpeed keeps the groups that it has made of its first."""
    file = tmp_path_factory.mktemp("group") / "file"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(name, value)
        torch.distributed.init_process_group(
            "nccl", init_method=f"file://{file}", rank=0, world_size=1
        )
        yield
        torch.distributed.destroy_process_group()


def losses(
    assets: Path, out: Path, kind: str, dtype: str, **resources: Any
) -> list[tuple[float, float]]:
    config = TuneConfig.model_validate(
        {"dtype": dtype, "batch_size": 8, "epochs": 3, "select_by": "last", **KINDS[kind]}
    )
    trainer = TrainerResources.model_validate({"max_tokens_per_micro_batch": 1000, **resources})
    source = Source(str(assets / "base"))
    run(TuneTask(out, source, assets / "demonstrations", config, trainer, 0), torch.device("cuda"))
    return [(line["loss"], line["grad_norm"]) for line in read_lines(out / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("kind", "dtype", "stage", "offload"),
    [("full", dtype, *layout) for dtype in NEAR for layout in LAYOUTS]
    + [("lora", "bfloat16", stage, "none") for stage in (1, 2, 3)]
    + [("qlora", "bfloat16", stage, "none") for stage in (1, 2)],
)
def test_every_layout_trains_the_same(
    assets: Path,
    tmp_path: Path,
    plain: Any,
    group: None,
    kind: str,
    dtype: str,
    stage: int,
    offload: str,
) -> None:
    if (kind, dtype) not in plain:
        pytest.skip("the extra qlora is not installed")
    expected = plain[kind, dtype]
    found = losses(assets, tmp_path / "out", kind, dtype, zero_stage=stage, offload=offload)
    apart = max(abs(one[0] - two[0]) for one, two in zip(found, expected, strict=True))
    print(f"{kind} {dtype} ZeRO {stage}, offload {offload}: losses differ by {apart:.1e} at most")
    assert apart < NEAR[dtype]
    assert found[0][1] == pytest.approx(expected[0][1], rel=NEAR[dtype])
