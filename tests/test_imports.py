"""The packages that a command imports: each one that it does not need costs start time and memory."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

IMPORT = re.compile(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", re.MULTILINE)
QUICK = ("--model", "cnn", "--width", "0.25", "--epochs", "1", "--threads", "1")
# Needed only after the first step, or not at all.
LATE = {"torch._dynamo", "torchvision", "sklearn", "matplotlib", "scipy.optimize", "onnx", "h5py"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which Python lists its imports on standard error, in child processes too."""
    return {
        **os.environ,
        "PYTHONPROFILEIMPORTTIME": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }


def test_help_imports_no_large_package(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "cifar_mlflow", "train", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not {"torch", "mlflow", "pandas", "numpy"} & set(IMPORT.findall(done.stderr))


@pytest.mark.slow
def test_train_imports_neither_server_nor_search(environment: dict[str, str], tmp_path: Path) -> None:
    """MLflow itself imports fastapi, so that counts only if a plain `import mlflow` does not."""
    command = [sys.executable, "-c", "import mlflow"]
    mlflow = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    command = [sys.executable, "-m", "cifar_mlflow", "train", "--dataset", "sample", *QUICK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    imported = set(IMPORT.findall(done.stderr))
    assert "torch" in imported
    assert not {"fastapi", "optuna", "plotly", "uvicorn", "tuning", "serving"} & (
        imported - set(IMPORT.findall(mlflow.stderr))
    )
    before_the_first_step = done.stderr.partition(" Training cnn ")[0]
    assert len(before_the_first_step) < len(done.stderr)
    assert not LATE & set(IMPORT.findall(before_the_first_step))


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.mark.slow
def test_serve_does_not_import_torch(
    environment: dict[str, str], scorer_folder: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "cifar_mlflow", "serve", "--model", str(scorer_folder),
                "--port", str(port), "--request-log", "none",
            ],
            env=environment, stdout=output, stderr=output, cwd=tmp_path,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/ready"):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        image = {"file": (Path(__file__).parents[1] / "serving/examples/cat.jpg").read_bytes()}
        assert requests.post(f"http://127.0.0.1:{port}/predict", files=image, timeout=60).ok
    finally:
        server.terminate()
        server.wait(timeout=60)
    imported = set(IMPORT.findall(log.read_text()))
    assert "onnxruntime" in imported
    assert not {"torch", "torchvision", "optuna", "plotly", "tuning"} & imported
