"""The state of an optimizer on a disk, in one format whatever the engine and the sharding.

Each worker writes one safetensors file with the shards that it holds. A shard is a range of one
flattened parameter: its master weights and Adam's moments, all float32. The file's header says,
under `shards`, which range of how many elements each is, so that a worker of any other layout finds
its own ranges: nothing is gathered to write them, and each worker reads only what it needs.

Nothing in a file is code: a checkpoint of another person is as safe as their weights.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from sirt_ray.errors import ArtifactError
from sirt_ray.storage.writing import sync

FORMAT = "sirt-ray optimizer shards, version 1"

_PATTERN = "optimizer-?????-of-?????.safetensors"

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of one parameter's optimizer state in the memory of this worker."""

    name: str
    """The parameter's name in the Hugging Face model."""
    start: int
    """The first element of the flattened parameter."""
    total: int
    """The number of elements of the whole parameter."""
    values: Mapping[str, Tensor]
    """`master`, `exp_avg` and `exp_avg_sq`: the optimizer's own memory, each of shape [elements of
    the shard]."""
    step: Tensor
    """The optimizer steps done: the optimizer's own scalar."""


def shard_of(
    optimizer: torch.optim.Optimizer,
    stepped: Tensor,
    name: str,
    *,
    offset: int = 0,
    start: int = 0,
    length: int | None = None,
    total: int | None = None,
) -> Shard:
    """Return the shard of a parameter in `stepped`, a tensor that the optimizer updates.

    It is `length` elements from `offset` of the flattened tensor, and those from `start` of the
    `total` elements of the parameter; all of both by default. Adam makes its state in its first
    step: here it is made before, as zeros, where a checkpoint is to be read into it.
    """
    state: dict[str, Any] = optimizer.state[stepped]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=stepped.device)
        for moment in _MOMENTS:
            state[moment] = torch.zeros_like(stepped, memory_format=torch.preserve_format)
    length = stepped.numel() if length is None else length
    memory = {"master": stepped.detach(), **{moment: state[moment] for moment in _MOMENTS}}
    views = {kind: tensor.view(-1).narrow(0, offset, length) for kind, tensor in memory.items()}
    return Shard(name, start, length if total is None else total, views, state["step"])


def write(shards: Sequence[Shard], folder: Path, rank: int, world_size: int) -> None:
    """Write this worker's file, durably."""
    from safetensors.torch import save_file

    ranges = {shard.name: [shard.start, shard.total] for shard in shards}
    header = {
        "format": FORMAT,
        "shards": json.dumps(ranges),
        "step": str(int(shards[0].step) if shards else 0),
    }
    tensors = {
        f"{shard.name}/{kind}": value.cpu()
        for shard in shards
        for kind, value in shard.values.items()
    }
    path = folder / f"optimizer-{rank + 1:05d}-of-{world_size:05d}.safetensors"
    save_file(tensors, path, metadata=header)
    sync(path)


class _Range(NamedTuple):
    """A range of a flattened parameter in an open file."""

    start: int
    stop: int
    file: Any


class StoredShards:
    """The files of all workers that wrote a checkpoint; a context manager that closes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened = ExitStack()
        self._ranges: dict[str, list[_Range]] = defaultdict(list)
        self._totals: dict[str, int] = {}
        self._step = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def open(self) -> None:
        """Open the files and read their headers.

        Raises ArtifactError if one is missing, shorter or longer than its header says, or of
        another format.
        """
        for path in self._paths():
            self._open(path)

    def check(self, shards: Iterable[Shard]) -> None:
        """Raise ArtifactError if an element of the shards is not stored."""
        for shard in shards:
            total = self._totals.get(shard.name)
            if total != shard.total:
                found = "nothing" if total is None else f"{total:,} elements"
                raise ArtifactError(
                    f"{self._folder} has {found} of the parameter {shard.name!r}, which has"
                    f" {shard.total:,} elements"
                )
            stored = self._overlapping(shard)
            if sum(stop - start for start, stop, _ in stored) != len(shard.values["master"]):
                raise ArtifactError(
                    f"{self._folder} has only a part of the parameter {shard.name!r}"
                )

    def read_into(self, shards: Iterable[Shard]) -> None:
        """Copy what is stored into the optimizer's memory."""
        for shard in shards:
            for start, stop, file in self._overlapping(shard):
                first = file.start
                for kind, memory in shard.values.items():
                    stored = file.file.get_slice(f"{shard.name}/{kind}")[
                        start - first : stop - first
                    ]
                    memory[start - shard.start : stop - shard.start].copy_(stored)
            shard.step.fill_(self._step)

    def _overlapping(self, shard: Shard) -> list[tuple[int, int, _Range]]:
        """Return the stored ranges that the shard needs, cut to it: `start`, `stop` and the file's
        whole range, in order."""
        end = shard.start + len(shard.values["master"])
        cut = [
            (max(shard.start, one.start), min(end, one.stop), one)
            for one in self._ranges[shard.name]
        ]
        return [one for one in cut if one[0] < one[1]]

    def _paths(self) -> list[Path]:
        found = sorted(self._folder.glob(_PATTERN))
        written = int(found[0].stem.rpartition("-")[2]) if found else 1
        if len(found) != written:
            raise ArtifactError(f"{self._folder} has {len(found)} of {written} optimizer files")
        return found

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file = self._opened.enter_context(safe_open(path, framework="pt"))
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ArtifactError(f"{path} is not of the format {FORMAT!r}")
            for name, (start, total) in json.loads(header["shards"]).items():
                self._step = float(header["step"])
                (length,) = file.get_slice(f"{name}/master").get_shape()
                self._ranges[name].append(_Range(start, start + length, file))
                self._totals[name] = total
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error
