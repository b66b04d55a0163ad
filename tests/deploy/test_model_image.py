"""MLflow builds an image of a registered version: the checks that need no container engine."""

import base64
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from serving.registry.mlflow_server import free_port
from tests.serving.app.conftest import BLUE, NAME, RED, Store

pytestmark = pytest.mark.slow

MODEL = f"models:/{NAME}@champion"
MODEL_FOLDER = "/opt/ml/model"  # in the image


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Store:
    store = Store(tmp_path_factory.mktemp("store"), empty_store)
    store.promote(store.add())
    return store


def mlflow_models(store: Store, *arguments: str, path: str = "") -> None:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store.uri,
        "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run(
        [sys.executable, "-m", "mlflow", "models", *arguments], env=environment, check=True, timeout=300
    )


@pytest.fixture(scope="module")
def context(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the build context that `generate-dockerfile` writes."""
    folder = tmp_path_factory.mktemp("context")
    mlflow_models(store, "generate-dockerfile", "-m", MODEL, "-d", str(folder))
    return folder


def instructions(context: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (context / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name, rest) for line in lines if line.strip() for name, _, rest in [line.partition(" ")]]


def test_the_dockerfile_copies_and_serves_the_version(context: Path) -> None:
    steps = instructions(context)
    (image,) = [rest for name, rest in steps if name == "FROM"]
    assert image == f"python:{'.'.join(map(str, sys.version_info[:3]))}-slim"
    assert [rest for name, rest in steps if name in ("COPY", "ADD")] == [f"model_dir {MODEL_FOLDER}"]
    assert "C._serve('local')" in dict(steps)["ENTRYPOINT"]
    files = {path.name for path in (context / "model_dir").rglob("*") if path.is_file()}
    assert {"MLmodel", "requirements.txt", "model.onnx", "scorer.json", "predictor.py"} <= files
    requirements = (context / "model_dir/requirements.txt").read_text()
    names = {re.split(r"[<>=]", line)[0] for line in requirements.splitlines()}
    assert names == {"mlflow", "numpy", "onnxruntime", "pandas", "pillow"}


def test_build_docker_gives_docker_the_same_context(context: Path, store: Store, tmp_path: Path) -> None:
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(
        f'#!/bin/sh\n[ "$1" = build ] && cp -r . {tmp_path}/context && echo "$@" > {tmp_path}/args\n'
    )
    docker.chmod(0o755)
    arguments = ("build-docker", "-m", MODEL, "-n", "cifar10", "--env-manager", "local")
    mlflow_models(store, *arguments, path=str(docker.parent))
    assert (tmp_path / "args").read_text().split()[:3] == ["build", "-t", "cifar10"]
    built = tmp_path / "context"
    assert (built / "Dockerfile").read_text() == (context / "Dockerfile").read_text()
    for name in ("requirements.txt", "artifacts/scorer/model.onnx"):
        assert (built / "model_dir" / name).read_bytes() == (context / "model_dir" / name).read_bytes()


@pytest.mark.thorough
def test_the_model_answers_in_an_environment_that_the_dockerfile_makes(context: Path, tmp_path: Path) -> None:
    """Run the Dockerfile's Python steps, in its order, in a new virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment = {
        "PATH": f"{tmp_path}/venv/bin{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HOME": os.environ["HOME"],  # contains pip's cache
        "PIP_COMPILE": "0",  # halves the time
        **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "TMP"))},
    }
    model = tmp_path / "model"
    python_steps = 0
    for name, step in instructions(context):
        if name == "COPY":
            shutil.copytree(context / step.split()[0], model)
        elif name == "RUN" and step.startswith(("pip ", "python ")):
            command = step.replace(MODEL_FOLDER, str(model))
            subprocess.run(["bash", "-c", command], env=environment, cwd=tmp_path, check=True, timeout=900)
            python_steps += 1
    assert python_steps == 2  # MLflow, then the requirements of the model
    for package in ("torch", "cifar_mlflow"):
        done = subprocess.run(
            ["python", "-c", f"import {package}"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert b"ModuleNotFoundError" in done.stderr

    port = free_port()
    command = f"mlflow models serve -m {model} --env-manager local -h 127.0.0.1 -p {port} -w 1"
    process = subprocess.Popen(
        shlex.split(command), env=environment, cwd=tmp_path, start_new_session=True,
        executable=str(tmp_path / "venv/bin/mlflow"),
    )  # fmt: skip
    try:
        answers = classify(f"http://127.0.0.1:{port}", process, [RED, BLUE])
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert [each["label"] for each in answers] == ["red", "blue"]


def classify(address: str, process: subprocess.Popen[bytes], files: list[bytes]) -> list[dict[str, Any]]:
    body = {"inputs": {"image": [base64.b64encode(each).decode() for each in files]}}
    while True:
        assert process.poll() is None
        try:
            response = requests.post(f"{address}/invocations", json=body, timeout=60)
            break
        except requests.ConnectionError:
            time.sleep(0.2)
    answers: list[dict[str, Any]] = response.json()["predictions"]
    return answers
