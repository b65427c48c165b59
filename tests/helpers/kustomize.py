"""`kubectl kustomize` for the features that `cluster/kuberay` uses; any other one is an error.

As in kustomize: a target's resources come first, then its components, which change what is there,
then its own patches, namespace, images and replacements, in this order. Objects that are annotated
as local are left out at the end.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
_LOCAL = "config.kubernetes.io/local-config"
_KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "components"),
    *("patches", "images", "replacements"),
}


def render(folder: Path) -> list[Document]:
    """Return the objects that `kubectl apply -k folder` sends."""
    objects = _accumulate(folder, [], "Kustomization")
    return [one for one in objects if not _is_local(one)]


def read(path: Path) -> Document:
    """Read a file with one object. Parts that the file has by reference are copied."""
    (document,) = _read_all(path)
    return document


def _read_all(path: Path) -> list[Document]:
    return json.loads(json.dumps(list(yaml.safe_load_all(path.read_text()))))


def _is_local(document: Document) -> bool:
    return document["metadata"].get("annotations", {}).get(_LOCAL) == "true"


def _accumulate(folder: Path, objects: list[Document], kind: str) -> list[Document]:
    target = read(folder / "kustomization.yaml")
    assert target["kind"] == kind and target.keys() <= _KNOWN, f"{folder}: {sorted(target)}"
    for name in target.get("resources", ()):
        path = folder / name
        if path.is_dir():
            objects = [*objects, *_accumulate(path, [], "Kustomization")]
        else:
            # kustomize reads no file outside of the folder.
            assert path.resolve().is_relative_to(folder.resolve()), path
            objects = [*objects, *_read_all(path)]
    for name in target.get("components", ()):
        objects = _accumulate(folder / name, objects, "Component")
    for patch in target.get("patches", ()):
        for document in _selected(objects, patch["target"]):
            _patch(document, yaml.safe_load(patch["patch"]))
    if namespace := target.get("namespace"):
        for document in objects:
            if document["kind"] != "Namespace":
                document["metadata"]["namespace"] = namespace
    for image in target.get("images", ()):
        for document in objects:
            _set_image(document, image)
    for replacement in target.get("replacements", ()):
        _replace(objects, replacement)
    return objects


def _selected(objects: list[Document], select: Document) -> list[Document]:
    assert select.keys() <= {"kind", "name"}
    return [
        one
        for one in objects
        if one["kind"] == select["kind"]
        and one["metadata"]["name"] == select.get("name", one["metadata"]["name"])
    ]


def _patch(document: Document, operations: list[Document]) -> None:
    """Apply a JSON patch (RFC 6902) in place: `replace`, and `add` at an end."""
    for operation in operations:
        *at, last = operation["path"].strip("/").split("/")
        target: Any = document
        for name in at:
            target = target[int(name)] if isinstance(target, list) else target[name]
        if operation["op"] == "add":
            assert last == "-" and isinstance(target, list), operation["path"]
            target.append(operation["value"])
        else:
            assert operation["op"] == "replace" and last in target, operation
            target[last] = operation["value"]


def _set_image(node: Any, image: Document) -> None:
    """Set name and tag of every container, wherever it is in an object."""
    if isinstance(node, list):
        for below in node:
            _set_image(below, image)
    elif isinstance(node, dict):
        for name, below in node.items():
            _set_image(below, image)
            for container in below if name in ("containers", "initContainers") else ():
                if container["image"].split(":")[0] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"


def _replace(objects: list[Document], replacement: Document) -> None:
    (source,) = _selected(objects, {k: replacement["source"][k] for k in ("kind", "name")})
    value = source
    for part in _parts(replacement["source"]["fieldPath"]):
        value = _element(value, part) if part.startswith("[") else value[part]
    for target in replacement["targets"]:
        assert target["options"] == {"create": True}
        for document in _selected(objects, target["select"]):
            for path in target["fieldPaths"]:
                *at, last = _parts(path)
                node: Any = document
                for part in at:
                    node = (
                        _element(node, part) if part.startswith("[") else node.setdefault(part, {})
                    )
                node[last] = deepcopy(value)


def _parts(path: str) -> list[str]:
    assert "*" not in path and "\\" not in path
    return path.split(".")


def _element(sequence: list[Document], part: str) -> Document:
    """Return the element that `[key=value]` names."""
    key, value = part.strip("[]").split("=")
    (found,) = (one for one in sequence if one[key] == value)
    return found
