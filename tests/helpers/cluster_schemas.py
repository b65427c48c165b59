"""Manifests against schemas that say nothing of fields they do not know.

Kubernetes drops an unknown field without a word, so a misspelt one is a setting that is not there.
`closed` makes a schema refuse it.
"""

import functools
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema

Document = dict[str, Any]
_PRESERVES = "x-kubernetes-preserve-unknown-fields"
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_POD_METADATA = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(("labels", "annotations"), _STRINGS),
}


@functools.cache
def kuberay_schema(schemas: Path, kind: str) -> Document:
    """KubeRay's published schema of a kind (`RayJob`), closed."""
    text = gzip.decompress((schemas / f"{kind.lower()}s.v1.json.gz").read_bytes())
    schema = closed(json.loads(text))
    # What every object of Kubernetes has; the published schema only says that it is an object.
    schema["properties"]["metadata"] = {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            "namespace": {"type": "string"},
            "name": {"type": "string", "pattern": r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"},
            **dict.fromkeys(("labels", "annotations"), _STRINGS),
        },
    }
    schema["properties"] |= {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def closed(schema: Any) -> Any:
    """The schema with every object's fields listed, but where it keeps unknown ones on purpose."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        if not schema.get(_PRESERVES):
            result.setdefault("additionalProperties", False)
        if {"metadata", "spec"} == schema["properties"].keys():  # a pod's template
            result["properties"]["metadata"] = _POD_METADATA
    return result


def problems(document: Document, schema: Mapping[str, Any]) -> list[str]:
    """Where the document is not what the schema says, and how; empty where it is."""
    validator = jsonschema.Draft7Validator(schema)
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator.iter_errors(document)
    ]


def open_objects(schema: Any, at: str = "") -> Iterator[str]:
    """Objects of a schema in which any field could stand."""
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from open_objects(part, f"{at}[{number}]")
    elif isinstance(schema, dict):
        if schema.get("type") == "object" and "additionalProperties" not in schema:
            yield at
        for name, part in schema.items():
            yield from open_objects(part, f"{at}.{name}")
