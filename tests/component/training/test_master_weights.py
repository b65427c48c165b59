"""Small updates and long sums survive in bfloat16."""

from pathlib import Path

import psutil
import torch
from torch.nn import Parameter

from sirt_ray.training.engine import MasterWeights
from sirt_ray.training.metrics import peak_memory_gib
from sirt_ray.training.shards import Shard, StoredShards, shard_of, write


def coarse(value: float) -> Parameter:
    return Parameter(torch.full((4,), value, dtype=torch.bfloat16))


def test_updates_below_the_rounding_add_up() -> None:
    parameter = coarse(1.0)
    masters = MasterWeights([parameter])
    optimizer = torch.optim.SGD(masters.stepped, lr=1e-3)
    for _ in range(100):
        parameter.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        masters.write_back()
    assert parameter.dtype == torch.bfloat16
    torch.testing.assert_close(parameter.float(), torch.full((4,), 0.9), rtol=2**-8, atol=0)


def test_gradients_are_added_up_in_float32() -> None:
    parameter = coarse(1.0)
    (master,) = MasterWeights([parameter]).stepped
    for _ in range(300):  # From 256 on, bfloat16 does not see a 1 more.
        parameter.sum().backward()
    assert parameter.grad is None
    assert master.grad is not None and master.grad.tolist() == [300.0] * 4


def test_float32_parameters_are_stepped_themselves() -> None:
    parameter = Parameter(torch.ones(4))
    assert MasterWeights([parameter]).stepped[0] is parameter


def test_saved_copies_come_back_whole(tmp_path: Path) -> None:
    parameter, other = coarse(1.0), coarse(0.0)
    masters, loaded = MasterWeights([parameter]), MasterWeights([other])
    with torch.no_grad():
        masters.stepped[0].fill_(1.0009765625)
    write([shard(masters)], tmp_path, rank=0, world_size=1)
    with StoredShards(tmp_path) as stored:
        stored.open()
        stored.read_into([shard(loaded)])
    loaded.write_back()
    assert loaded.stepped[0].tolist() == [1.0009765625] * 4
    assert other.tolist() == [1.0] * 4


def shard(masters: MasterWeights) -> Shard:
    return shard_of(torch.optim.AdamW(masters.stepped), masters.stepped[0], "weight")


def test_peak_memory_is_no_less_than_what_is_held_now() -> None:
    held = psutil.Process().memory_info().rss / 2**30
    peak = peak_memory_gib(torch.device("cpu"))
    assert held <= peak * 1.01 and peak < psutil.virtual_memory().total / 2**30
