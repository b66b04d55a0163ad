"""The service runs with the packages of the image: other packages cannot be imported here."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import requests

from tests.deploy.files import DEPLOY, ROOT, read_yaml
from tests.scorer_folders import write_scorer_folder

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
PHOTO = ROOT / "serving/examples/cat.jpg"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a process that can import only the packages of the image."""
    folder = tmp_path_factory.mktemp("image")
    shutil.copy(ROOT / "tests/deploy/image_packages.py", folder / "sitecustomize.py")
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "IMAGE_REQUIREMENTS": str(DEPLOY / "requirements.txt"),
        "CIFAR_MLFLOW_API_KEY": KEY,
        "CIFAR_MLFLOW_REQUEST_LOG": f"sqlite:///{folder}/requests.db",
    }


@pytest.fixture(scope="module")
def address(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a service as in compose.yaml, except for the model and the port; yield its URL."""
    model = write_scorer_folder(tmp_path_factory.mktemp("model") / "scorer")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = read_yaml("compose.yaml")["services"]["service"]["command"]
    command = [part for part in command if not part.startswith(("--port", "--host"))]
    log = model.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cifar_mlflow", *command, f"--port={port}", f"--model-uri={model}"],
            cwd=ROOT,
            env=environment,
            stderr=file,
        )
    try:
        while process.poll() is None:
            try:
                requests.get(f"http://127.0.0.1:{port}/ready", timeout=60)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("module", ["torch", "matplotlib.figure", "sklearn", "scipy", "optuna"])
def test_other_packages_cannot_be_imported(module: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"the image does not contain {module.partition('.')[0]}" in done.stderr


@pytest.mark.parametrize("verb", ["serve", "promote", "rollback", "classify"])
def test_the_commands_of_an_operator_run(verb: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "cifar_mlflow", verb, "--help"]
    subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True)


def test_a_photo_is_classified(address: str) -> None:
    answer = requests.post(
        f"{address}/predict", headers={"X-API-Key": KEY}, files={"file": PHOTO.open("rb")}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["label"]


def test_probes_and_the_page_need_no_key(address: str) -> None:
    for path in ("/ping", "/ready", "/"):
        assert requests.get(address + path, timeout=30).status_code == 200


def test_prometheus_gets_the_metrics_with_its_host_name_and_key(address: str) -> None:
    (job,) = read_yaml("prometheus.yml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    headers = {"Host": target, "Authorization": f"Bearer {KEY}"}
    answer = requests.get(f"{address}/metrics", headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert "cifar_requests_total" in answer.text
    assert requests.get(f"{address}/metrics", headers={"Host": target}, timeout=30).status_code == 401
