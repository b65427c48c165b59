"""What a cluster of `cluster/` must be beyond its schema: closed to strangers, and fit for jobs.

Each function returns what is wrong, in words; nothing where all is well.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sirt_ray.config.job import JobConfig
from sirt_ray.planning import resources as needs
from tests.helpers.paths import ROOT

Document = dict[str, Any]
PART_OF = {"app.kubernetes.io/part-of": "sirt-ray"}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The security context that Kubernetes' pod security standard `restricted` asks of a container."""
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
_PINNED = re.compile(r"^[a-z0-9][\w./-]*/[\w./-]+:\d+\.\d+\.\d+[\w.-]*$", re.IGNORECASE)


def pyproject() -> Document:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def ray_version() -> str:
    return next(
        needed.split("==")[1]
        for needed in pyproject()["project"]["dependencies"]
        if needed.startswith("ray[")
    )


def cluster_of(manifest: Document) -> Document:
    """The RayCluster in a RayCluster, a RayJob or a RayService."""
    field = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    name = field[manifest["kind"]]
    return manifest["spec"] if name is None else manifest["spec"][name]


def pods(cluster: Document) -> Iterator[tuple[str, Document]]:
    """Each group's name and the template of its pods."""
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", ()):
        yield group["groupName"], group["template"]


def unsafe(manifest: Document) -> list[str]:
    """Where the manifest's cluster is open, privileged or not pinned."""
    cluster = cluster_of(manifest)
    head = cluster["headGroupSpec"]
    auth = cluster.get("authOptions", {})
    autoscaler = cluster.get("autoscalerOptions", {})
    checks = {
        "no token is asked for": auth.get("mode") == "token" and bool(auth.get("secretName")),
        f"rayVersion is not {ray_version()}": cluster.get("rayVersion") == ray_version(),
        "the head takes work": head["rayStartParams"].get("num-cpus") == "0",
        "the head's service is open": head.get("serviceType") == "ClusterIP",
        "there is an ingress": not head.get("enableIngress"),
        "autoscaler v2 is off": cluster.get("enableInTreeAutoscaling") is True
        and autoscaler.get("version") == "v2",
        "the autoscaler is privileged": autoscaler.get("securityContext") == RESTRICTED,
    }
    found = [problem for problem, well in checks.items() if not well]
    for group, template in pods(cluster):
        found += [f"{group}: {problem}" for problem in _unsafe_pod(template, group == "head")]
    return found


def _unsafe_pod(template: Document, head: bool) -> list[str]:
    spec = template["spec"]
    security = spec.get("securityContext", {})
    shared = ("hostNetwork", "hostPID", "hostIPC")
    labels = template.get("metadata", {}).get("labels", {})
    memory = {v["name"] for v in spec.get("volumes", ()) if _in_memory(v)}
    checks = {
        "runs as root": security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0,
        "has any system call": security.get("seccompProfile") == {"type": "RuntimeDefault"},
        "shares the node": not any(spec.get(name) for name in shared),
        "is under no network policy": PART_OF.items() <= labels.items(),
        "may ask Kubernetes": head or spec.get("automountServiceAccountToken") is False,
        "has an account of no name": bool(spec.get("serviceAccountName")),
    }
    found = [problem for problem, well in checks.items() if not well]
    for container in spec["containers"] + spec.get("initContainers", []):
        found += [f"{container['name']}: {p}" for p in _unsafe_container(container)]
        mounted = {m["name"] for m in container.get("volumeMounts", ()) if _is_shm(m)}
        if not mounted & memory:
            found.append(f"{container['name']}: /dev/shm is 64 MiB")
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        tolerated = {taint["key"] for taint in spec.get("tolerations", ())}
        if gpus and "nvidia.com/gpu" not in tolerated:
            found.append(f"{container['name']}: no node with a GPU takes it")
    return found


def _in_memory(volume: Document) -> bool:
    return volume.get("emptyDir", {}).get("medium") == "Memory"


def _is_shm(mount: Document) -> bool:
    return mount["mountPath"] == "/dev/shm"


def _unsafe_container(container: Document) -> list[str]:
    resources = container.get("resources", {})
    literal = [e["name"] for e in container.get("env", ()) if "value" in e]
    checks = {
        "is privileged": container.get("securityContext") == RESTRICTED,
        "has an image that may change": bool(_PINNED.match(container["image"])),
        "has no limits": {"cpu", "memory"} <= resources.get("limits", {}).keys(),
        "asks for other than its limits": resources.get("requests") == resources.get("limits"),
        "has a secret in it": not any(_SECRET.search(name) for name in literal),
    }
    return [problem for problem, well in checks.items() if not well]


def misfits(job: JobConfig, node_types: Mapping[str, Document]) -> list[str]:
    """Parts of a job that the nodes have no place for, with all the replicas that it allows.

    `node_types`: as Ray's autoscaler has them: `resources`, `labels`, `max_workers`.
    """
    parts: list[needs.ResourceRequest] = [needs.of_trainer(job.resources.trainer, 0)]
    for role, engine in (("teacher", job.resources.teacher), ("student", job.resources.student)):
        group = needs.bundles(engine, needs.on_gpu(engine, 0)) * engine.max_replicas
        parts.append(needs.ResourceRequest(role, f"resources.{role}", group, engine.labels))
    return [
        f"{part.name} has no place"
        for part in parts
        if not any(_holds(one, part.bundles, part.labels) for one in node_types.values())
    ]


def _holds(
    node_type: Document, group: Sequence[Mapping[str, float]], labels: Mapping[str, str]
) -> bool:
    """Whether nodes of this type, as many as there may be, hold the bundles, which are equal."""
    if not labels.items() <= node_type.get("labels", {}).items():
        return False
    has, bundle = node_type["resources"], group[0]
    on_one = min(int(has.get(name, 0) // amount) for name, amount in bundle.items() if amount)
    return on_one * node_type["max_workers"] >= len(group)
