"""The Kubernetes manifests fit the schemas, each other, and the images."""

from typing import Any

import pytest
import yaml

from serving.config import ServeConfig
from tests.deploy.files import DEPLOY, check_with, read_yaml
from tests.deploy.proxy import PLACEHOLDERS

OBJECTS: dict[str, Any] = {
    part["kind"]: part for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
}
TEMPLATE = OBJECTS["Deployment"]["spec"]["template"]
POD = TEMPLATE["spec"]
CONTAINERS: dict[str, Any] = {container["name"]: container for container in POD["containers"]}
SERVICE, PROXY = CONTAINERS["service"], CONTAINERS["proxy"]
LABELS = TEMPLATE["metadata"]["labels"]
PORTS = {
    port["name"]: port["containerPort"] for container in POD["containers"] for port in container["ports"]
}
PROXY_VARIABLES = {variable["name"]: variable["value"] for variable in PROXY["env"]}
each_container = pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_the_manifests_fit_the_schemas(version: str) -> None:
    check_with(
        "kubernetes-validate",
        *("-k", version, "--strict", DEPLOY / "kubernetes.yaml"),
        package="PyPI: kubernetes-validate",
    )


def test_there_is_one_object_of_each_kind() -> None:
    expected = {"ConfigMap", "ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler"}
    assert OBJECTS.keys() == expected | {"PodDisruptionBudget", "NetworkPolicy"}


def test_every_selector_matches_the_pods() -> None:
    selectors = [
        OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"],
        OBJECTS["Service"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= LABELS.items()


def test_the_autoscaler_controls_the_number_of_pods() -> None:
    target = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = OBJECTS["Deployment"]
    assert target["name"] == deployment["metadata"]["name"]
    assert (target["kind"], target["apiVersion"]) == ("Deployment", deployment["apiVersion"])
    assert "replicas" not in deployment["spec"]  # each apply would overwrite the number
    assert OBJECTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2
    assert all("cpu" in container["resources"]["requests"] for container in CONTAINERS.values())


def test_clients_reach_the_service_only_through_nginx() -> None:
    assert PROXY_VARIABLES["LISTEN"] == str(PORTS["http"])
    assert PROXY_VARIABLES["UPSTREAM"] == f"127.0.0.1:{PORTS['service']}"
    assert f"--port={PORTS['service']}" in SERVICE["args"]
    assert [port["targetPort"] for port in OBJECTS["Service"]["spec"]["ports"]] == ["http"]
    for rule in OBJECTS["NetworkPolicy"]["spec"]["ingress"]:
        assert [port["port"] for port in rule["ports"]] == ["http"]
    # Only nginx, which is in the same pod, may report the address of a client.
    assert OBJECTS["ConfigMap"]["data"]["FORWARDED_ALLOW_IPS"] == "127.0.0.1"


def test_nginx_gets_its_configuration() -> None:
    # The image finds the resolvers itself if the second variable is set.
    assert PROXY_VARIABLES.keys() & PLACEHOLDERS == PLACEHOLDERS - {"NGINX_LOCAL_RESOLVERS"}
    assert PROXY_VARIABLES["NGINX_ENTRYPOINT_LOCAL_RESOLVERS"]
    assert int(PROXY_VARIABLES["MAX_BODY_MB"]) == ServeConfig().max_body_mb
    assert f"{PROXY_VARIABLES['NGINX_ENVSUBST_OUTPUT_DIR']}/nginx.conf" in PROXY["args"]

    kustomization = read_yaml("kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    assert {"name": "nginx", "configMap": {"name": generated["name"]}} in POD["volumes"]
    assert kustomization["resources"] == ["kubernetes.yaml"]
    key, file = generated["files"][0].split("=")
    assert (DEPLOY / file).exists()
    mount = {"name": "nginx", "mountPath": f"/etc/nginx/templates/{key}", "subPath": key}
    assert mount in PROXY["volumeMounts"]


@pytest.mark.parametrize(
    ("probe", "path"), [("startupProbe", "/ping"), ("livenessProbe", "/ping"), ("readinessProbe", "/ready")]
)
def test_the_probes_ask_the_service_itself(probe: str, path: str) -> None:
    # A service without a model is alive: it gets no requests, but Kubernetes must not kill it.
    assert SERVICE[probe]["httpGet"] == {"path": path, "port": "service"}


def test_a_pod_that_is_deleted_has_time_for_its_requests() -> None:
    before_nginx = PROXY["lifecycle"]["preStop"]["sleep"]["seconds"]
    before_service = SERVICE["lifecycle"]["preStop"]["sleep"]["seconds"]
    nginx_takes = 15  # seconds
    assert f"worker_shutdown_timeout {nginx_takes}s;" in (DEPLOY / "nginx.conf").read_text()
    assert before_service >= before_nginx + nginx_takes
    assert POD["terminationGracePeriodSeconds"] >= before_service + ServeConfig().request_timeout


@each_container
def test_a_container_has_no_more_rights_than_it_needs(container: dict[str, Any]) -> None:
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_pod_does_not_run_as_root() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    user = f"USER {POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"
    assert user in (DEPLOY / "Dockerfile").read_text()


@each_container
def test_a_container_has_requests_and_limits(container: dict[str, Any]) -> None:
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_the_service_uses_as_many_threads_as_its_cpu_limit() -> None:
    # By default it would count the cores of the node.
    assert f"--threads={SERVICE['resources']['limits']['cpu']}" in SERVICE["args"]


@each_container
def test_the_folders_that_a_container_writes_to_are_mounted_and_limited(container: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert "sizeLimit" in mounted["/tmp"]["emptyDir"]
    if container is SERVICE:
        cache = [
            path for path in mounted if f"CIFAR_MLFLOW_CACHE={path}" in (DEPLOY / "Dockerfile").read_text()
        ]
        assert "sizeLimit" in mounted[cache[0]]["emptyDir"]


def test_secrets_come_by_reference_and_none_is_in_the_file() -> None:
    assert "Secret" not in OBJECTS
    assert {v["name"]: v["valueFrom"]["secretKeyRef"]["key"] for v in SERVICE["env"]} == {
        "CIFAR_MLFLOW_REQUEST_LOG": "request-log",
        "CIFAR_MLFLOW_API_KEY": "api-key",
    }
    assert SERVICE["envFrom"] == [{"configMapRef": {"name": OBJECTS["ConfigMap"]["metadata"]["name"]}}]


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_images_are_those_of_the_compose_file(name: str) -> None:
    assert CONTAINERS[name]["image"] == read_yaml("compose.yaml")["services"][name]["image"]
