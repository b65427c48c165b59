"""Training against TRL: pairs and tokens per second, and memory, on the same work.

    python -m tests.bench.training [--units 120] [--repeats 3] [--trl-at-once 4] [--gpu]
        [--trl-weights float32] [--only dpo_grouped]

Both sides train the same randomly initialised Llama (hidden 384, 8 layers, vocabulary 4096, in
float32) on the same ids in the same optimizer batches with as many threads, each measurement in a
process of its own. Start-up is left out: loading, tokenising. The reference's pass counts on both
sides. TRL: `SFTTrainer` with packing, `DPOTrainer` with `precompute_ref_log_probs`. Both have about
as many tokens in a micro-batch. On a GPU (hidden 2048, 20 layers, vocabulary 32768) both compute in
bfloat16 and step weights in float32: ours are copies, TRL's the model's own, as it loads them.
`--trl-weights bfloat16` has it step weights in bfloat16, which loses small updates.

    dpo_grouped   8 completions of a question (4 right, 4 wrong), 10 pairs of them
    dpo_single    one pair a question
    sft           one completion a question

A ratio is the median over the repeats, and stands with the smallest and the largest.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace

from tests.bench import trainers, workload
from tests.bench.workload import Measured, Workload, apart

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
    parser.add_argument("--trl-weights", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", choices=tuple(_WORKLOADS), action="append")
    arguments = parser.parse_args()
    setting = workload.GPU if arguments.gpu else workload.CPU
    setting = replace(setting, trl_weights=arguments.trl_weights)
    if arguments.trl_at_once is not None:
        setting = replace(setting, trl_at_once=arguments.trl_at_once)
    peak = apart(workload.matmul_peak, setting)
    print(f"The machine's matmul peak: {peak / 1e9:,.0f} GFLOP/s in {setting.dtype}")
    chosen = {name: _WORKLOADS[name] for name in arguments.only or _WORKLOADS}
    results: dict[str, list[tuple[Measured, Measured]]] = {name: [] for name in chosen}
    for _ in range(arguments.repeats):
        for name, work in chosen.items():
            both: list[Measured] = []
            for who, train in (("sirt-ray", trainers.ours), ("TRL", trainers.trl)):
                one = _measured(who, train, work, arguments.units, setting)
                print(
                    f"{name:12} {who:9} {one.units} units in {one.seconds:6.1f} s,"
                    f" {one.mib:6.0f} MiB; {one.flops / one.seconds / peak:.0%} of the matmul peak",
                    flush=True,
                )
                both.append(one)
            results[name].append((both[0], both[1]))
    figures = {f"{name}_vs_trl": _ratio(name, results, _speed) for name in results}
    figures |= {f"{name}_memory_vs_trl": _ratio(name, results, _memory) for name in results}
    print(json.dumps(figures))


def _measured(who: str, train: Callable[..., Measured], *arguments: object) -> Measured:
    try:
        return apart(train, *arguments)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise SystemExit(
            f"{who} ran out of the GPU's memory: {error}\nLower --trl-at-once, or take a larger GPU"
        ) from error


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


if __name__ == "__main__":
    main()
