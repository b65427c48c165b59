"""The tables of a plan, for a terminal: artifacts, placement, hours."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sirt_ray.artifacts.store import ArtifactStatus
from sirt_ray.planning import memory, placement, speed
from sirt_ray.planning.clusters import Cluster
from sirt_ray.planning.gpus import GB
from sirt_ray.planning.placement import Part, Placement, Setup
from sirt_ray.planning.speed import TimeEstimate

_ON_GPUS = (
    f"vLLM uses {memory.VLLM_SHARE:.0%} of a GPU; a process has {memory.CONTEXT / GB:g} GB for"
    " CUDA, NCCL and fragmentation (in `other`, with DeepSpeed's buffers)",
)
_STATES = {
    "finished": "[green]finished[/]",
    "partial": "[yellow]begun, will be continued[/]",
    "missing": "to build",
    "stale": "[red]made with other settings[/]",
}
_COLUMNS = ("weights", "grads", "optim.", "acts", "KV", "other", "total", "of")


def plan_table(statuses: Sequence[ArtifactStatus]) -> Table:
    """Return what a run would build, in order, and the state of each artifact."""
    table = Table(title="Artifacts of this job")
    for column in ("artifact", "state", "because"):
        table.add_column(column)
    for status in statuses:
        table.add_row(status.name, _STATES[status.state], "\n".join(status.changed))
    return table


def show(console: Console, setup: Setup, placed: Placement) -> None:
    """Print the memory and nodes of each part, and which parts run at the same time."""
    taught = f"{setup.teacher} teaches {setup.student}" if setup.teacher else setup.student
    table = _table(f"\n{taught}, on {placed.cluster.name}: GB of one GPU")
    if not placed.cluster.gpus:
        table.title = f"\n{taught}, on {placed.cluster.name}: GB of one process"
    table.add_column("part")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for part in placed.parts.values():
        table.add_row(*_row(part))
    console.print(table)
    for part in placed.parts.values():
        _print(console, _where(setup, part))
    if len(placed.parts) == len(setup.roles):
        _print(console, _turns(setup, placed))
    for name in placement.unknown(setup):
        _print(
            console,
            f"{name}: its size is unknown: give the model as a folder. Its memory and time are not"
            " estimated",
        )


def show_time(
    console: Console, cluster: Cluster, estimates: Sequence[TimeEstimate], at_once: int
) -> None:
    """Print what is still to be made, by kind; totals; and all assumptions. `at_once`: jobs that
    fit at the same time."""
    if not estimates:
        return
    table = _table("\nTime for what is still to be made, each artifact once, one after the other")
    table.add_column("artifact")
    for column in ("to make", "million\ntokens", "hours", "GPU-hours"):
        table.add_column(column, justify="right")
    table.add_column("by")
    for one in estimates:
        table.add_row(one.kind, *_figures(one, cluster), _by(one))
    total = TimeEstimate("all of it")
    for one in estimates:
        total = total.plus(one)
    table.add_section()
    table.add_row(total.kind, *_figures(total, cluster), "")
    console.print(table)
    if cluster.gpus and total.seconds:
        whole = total.seconds * cluster.gpus / 3600
        _print(console, f"The whole cluster for that long: {whole:,.1f} GPU-hours")
    if at_once > 1:
        _print(
            console, f"{at_once} trials fit at once: at best it ends in 1 / {at_once} of the time"
        )
    if not cluster.gpus:
        _print(console, "There is no GPU: no GPU-hours, and hours only by what is finished here")
    _print(console, "Assumed, not measured:", style="dim")
    for text in (
        *cluster.assumed,
        *(speed.ASSUMED if cluster.gpus else ()),
        *(_ON_GPUS if cluster.gpus else ()),
        "not counted: starting engines, loading weights, validation while training; rows that are"
        " left out. `planning/memory.py` and `planning/speed.py` have the formulas",
    ):
        _print(console, f"  {text}", style="dim")


def _row(part: Part) -> list[str]:
    held = part.memory
    name = f"{part.role} x {part.count}"
    if held is None:
        return [name, *["?"] * (len(_COLUMNS) - 1), _of(part)]
    shown = (
        held.weights,
        held.gradients,
        held.optimizer,
        held.activations,
        held.kv_cache,
        held.other,
    )
    total = f"{held.total / GB:.1f}"
    if part.capacity is not None and held.total > part.capacity:
        total = f"[red]{total}[/]"
    return [name, *(f"{b / GB:.1f}" if b else "" for b in shown), total, _of(part)]


def _of(part: Part) -> str:
    return "" if part.capacity is None else f"{part.capacity / GB:g}"


def _where(setup: Setup, part: Part) -> str:
    nodes = ", ".join(
        f"{n} {'GPU' if part.gpus else 'process'}{'' if n == 1 else 's' if part.gpus else 'es'} of"
        f" node {number + 1}"
        for number, n in sorted(part.per_node.items())
    )
    shards = int(part.gpus) if part.role != "trainer" and part.gpus > 1 else 1
    each = f", each cut in {shards}" if shards > 1 else ""
    fewer = f" (of {part.wanted} that it may be)" if part.count < part.wanted else ""
    text = f"{part.role}: {nodes}{each}{fewer}"
    if part.kv_tokens is not None and part.kv_tokens > 0:
        text += f"; the KV cache of a replica holds {part.kv_tokens:,.0f} tokens"
    if part.memory is not None and part.memory.host:
        text += f"; {part.memory.host / GB:.1f} GB of each worker in the machine's memory"
    if part.spread:
        text += "; a replica's shards are on several nodes, and the network between them is slow"
    return text


def _turns(setup: Setup, placed: Placement) -> str:
    """Return which parts run at the same time."""
    turns: list[str] = []
    if "teacher" in placed.parts:
        turns.append(
            "the student's engine starts while the teacher's runs"
            if placed.prestarts
            else "only the teacher's engine runs first"
        )
        turns.append("the teacher's stops before the student samples")
    if "trainer" in placed.parts:
        if placed.colocates:
            turns.append("the student's engine stays while the trainer runs")
        elif setup.resources.student.min_replicas == 0:
            turns.append("the student's engine stops before every training (min_replicas 0)")
        else:
            turns.append("the student's engine stops before every training: both do not fit")
    return f"In turns: {'; '.join(turns)}"


def _figures(one: TimeEstimate, cluster: Cluster) -> list[str]:
    return [
        f"{one.artifacts:,}",
        f"{one.tokens / 1e6:,.1f}",
        _hours(one.seconds),
        _hours(one.gpu_seconds) if cluster.gpus else "",
    ]


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    hours = seconds / 3600
    return f"{hours:,.1f}" if hours >= 0.05 or not hours else "<0.1"


def _by(one: TimeEstimate) -> str:
    if one.seconds is None:
        return "not known"
    if not one.measured:
        return "estimate"
    return "measured here" if one.measured == one.artifacts else "partly measured here"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)
