"""The dashboard queries metrics that the service exposes, and Grafana finds the dashboard and its data."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.files import DEPLOY, check_with, read_yaml
from tests.deploy.promql import is_balanced, labels_in, metrics_in

BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
MOUNTS = dict(
    mount.removesuffix(":ro").split(":")
    for mount in read_yaml("compose.yaml")["services"]["grafana"]["volumes"]
)


def test_the_dashboard_has_the_fields_that_grafana_requires() -> None:
    assert BOARD.keys() >= {"uid", "title", "schemaVersion", "panels", "templating", "time", "refresh"}
    assert "id" not in BOARD  # it belongs to the database of an export
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel.keys() >= {"type", "title", "gridPos", "targets", "datasource", "fieldConfig", "options"}
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[f"{i}" for i in range(len(QUERIES))])
def test_a_panel_queries_metrics_that_the_service_exposes(
    title: str, expression: str, exposed: dict[str, set[str]]
) -> None:
    metrics = metrics_in(expression)
    assert metrics, title
    assert metrics <= exposed.keys()
    assert labels_in(expression) <= set().union(*(exposed[name] for name in metrics))
    assert is_balanced(expression)


def test_every_metric_of_the_service_is_on_the_dashboard(exposed: dict[str, set[str]]) -> None:
    queried = set().union(*(metrics_in(expression) for _, expression in QUERIES))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in queried}
    ours = {name for name in exposed if name.startswith("cifar_")}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours} <= families


def test_the_variables_of_the_queries_are_declared() -> None:
    declared = {variable["name"] for variable in BOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", " ".join(expression for _, expression in QUERIES))) <= declared


def test_prometheus_accepts_every_query(tmp_path: Path) -> None:
    filled = [
        expression.replace("$__rate_interval", "5m").replace("$instance", ".*") for _, expression in QUERIES
    ]
    rules = [{"record": f"panel{i}", "expr": expression} for i, expression in enumerate(filled)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    check_with("promtool", "check", "rules", file, package="Debian: prometheus")


def test_grafana_finds_the_dashboard_and_the_data_source() -> None:
    provider = read_yaml("grafana/provisioning/dashboards/dashboards.yml")["providers"][0]
    assert provider["type"] == "file"
    dashboard = MOUNTS["./grafana/dashboard.json"]
    assert dashboard.startswith(provider["options"]["path"] + "/")
    assert MOUNTS["./grafana/provisioning"] == "/etc/grafana/provisioning"
    settings = read_yaml("compose.yaml")["services"]["grafana"]["environment"]
    assert settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    source = read_yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert source["jsonData"]["timeInterval"] == read_yaml("prometheus.yml")["global"]["scrape_interval"]
