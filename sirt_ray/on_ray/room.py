"""Who waits for room on the cluster, and who has it."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util import placement_group_table

from sirt_ray.planning.resources import Resources, describe


def room(wanted: Sequence[Resources]) -> str:
    """`it needs 2 x (1 CPU, 1 GPU); free now: 1 CPU; reserved: 1 GPU by sirt-mine-student`."""
    held = held_by(placement_group_table().values())
    reserved = "; ".join(f"{describe(amounts)} by {who}" for who, amounts in held.items())
    free = describe(ray.available_resources())
    return f"it needs {counted(wanted)}; free now: {free}" + f"; reserved: {reserved}" * bool(held)


def waits_for_room() -> bool:
    """Whether any placement group of the cluster has not got what it asks for."""
    return any(group["state"] == "PENDING" for group in placement_group_table().values())


def counted(bundles: Sequence[Resources]) -> str:
    """Equal bundles once, with their number."""
    numbers: dict[str, int] = {}
    for bundle in bundles:
        text = describe(bundle)
        numbers[text] = numbers.get(text, 0) + 1
    return " and ".join(text if n == 1 else f"{n} x ({text})" for text, n in numbers.items())


def held_by(groups: Any) -> Mapping[str, Resources]:
    """What placement groups (of Ray's table) have got: of Serve's by application, others together
    as `other groups`."""
    held: dict[str, dict[str, float]] = {}
    for group in groups:
        if group["state"] != "CREATED":
            continue
        amounts = held.setdefault(_owner(group["name"]), {})
        for bundle in group["bundles"].values():
            for name, amount in bundle.items():
                amounts[name] = amounts.get(name, 0.0) + amount
    return held


def _owner(name: str) -> str:
    """Serve names a replica's group `SERVE_REPLICA::<application>#<deployment>#<id>`."""
    prefix, _, replica = name.partition("::")
    return replica.split("#")[0] if prefix == "SERVE_REPLICA" and replica else "other groups"
