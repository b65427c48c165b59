"""The manifests for Kubernetes: KubeRay's schemas, who is kept out, and where jobs have places."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.config import load
from tests.helpers.cluster_rules import PART_OF, ROOT, cluster_of, misfits, pods, pyproject, unsafe
from tests.helpers.cluster_schemas import closed, kuberay_schema, open_objects, problems
from tests.helpers.kustomize import read, render

KUBERAY = ROOT / "cluster" / "kuberay"
OVERLAYS = {"RayCluster": "cluster", "RayJob": "job", "RayService": "service"}
JOB = ROOT / "jobs" / "cluster.yaml"

Document = dict[str, Any]
Change = Callable[[Document], object]


def manifest(kind: str) -> Document:
    """What `kubectl apply -k` sends, which is one object."""
    (found,) = render(KUBERAY / OVERLAYS[kind])
    assert found["kind"] == kind
    return found


@pytest.fixture(scope="module")
def schemas(assets: Path) -> Path:
    if not (assets / "schemas").is_dir():
        pytest.skip(f"{assets} has no folder `schemas` with KubeRay's")
    return assets / "schemas"


@pytest.fixture(params=OVERLAYS)
def each(request: pytest.FixtureRequest) -> Document:
    return manifest(request.param)


def changed(document: Document, change: Change) -> Document:
    change(document)
    return document


class TestKuberaysSchemas:
    def test_every_manifest_is_what_its_schema_says(self, each: Document, schemas: Path) -> None:
        assert problems(each, kuberay_schema(schemas, each["kind"])) == []

    def test_no_part_of_a_schema_lets_any_field_in(self, each: Document, schemas: Path) -> None:
        spec = kuberay_schema(schemas, each["kind"])["properties"]["spec"]
        assert list(open_objects(spec)) == []

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda d: d["spec"].update(backofLimit=4), "backofLimit"),
            (lambda d: d["spec"].update(backoffLimit="4"), "'4' is not of type 'integer'"),
            (lambda d: d["metadata"].update(name="Sirt_Run"), "does not match"),
            (lambda d: d["metadata"].update(annotation={}), "annotation"),
            (lambda d: d.update(kind="RayJobs"), "'RayJob' was expected"),
            (lambda d: d["spec"].update(submissionMode=["SidecarMode"]), "is not of type 'string'"),
            (lambda d: cluster_of(d)["authOptions"].update(mode="tokens"), "is not one of"),
            (lambda d: cluster_of(d)["workerGroupSpecs"][0].pop("groupName"), "groupName"),
            (lambda d: _pod(d).update(serviceAcount="x"), "serviceAcount"),
            (lambda d: _container(d).update(imagePullPolice="Always"), "imagePullPolice"),
            (lambda d: _container(d)["securityContext"].update(privilege=True), "privilege"),
            (lambda d: _container(d)["resources"]["limits"].update(cpu=[1]), "resources.limits"),
            (lambda d: _pod(d)["volumes"][0]["emptyDir"].update(size="4Gi"), "'size'"),
            (lambda d: _template(d)["metadata"].update(label={}), "'label'"),
        ],
    )
    def test_a_mistake_is_found(self, change: Change, said: str, schemas: Path) -> None:
        broken = changed(manifest("RayJob"), change)
        found = problems(broken, kuberay_schema(schemas, "RayJob"))
        assert len(found) == 1 and said in found[0]

    def test_what_a_schema_keeps_on_purpose_stays_open(self) -> None:
        schema = {
            "type": "object",
            "properties": {
                "free": {
                    "type": "object",
                    "properties": {"known": {"type": "string"}},
                    "x-kubernetes-preserve-unknown-fields": True,
                },
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }
        assert problems({"free": {"a": 1}, "map": {"b": "c"}}, closed(schema)) == []
        assert len(problems({"other": 1}, closed(schema))) == 1


def _template(document: Document) -> Document:
    return cluster_of(document)["workerGroupSpecs"][-1]["template"]


def _pod(document: Document) -> Document:
    return _template(document)["spec"]


def _container(document: Document) -> Document:
    return _pod(document)["containers"][0]


class TestStrangers:
    def test_nobody_comes_in_without_a_token_and_nothing_is_privileged(
        self, each: Document
    ) -> None:
        assert unsafe(each) == []

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda d: cluster_of(d).pop("authOptions"), "no token is asked for"),
            (lambda d: cluster_of(d)["authOptions"].update(mode="disabled"), "no token"),
            (lambda d: cluster_of(d)["authOptions"].pop("secretName"), "no token"),
            (lambda d: cluster_of(d).update(rayVersion="2.59.0"), "rayVersion"),
            (lambda d: _head(d)["rayStartParams"].clear(), "the head takes work"),
            (lambda d: _head(d).update(serviceType="LoadBalancer"), "service is open"),
            (lambda d: _head(d).update(enableIngress=True), "ingress"),
            (lambda d: _pod(d).pop("securityContext"), "trainer: runs as root"),
            (lambda d: _pod(d).update(hostNetwork=True), "trainer: shares the node"),
            (lambda d: _pod(d).pop("automountServiceAccountToken"), "may ask Kubernetes"),
            (lambda d: _template(d)["metadata"]["labels"].clear(), "no network policy"),
            (lambda d: _container(d).pop("securityContext"), "ray-worker: is privileged"),
            (lambda d: _container(d)["securityContext"].update(privileged=True), "is privileged"),
            (lambda d: _container(d).update(image="sirt-ray:latest"), "image that may change"),
            (lambda d: _container(d)["resources"].pop("requests"), "other than its limits"),
            (lambda d: _container(d)["env"].append({"name": "HF_TOKEN", "value": "x"}), "a secret"),
            (lambda d: _container(d)["volumeMounts"].clear(), "/dev/shm is 64 MiB"),
            (lambda d: _pod(d)["tolerations"].clear(), "no node with a GPU"),
        ],
    )
    def test_a_hole_is_found(self, change: Change, said: str) -> None:
        found = unsafe(changed(manifest("RayJob"), change))
        assert found and any(said in problem for problem in found)

    def test_the_endpoint_starts_only_with_a_key(self) -> None:
        for _, template in pods(cluster_of(manifest("RayService"))):
            (container,) = template["spec"]["containers"]
            assert {"secretRef": {"name": "sirt-api-key"}} in container["envFrom"]

    def test_the_network_policy_names_who_may_come_in(self, schemas: Path) -> None:
        policy = read(KUBERAY / "base" / "network_policy.yaml")
        spec = policy["spec"]
        assert spec["podSelector"] == {"matchLabels": PART_OF}
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
        assert all(rule["from"] for rule in spec["ingress"])
        assert {"podSelector": {"matchLabels": PART_OF}} in spec["ingress"][0]["from"]
        assert all(rule.get("ports") for rule in spec["ingress"][1:])
        # Rules of a policy are in KubeRay's schema too, for the policies that it makes itself.
        known = kuberay_schema(schemas, "RayCluster")["properties"]["spec"]["properties"]
        rules = known["networkPolicy"]["properties"]["head"]["properties"]
        assert problems(spec["ingress"], rules["ingressRules"]) == []
        assert problems(spec["egress"], rules["egressRules"]) == []
        web = {"port": 443, "protocol": "TCP"}
        (outside,) = (rule for rule in spec["egress"] if web in rule.get("ports", []))
        assert "169.254.0.0/16" in outside["to"][0]["ipBlock"]["except"]


def _head(document: Document) -> Document:
    return cluster_of(document)["headGroupSpec"]


def autoscaled(document: Document) -> dict[str, Document]:
    """The nodes that Ray's autoscaler reads out of the cluster."""
    cluster = {"metadata": {"name": "sirt", "namespace": "sirt"}, "spec": cluster_of(document)}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    return {name: found for name, found in types.items() if name != "headgroup"}


def test_services_of_one_namespace_have_names_of_their_own() -> None:
    """KubeRay makes `<name>-head-svc` of each."""
    assert len({manifest(kind)["metadata"]["name"] for kind in OVERLAYS}) == len(OVERLAYS) == 3


class TestPlaces:
    def test_all_parts_of_the_job_have_a_place(self) -> None:
        job = load.load(JOB, [], REGISTRY)
        assert misfits(job, autoscaled(manifest("RayCluster"))) == []

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("resources.trainer.num_workers=5", "the trainer"),
            ("resources.trainer.cpus_per_worker=11", "the trainer"),
            ("resources.teacher.custom_resources={teachers: 1}", "teacher"),
            ("resources.student.labels={sirt/role: teacher}", "student"),
            ("resources.student.max_replicas=5", "student"),
        ],
    )
    def test_a_part_without_a_place_is_found(self, override: str, said: str) -> None:
        job = load.load(JOB, [override], REGISTRY)
        assert misfits(job, autoscaled(manifest("RayCluster"))) == [f"{said} has no place"]

    def test_a_part_goes_to_its_own_nodes_and_nowhere_else(self) -> None:
        found = autoscaled(manifest("RayCluster"))
        roles = {"driver", "teacher", "student", "trainer"}
        assert {name: set(node["resources"]) & roles for name, node in found.items()} == {
            role: {role} for role in roles
        }
        for name, node in found.items():
            assert node["labels"]["sirt/role"] == name
            assert node["resources"].get("GPU", 1) == node["resources"][name]

    def test_the_driver_is_a_task_on_a_node_that_stays(self) -> None:
        job = manifest("RayJob")["spec"]
        asked = {"CPU": job["entrypointNumCpus"], **json.loads(job["entrypointResources"])}
        able = {
            name: node
            for name, node in autoscaled(manifest("RayJob")).items()
            if all(node["resources"].get(what, 0) >= amount for what, amount in asked.items())
        }
        assert set(able) == {"driver"}
        assert able["driver"]["min_workers"] == 1
        assert able["driver"]["labels"]["ray.io/market-type"] == "on-demand"

    def test_only_nodes_that_can_be_lost_may_be_spot_nodes(self) -> None:
        for group in cluster_of(manifest("RayCluster"))["workerGroupSpecs"]:
            tolerated = {t["key"] for t in group["template"]["spec"].get("tolerations", ())}
            may = tolerated - {"nvidia.com/gpu"}
            assert bool(may) == (group["groupName"] == "student")
            assert (group["labels"]["ray.io/market-type"] == "spot") == bool(may)

    def test_a_lost_cluster_is_tried_again_from_storage(self) -> None:
        job = manifest("RayJob")["spec"]
        assert job["submissionMode"] == "SidecarMode" and job["backoffLimit"] >= 1
        assert job["shutdownAfterJobFinishes"] is True
        command = job["entrypoint"].split()
        assert command[:2] == ["sirt", "run"] and command[3:5] == ["--address", "auto"]
        assert command[2] == "/app/jobs/cluster.yaml"
        (output,) = (word for word in command if word.startswith("output="))
        assert output.startswith("output=s3://")


class TestKustomizations:
    def test_with_a_shared_folder_every_node_mounts_it(self, schemas: Path, tmp_path: Path) -> None:
        assert (
            "between `../nodes`\n# and `../images`"
            in (KUBERAY / "shared_folder" / "kustomization.yaml").read_text()
        )
        shutil.copytree(KUBERAY, tmp_path / "kuberay")
        overlay = tmp_path / "kuberay" / "job" / "kustomization.yaml"
        text = overlay.read_text().replace("../nodes, ", "../nodes, ../shared_folder, ")
        overlay.write_text(text)
        job, claim = render(overlay.parent)
        assert problems(job, kuberay_schema(schemas, "RayJob")) == [] and unsafe(job) == []
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for _, template in pods(cluster_of(job)):
            volume = template["spec"]["volumes"][-1]
            assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
            mount = template["spec"]["containers"][0]["volumeMounts"][-1]
            assert mount == {"name": volume["name"], "mountPath": "/runs"}
        assert job["spec"]["entrypoint"].endswith("--set output=/runs")

    def test_they_name_every_file_and_no_other(self) -> None:
        listed: set[Path] = set()
        for path in KUBERAY.rglob("kustomization.yaml"):
            found = read(path)
            for name in found.get("resources", []) + found.get("components", []):
                listed.add((path.parent / name).resolve())
        files = {p.resolve() for p in KUBERAY.rglob("*.yaml") if p.name != "kustomization.yaml"}
        assert listed == files | {KUBERAY / "images", KUBERAY / "nodes"}
        assert all(
            read(KUBERAY / part / "kustomization.yaml")["components"] == ["../nodes", "../images"]
            for part in OVERLAYS.values()
        )

    def test_what_is_applied_once_has_no_nodes_in_it(self) -> None:
        kinds = [one["kind"] for one in render(KUBERAY / "base")]
        assert kinds == ["Namespace", "ServiceAccount", "ServiceAccount", "NetworkPolicy"]

    def test_a_service_has_the_head_and_the_templates_of_the_nodes(self) -> None:
        nodes, service = cluster_of(manifest("RayCluster")), cluster_of(manifest("RayService"))
        for name in ("rayVersion", "authOptions", "autoscalerOptions", "enableInTreeAutoscaling"):
            assert service[name] == nodes[name]
        added = {"name": "serve", "containerPort": 8000}
        head = service["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert (
            head["ports"][-1] == added
            and head["ports"][:-1]
            == (nodes["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"])
        )
        (group,) = service["workerGroupSpecs"]
        assert group["labels"]["ray.io/market-type"] == "on-demand"
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == "1"

    def test_one_of_them_names_the_image_of_all(self, each: Document) -> None:
        (image,) = read(KUBERAY / "images" / "kustomization.yaml")["images"]
        assert image["newTag"] == pyproject()["project"]["version"]
        for _, template in pods(cluster_of(each)):
            for container in template["spec"]["containers"]:
                assert container["image"] == f"{image['name']}:{image['newTag']}"
