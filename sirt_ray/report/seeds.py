"""The same job under several seeds as one Markdown table.

    python -m sirt_ray.report.seeds runs/quickstart-seed0 runs/quickstart-seed1 ...

Each cell is the mean accuracy over the runs, in percent, ± its standard error over the runs (the
sample standard deviation divided by the root of their number). The test questions are the same in
every run, so their own sampling error is not in it; `scores.json` has that one.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sirt_ray.core.scoring import scores_from
from sirt_ray.errors import DataError
from sirt_ray.types import PromptKind, Scores

Column = tuple[str, PromptKind]


def read_scores(run_dir: Path) -> dict[str, Scores]:
    """Stage -> scores, from a run's `scores.json`."""
    path = run_dir / "scores.json"
    try:
        stored: Mapping[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}. Is {run_dir} a run's folder?") from error
    return {stage: scores_from(found) for stage, found in stored.items()}


def seeds_table(runs: Sequence[Mapping[str, Scores]]) -> str:
    """Markdown: stages down, benchmarks and prompts across, and the gain of the last round."""
    first = runs[0]
    stages = [stage for stage in first if all(stage in run for run in runs)]
    columns: list[Column] = [
        (benchmark, kind) for benchmark, kinds in first[stages[-1]].items() for kind in kinds
    ]
    lines = [
        "| stage | " + " | ".join(f"{benchmark}, {kind}" for benchmark, kind in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for stage in stages:
        cells = [
            _cell([run[stage][benchmark][kind].accuracy for run in runs])
            for benchmark, kind in columns
        ]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    if "round_00" in stages and stages[-1] != "round_00":
        gains = [
            _cell(
                [
                    run[stages[-1]][benchmark][kind].accuracy
                    - run["round_00"][benchmark][kind].accuracy
                    for run in runs
                ],
                sign="+",
            )
            for benchmark, kind in columns
        ]
        lines.append(f"| {stages[-1]} - round_00 | " + " | ".join(gains) + " |")
    return "\n".join(lines)


def _cell(accuracies: Sequence[float], sign: str = "") -> str:
    mean = 100 * statistics.fmean(accuracies)
    if len(accuracies) == 1:
        return f"{mean:{sign}.1f}"
    stderr = 100 * statistics.stdev(accuracies) / len(accuracies) ** 0.5
    return f"{mean:{sign}.1f} ± {stderr:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Several runs of one job as one table.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    runs = [read_scores(run_dir) for run_dir in parser.parse_args().runs]
    Console(soft_wrap=True).print(seeds_table(runs), markup=False, highlight=False)


if __name__ == "__main__":
    main()
