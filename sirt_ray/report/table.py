"""Scores and plans for a person to read in a terminal."""

from collections.abc import Collection, Mapping, Sequence

from rich.table import Table

from sirt_ray.artifacts.store import ArtifactStatus
from sirt_ray.types import PromptKind, Scores

PROMPTS: dict[PromptKind, str] = {"cot": "with the trigger", "plain": "without the trigger"}
_STATES = {
    "finished": "[green]finished[/]",
    "begun": "[yellow]begun, will be continued[/]",
    "missing": "to build",
    "untrue": "[red]made with other settings[/]",
}


_MOST_BENCHMARKS = 4
"""In one table: what fits in a terminal of 80 columns."""


def scores_tables(
    scores: Mapping[str, Scores],
    in_domain: Collection[str] | None,
    rolled_back: Collection[str] = (),
) -> list[Table]:
    """Tables for each kind of prompt: stages down, benchmarks across, percent right ± one standard
    error; in-domain benchmarks first. `in_domain` None: of a model that no run has trained."""
    named = dict.fromkeys(name for found in scores.values() for name in found)
    benchmarks = sorted(named, key=lambda name: name not in (in_domain or ()))
    return [
        _table(kind, scores, benchmarks[first : first + _MOST_BENCHMARKS], in_domain, rolled_back)
        for kind in PROMPTS
        if any(kind in kinds for found in scores.values() for kinds in found.values())
        for first in range(0, len(benchmarks), _MOST_BENCHMARKS)
    ]


def _table(
    kind: PromptKind,
    scores: Mapping[str, Scores],
    benchmarks: Sequence[str],
    in_domain: Collection[str] | None,
    rolled_back: Collection[str],
) -> Table:
    table = Table(
        title=f"{PROMPTS[kind].capitalize()}, % right ± standard error",
        title_justify="left",
    )
    table.add_column("stage", no_wrap=True)
    for name in benchmarks:
        # Names break at their underscores: a column is as wide as its figures.
        head = name.replace("_", "_\n")
        if in_domain is not None:
            head += f"\n[dim]{'in-domain' if name in in_domain else 'out-domain'}[/]"
        table.add_column(head, justify="right", vertical="bottom")
    for stage, found in scores.items():
        label = f"{stage}\n[dim](rolled back)[/]" if stage in rolled_back else stage
        table.add_row(label, *[_cell(found, name, kind) for name in benchmarks])
    return table


def _cell(found: Scores, benchmark: str, kind: PromptKind) -> str:
    score = found.get(benchmark, {}).get(kind)
    return "-" if score is None else f"{100 * score.accuracy:.1f} ± {100 * score.stderr:.1f}"


def plan_table(states: Sequence[ArtifactStatus]) -> Table:
    """What a run would build, in order, and what lies there already."""
    table = Table(title="Artifacts of this job")
    for column in ("artifact", "state", "because"):
        table.add_column(column)
    for state in states:
        table.add_row(state.name, _STATES[state.state], "\n".join(state.changed))
    return table
