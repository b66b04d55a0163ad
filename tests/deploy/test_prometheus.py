"""The alerts use metrics that exist, fire when they should, and say what to do."""

import json
import re
from typing import Any

import pytest
import yaml

from serving.monitoring.drift import LARGE, SMALL
from tests.deploy.files import DEPLOY, ROOT, check_with, read_yaml
from tests.deploy.promql import is_balanced, labels_in, metrics_in

ALERTS: list[dict[str, Any]] = [
    rule for group in read_yaml("alerts.yml")["groups"] for rule in group["rules"]
]
PACKAGE = "Debian: prometheus"
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


def test_prometheus_accepts_its_configuration() -> None:
    check_with("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus.yml", package=PACKAGE)


def test_each_alert_fires_when_it_should() -> None:
    check_with("promtool", "test", "rules", ROOT / "tests/deploy/alerts_test.yml", package=PACKAGE)
    tests = (ROOT / "tests/deploy/alerts_test.yml").read_text()
    assert {alert["alert"] for alert in ALERTS} == set(re.findall(r"Cifar\w+", tests))


def test_the_drift_alert_and_the_dashboard_have_the_thresholds_of_the_report() -> None:
    (alert,) = [alert for alert in ALERTS if alert["alert"] == "CifarDrift"]
    assert alert["expr"].endswith(f"> {LARGE}")
    panels = json.loads((DEPLOY / "grafana/dashboard.json").read_text())["panels"]
    drift = [panel for panel in panels if "drift" in str(panel.get("targets"))]
    steps = [panel["fieldConfig"]["defaults"]["thresholds"]["steps"] for panel in drift]
    assert steps
    assert all([step["value"] for step in each] == [None, SMALL, LARGE] for each in steps)


@each_alert
def test_an_alert_uses_metrics_that_the_service_exposes(
    alert: dict[str, Any], exposed: dict[str, set[str]]
) -> None:
    metrics = metrics_in(alert["expr"])
    assert metrics
    assert metrics <= exposed.keys()
    assert labels_in(alert["expr"]) <= set().union(*(exposed[name] for name in metrics))
    assert is_balanced(alert["expr"])


@each_alert
def test_an_alert_has_an_explanation_and_a_runbook(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description", "action", "runbook"}
    page, _, section = alert["annotations"]["runbook"].partition("#")
    titles = re.findall(r"^#+ (\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert section == alert["alert"].lower()
    assert alert["alert"] in titles
    shown = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    assert shown <= {"instance"} | labels_in(alert["expr"])


def test_alerts_and_dashboard_use_the_job_of_prometheus() -> None:
    jobs = {job["job_name"] for job in read_yaml("prometheus.yml")["scrape_configs"]}
    text = (DEPLOY / "alerts.yml").read_text() + (DEPLOY / "grafana/dashboard.json").read_text()
    assert set(re.findall(r'job=\\?"(\w+)', text)) == jobs


@pytest.mark.parametrize(
    ("expression", "metrics", "labels"),
    [
        (
            'sum by (le, route) (rate(a_bucket{job="cifar", route=~"/x|/y"}[5m])) > 1',
            {"a_bucket"},
            {"le", "route"},
        ),
        ("a / on (pod) b unless absent(c offset 5m)", {"a", "b", "c"}, {"pod"}),
        ('max(a{x!="b_total", y!~"c"}) or vector(0) * 1e6', {"a"}, {"x", "y"}),
    ],
)
def test_metrics_and_labels_of_an_expression_are_found(
    expression: str, metrics: set[str], labels: set[str]
) -> None:
    assert metrics_in(expression) == metrics
    assert labels_in(expression) == labels


def test_every_yaml_file_can_be_parsed() -> None:
    for path in DEPLOY.rglob("*.y*ml"):
        assert list(yaml.safe_load_all(path.read_text())), path
