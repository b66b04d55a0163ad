"""The InferenceService fits the schemas of KServe and Kubernetes, and has the pod of kubernetes.yaml."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.app.admission import PROBES
from serving.config import ServeConfig
from tests.deploy.files import DEPLOY, ROOT, check_with, read_yaml

INFERENCE_SERVICE: dict[str, Any] = read_yaml("kserve.yaml")
PREDICTOR: dict[str, Any] = INFERENCE_SERVICE["spec"]["predictor"]
(CONTAINER,) = PREDICTOR["containers"]
DEPLOYMENT = next(
    part
    for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    if part["kind"] == "Deployment"
)
POD = DEPLOYMENT["spec"]["template"]["spec"]
SERVICE = next(each for each in POD["containers"] if each["name"] == "service")
KSERVE = "kserve==0.21.0"


@pytest.mark.thorough  # downloads 67 packages, which conflict with our version of pandas
@pytest.mark.parametrize("typo", ["", "readinessProbe"])
def test_the_manifest_fits_the_schema_of_kserve(tmp_path: Path, typo: str) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv is not None
    manifest = tmp_path / "kserve.yaml"
    manifest.write_text((DEPLOY / "kserve.yaml").read_text().replace(typo, typo[1:]))
    command = [uv, "run", "--no-project", "--python", sys.executable, "--with", KSERVE, "python"]
    done = subprocess.run(
        [*command, ROOT / "tests/deploy/kserve_schema.py", manifest],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == bool(typo), done.stderr
    assert done.stdout.strip() == (
        ".spec.predictor.containers.0.eadinessProbe does not exist in V1Container" if typo else ""
    )


def test_the_pod_fits_the_schema_of_kubernetes(tmp_path: Path) -> None:
    of_kserve = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"}
    spec = {name: value for name, value in PREDICTOR.items() if name not in of_kserve}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": spec}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    check_with(
        "kubernetes-validate",
        *("-k", "1.37", "--strict", tmp_path / "pod.yaml"),
        package="PyPI: kubernetes-validate",
    )


def test_kserve_finds_the_predictor_and_its_protocol() -> None:
    assert INFERENCE_SERVICE["metadata"]["name"] == ServeConfig().model_uri.split("/")[1].split("@")[0]
    assert CONTAINER["name"] == "kserve-container"
    assert {"name": "PROTOCOL", "value": "v2"} in CONTAINER["env"]
    assert f"--port={CONTAINER['ports'][0]['containerPort']}" in CONTAINER["args"]
    assert "--host=0.0.0.0" in CONTAINER["args"]


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_the_probes_ask_routes_that_a_busy_server_answers(probe: str) -> None:
    http = CONTAINER[probe]["httpGet"]
    assert http["port"] == CONTAINER["ports"][0]["containerPort"]
    assert http["path"] in PROBES
    assert http["path"].startswith("/v2/health/")
    assert http["path"].endswith("ready") == (probe == "readinessProbe")


@pytest.mark.parametrize("name", ["image", "resources", "securityContext", "volumeMounts"])
def test_the_container_is_that_of_the_deployment(name: str) -> None:
    assert CONTAINER[name] == SERVICE[name]


def test_the_pod_is_that_of_the_deployment() -> None:
    for name in (
        "securityContext",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "terminationGracePeriodSeconds",
    ):
        assert PREDICTOR[name] == POD[name]
    assert all(volume in POD["volumes"] for volume in PREDICTOR["volumes"])
    secrets = [each for each in CONTAINER["env"] if "valueFrom" in each]
    assert secrets == SERVICE["env"]
    assert f"--threads={CONTAINER['resources']['limits']['cpu']}" in CONTAINER["args"]


def test_requests_have_time_to_be_answered() -> None:
    before_stop = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert PREDICTOR["terminationGracePeriodSeconds"] >= before_stop + ServeConfig().request_timeout
    assert PREDICTOR["timeout"] > ServeConfig().request_timeout
