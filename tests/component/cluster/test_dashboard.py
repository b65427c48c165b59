"""The Grafana dashboard shows what the code emits, all of it and nothing else."""

import json
import re
from typing import Any

import pytest

from sirt_ray.on_ray.metrics import METRICS
from tests.helpers.paths import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "cluster/grafana/sirt-ray.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
BY_EXPORTED_NAME = {metric.exported: metric for metric in METRICS.values()}
COMMON = {"run", "round", "stage"}


def named(expression: str) -> list[str]:
    return re.findall(r"ray_sirt_\w+", expression)


def test_every_metric_is_shown_and_every_name_that_is_asked_for_exists() -> None:
    asked = {name for expression in EXPRESSIONS for name in named(expression)}
    assert asked == set(BY_EXPORTED_NAME)
    variables = json.dumps(DASHBOARD["templating"])
    assert set(named(variables)) <= set(BY_EXPORTED_NAME)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_uses_labels_that_its_metrics_have(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        expression = target["expr"]
        assert expression.count("(") == expression.count(")")
        for name, selector in re.findall(r"(ray_sirt_\w+)\{(.*?)\}", expression):
            selected = set(re.findall(r"(\w+)=~?\"", selector))
            assert selected - COMMON <= set(BY_EXPORTED_NAME[name].labels)
            assert "run" in selected  # else the choice of a run would not be heeded
        known = COMMON.union(*(BY_EXPORTED_NAME[name].labels for name in named(expression)))
        kept = set(re.split(r", ", ", ".join(re.findall(r" by \((.*?)\)", expression))))
        assert kept <= known
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_has_the_unit_of_what_it_shows(panel: dict[str, Any]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        expression, names = target["expr"], named(target["expr"])
        if " / " not in expression:
            of_metric = BY_EXPORTED_NAME[names[0]].unit
            assert unit == of_metric or (unit, of_metric) == ("sci", "none")
        else:
            assert unit in ("percentunit", "none")


def test_it_can_be_imported_and_its_panels_do_not_overlap() -> None:
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == variables | {"__rate_interval"}
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        places = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & places
        taken |= places
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Run", "Sampling", "Pairs", "Training", "Wasted work"]
