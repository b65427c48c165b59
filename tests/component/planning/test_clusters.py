"""Clusters by hand and from Ray's nodes, and the kinds of GPUs."""

from typing import Any

import pytest

from sirt_ray.errors import ConfigError
from sirt_ray.on_ray import cluster as live_cluster
from sirt_ray.planning import gpus
from sirt_ray.planning.clusters import described
from sirt_ray.planning.gpus import Device


@pytest.mark.parametrize(
    ("text", "nodes", "each", "memory", "like"),
    [
        ("4x48GB", 1, 4, 48, "RTX A6000"),
        ("8x80GB", 1, 8, 80, "A100 80GB"),
        ("2x8x80GB", 2, 8, 80, "A100 80GB"),
        ("1x24gb", 1, 1, 24, "L4"),
        ("8xH100", 1, 8, 80, "H100"),
        ("2x4xl40s", 2, 4, 48, "L40S"),
        ("8xA100-80GB", 1, 8, 80, "A100 80GB"),
        ("8xA100", 1, 8, 40, "A100"),
        ("1xrtx4090", 1, 1, 24, "RTX 4090"),
    ],
)
def test_nodes_gpus_and_memory(text: str, nodes: int, each: int, memory: int, like: str) -> None:
    cluster = described(text)
    assert [node.gpus for node in cluster.nodes] == [each] * nodes
    assert cluster.gpu is not None and cluster.gpu.memory_gb == memory
    known = gpus.by_name(like)
    assert known is not None and cluster.gpu.bandwidth == known.bandwidth
    assert cluster.gpu.peak_flops == known.peak_flops
    assert any(like in text for text in cluster.assumed) == text.lower().endswith(f"x{memory}gb")


def test_a_size_that_no_gpu_has_gives_no_times() -> None:
    cluster = described("3x30GB")
    assert cluster.gpu is not None and cluster.gpu.peak_flops == 0
    assert "times cannot be estimated" in cluster.assumed[0]


def test_a_cluster_without_gpus() -> None:
    cluster = described("2x16CPU")
    assert cluster.gpus == 0 and cluster.gpu is None
    assert cluster.resources == {"CPU": 32}
    assert described("8cpu").resources == {"CPU": 8}


@pytest.mark.parametrize(
    "text", ["", "x", "4x", "48GB", "0x48GB", "4x0GB", "4x4x4x48GB", "4x48TB", "2x2x2CPU", "4x-1GB"]
)
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--cluster"):
        described(text)


def test_a_kind_that_is_not_known_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"'TPU'.*H100.*8x80GB"):
        described("4xTPU")


def node(gpus: int, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    resources = {"CPU": 16.0, **({"GPU": float(gpus)} if gpus else {}), **resources}
    return {"Resources": resources, "Labels": labels or {}, "Alive": True, "NodeID": "n"}


def test_rays_nodes_have_the_gpus_that_nvidia_smi_lists() -> None:
    there = [Device("NVIDIA L40S", "580.82.07", 46068, 45000)] * 4
    cluster = live_cluster.from_nodes("auto", [node(0), node(4)], [[], there])
    assert [n.gpus for n in cluster.nodes] == [0, 4] and cluster.assumed == []
    assert cluster.gpu is not None and cluster.gpu.memory_gb == 48.3
    assert cluster.gpu.bandwidth == 864e9


def test_a_node_that_does_not_answer_has_the_gpus_of_its_label() -> None:
    labelled = node(8, {"ray.io/accelerator-type": "H100"})
    named = node(8, None, **{"accelerator_type:A100-80G": 1.0})
    cluster = live_cluster.from_nodes("auto", [labelled, named], [[], []])
    assert [n.gpu and n.gpu.name for n in cluster.nodes] == ["H100", "A100 80GB"]
    assert len(cluster.assumed) == 2
    unknown = live_cluster.from_nodes("auto", [node(2)], [[]])
    assert unknown.gpu is None and "not known" in unknown.assumed[0]
