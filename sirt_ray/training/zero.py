"""Where DeepSpeed's ZeRO optimizers keep each parameter's shard.

DeepSpeed has no public interface for it that neither gathers nor copies: `safe_get_full_*` gathers
the whole parameter, and its checkpoints are pickles of one sharding.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn import Parameter

from sirt_ray.training.shards import Shard, shard_of


def is_replicated(optimizer: Any) -> bool:
    """Return whether each worker has the whole state of the optimizer."""
    return isinstance(optimizer, torch.optim.Optimizer)


def zero_shards(optimizer: Any, trained: Mapping[str, Parameter]) -> list[Shard]:
    """Return this worker's shards of the trained parameters, in their order.

    `optimizer`: what `deepspeed.initialize` returns; of ZeRO 0 in float32 that is torch's own, and
    each worker has the whole state.
    """
    if is_replicated(optimizer):
        return [shard_of(optimizer, parameter, name) for name, parameter in trained.items()]
    find = _partitioned if hasattr(optimizer, "fp32_partitioned_groups_flat") else _linked
    return list(find(optimizer, trained))


def _linked(optimizer: Any, trained: Mapping[str, Parameter]) -> Iterator[Shard]:
    """Yield the shards of ZeRO 1 and 2, whose parameters are linked to a range of the flat
    partition of their group."""
    for name, parameter in trained.items():
        link: Any = getattr(parameter, "_hp_mapping")  # noqa: B009
        if link is not None:  # The parameter has a part on this worker.
            yield shard_of(
                optimizer.optimizer,
                optimizer.optimizer.param_groups[link.param_group_index]["params"][0],
                name,
                offset=link.hp_fragment_address.start,
                start=link.lp_fragment_address.start,
                length=link.lp_fragment_address.numel,
                total=parameter.numel(),
            )


def _partitioned(optimizer: Any, trained: Mapping[str, Parameter]) -> Iterator[Shard]:
    """Yield the shards of ZeRO 3, which cuts each parameter into equal parts, the last one padded,
    and joins a worker's parts in flat groups."""
    for name, parameter in trained.items():
        whole: Any = parameter
        group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = length * torch.distributed.get_rank(whole.ds_process_group)
        if start < whole.ds_numel:
            yield shard_of(
                optimizer.optimizer,
                optimizer.fp32_partitioned_groups_flat[group],
                name,
                offset=offset,
                start=start,
                length=min(length, whole.ds_numel - start),
                total=whole.ds_numel,
            )


def apply_master_weights(optimizer: Any) -> None:
    """Set the model's parameters on all workers to the float32 master weights."""
    if is_replicated(optimizer):
        return  # It steps the model's parameters themselves.
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer.update_lp_params()
        return
    # As DeepSpeed does after it has loaded a checkpoint of its own: some small parameters are kept
    # whole on each worker, and have to be gathered again.
    optimizer.checkpoint_event_prologue()
    for group, _ in enumerate(optimizer.fp32_partitioned_groups_flat):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    optimizer.checkpoint_event_epilogue()
