"""Training against TRL: pairs and tokens per second, and memory, on the same work.

    python -m tests.bench.training [--units 120] [--repeats 3] [--trl-at-once 4] [--gpu]

Both sides train the same randomly initialised Llama (hidden 384, 8 layers, vocabulary 4096, in
float32) on the same ids in the same optimizer batches with as many threads, each measurement in a
process of its own. Start-up is left out: loading, tokenising. The reference's pass counts on both
sides. TRL: `SFTTrainer` with packing, `DPOTrainer` with `precompute_ref_log_probs`. Both have about
as many tokens in a micro-batch.

    dpo_grouped   8 completions of a question (4 right, 4 wrong), 10 pairs of them
    dpo_single    one pair a question
    sft           one completion a question

A ratio is the median over the repeats, and stands with the smallest and the largest.
"""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tests.bench import trainers, workload
from tests.bench.workload import Measured, Workload

T = TypeVar("T")

_WORKLOADS = {
    "dpo_grouped": Workload(completions=8, pairs=10),
    "dpo_single": Workload(completions=2, pairs=1),
    "sft": Workload(completions=1, pairs=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--units", type=int, default=120, help="pairs, or completions, a trainer")
    parser.add_argument(
        "--trl-at-once", type=int, help="pairs in a micro-batch of TRL's DPOTrainer"
    )
    parser.add_argument("--gpu", action="store_true", help="1.1 billion parameters in bfloat16")
    arguments = parser.parse_args()
    setting = workload.GPU if arguments.gpu else workload.CPU
    if arguments.trl_at_once is not None:
        setting = replace(setting, trl_at_once=arguments.trl_at_once)
    peak = _apart(workload.matmul_peak, setting)
    print(f"The machine's matmul peak: {peak / 1e9:,.0f} GFLOP/s in {setting.dtype}")
    results: dict[str, list[tuple[Measured, Measured]]] = {name: [] for name in _WORKLOADS}
    for _ in range(arguments.repeats):
        for name, work in _WORKLOADS.items():
            ours, theirs = (
                _apart(train, work, arguments.units, setting)
                for train in (trainers.ours, trainers.trl)
            )
            results[name].append((ours, theirs))
            for who, one in (("sirt-ray", ours), ("TRL", theirs)):
                print(
                    f"{name:12} {who:9} {one.units} units in {one.seconds:6.1f} s,"
                    f" {one.mib:6.0f} MiB above the loaded model;"
                    f" {one.flops / one.seconds / peak:.0%} of the matmul peak",
                    flush=True,
                )
    print(
        json.dumps(
            {
                "dpo_grouped_vs_trl": _ratio("dpo_grouped", results, _speed),
                "dpo_single_vs_trl": _ratio("dpo_single", results, _speed),
                "sft_vs_trl": _ratio("sft", results, _speed),
                "dpo_memory_vs_trl": _ratio("dpo_grouped", results, _memory),
            }
        )
    )


def _speed(ours: Measured, theirs: Measured) -> float:
    return theirs.seconds / ours.seconds


def _memory(ours: Measured, theirs: Measured) -> float:
    return ours.mib / theirs.mib


def _ratio(
    name: str,
    results: dict[str, list[tuple[Measured, Measured]]],
    of: Callable[[Measured, Measured], float],
) -> float:
    ratios = [of(*both) for both in results[name]]
    middle = statistics.median(ratios)
    print(f"{name} {of.__name__[1:]}: {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return round(middle, 3)


def _apart(function: Callable[..., T], *arguments: object) -> T:
    """In a process of its own, whose memory is then nobody else's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()
