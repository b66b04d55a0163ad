"""The manifests fit the schemas, each other, and the image."""

from typing import Any

import pytest
import yaml

from tests.deploy.files import DEPLOY, check_with

OBJECTS: dict[str, Any] = {
    part["kind"]: part for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
}
TEMPLATE = OBJECTS["Deployment"]["spec"]["template"]
POD = TEMPLATE["spec"]
CONTAINER = POD["containers"][0]
LABELS = TEMPLATE["metadata"]["labels"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_they_fit_the_schemas_of_kubernetes(version: str) -> None:
    check_with(
        "kubernetes-validate",
        *("-k", version, "--strict", DEPLOY / "kubernetes.yaml"),
        package="kubernetes-validate of PyPI",
    )


def test_there_is_one_of_each() -> None:
    expected = {"ConfigMap", "ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler"}
    assert OBJECTS.keys() == expected | {"PodDisruptionBudget", "NetworkPolicy"}


def test_each_finds_the_pods() -> None:
    selectors = [
        OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"],
        OBJECTS["Service"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= LABELS.items()


def test_the_autoscaler_finds_the_deployment_and_has_its_number() -> None:
    target = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = OBJECTS["Deployment"]
    assert target["name"] == deployment["metadata"]["name"]
    assert (target["kind"], target["apiVersion"]) == ("Deployment", deployment["apiVersion"])
    assert "replicas" not in deployment["spec"]  # each apply would set the number back
    assert OBJECTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2
    assert "cpu" in CONTAINER["resources"]["requests"]  # a share of it is what it goes by


def test_ports_are_those_that_the_service_listens_on() -> None:
    assert f"--port={PORTS['http']}" in CONTAINER["args"]
    assert OBJECTS["Service"]["spec"]["ports"][0]["targetPort"] in PORTS
    for rule in OBJECTS["NetworkPolicy"]["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= PORTS.keys()


@pytest.mark.parametrize(
    ("probe", "path"), [("startupProbe", "/ping"), ("livenessProbe", "/ping"), ("readinessProbe", "/ready")]
)
def test_a_probe_asks_the_right_question(probe: str, path: str) -> None:
    # Alive is not ready: a service without a model must not be killed for it, only get no requests.
    assert CONTAINER[probe]["httpGet"] == {"path": path, "port": "http"}
    assert CONTAINER[probe]["httpGet"]["port"] in PORTS


def test_it_has_time_to_answer_what_it_accepted() -> None:
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] >= before + 30  # request_timeout


def test_it_has_no_rights_but_to_run() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    own = CONTAINER["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    user = f"USER {POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"
    assert user in (DEPLOY / "Dockerfile").read_text()


def test_it_has_requests_and_limits() -> None:
    assert CONTAINER["resources"]["limits"].keys() == {"cpu", "memory"}
    assert CONTAINER["resources"]["requests"].keys() == {"cpu", "memory"}
    # Of its own it would count the cores of the node.
    assert f"--threads={CONTAINER['resources']['limits']['cpu']}" in CONTAINER["args"]


def test_what_it_writes_to_is_mounted() -> None:
    mounted = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounted.values()) == {volume["name"] for volume in POD["volumes"]}
    assert "/tmp" in mounted
    assert any(f"CIFAR_MLFLOW_CACHE={path}" in (DEPLOY / "Dockerfile").read_text() for path in mounted)
    assert all("sizeLimit" in volume["emptyDir"] for volume in POD["volumes"])


def test_secrets_come_by_reference_and_none_is_in_the_file() -> None:
    assert "Secret" not in OBJECTS
    assert all("value" not in variable for variable in CONTAINER["env"])
    assert {v["name"]: v["valueFrom"]["secretKeyRef"]["key"] for v in CONTAINER["env"]} == {
        "CIFAR_MLFLOW_REQUEST_LOG": "request-log",
        "CIFAR_MLFLOW_API_KEY": "api-key",
    }
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": OBJECTS["ConfigMap"]["metadata"]["name"]}}]


def test_it_runs_the_image_of_the_compose_file() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert CONTAINER["image"] == compose["services"]["service"]["image"]
