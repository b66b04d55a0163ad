"""`make ui`."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
import requests
from click.testing import CliRunner

from cifar_mlflow.tracking.ui import main

ADDRESS = "Runs and models: "


@contextmanager
def ui(folder: Path, port: int) -> Iterator[str]:
    """Start the UI in a folder; yield the address that it prints."""
    environment = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_mlflow.tracking.ui", "--port", str(port)],
        cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr
        yield next(line for line in process.stderr if line.startswith(ADDRESS)).removeprefix(ADDRESS).strip()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.thorough
def test_the_ui_shows_the_store_of_the_runs_in_the_mode_for_trained_models(
    mlflow_store: Path, tmp_path: Path
) -> None:
    photos = mlflow.create_experiment("photos")
    mlflow.MlflowClient().create_run(photos, tags={"kind": "train"})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with ui(elsewhere, port) as address:
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name"
        response = requests.get(url, params={"experiment_name": "photos"}, timeout=60)
    assert address == f"http://127.0.0.1:{port}/#/experiments/{photos}/runs?workflowType=machine_learning"
    assert response.ok, response.text
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_no_second_ui_is_started_where_a_server_has_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    with ui(tmp_path, port=5000) as address:
        assert address == "http://mlflow.example:5000/#/experiments?workflowType=machine_learning"


@pytest.mark.slow
def test_the_page_of_another_server_is_not_shown_for_ours(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "cifar_mlflow.tracking.ui", "--port", str(port)],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "choose another port: python -m cifar_mlflow.tracking.ui --port 5001" in done.stderr
    assert ADDRESS not in done.stderr


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_number_that_is_no_port_is_refused(port: str) -> None:
    result = CliRunner().invoke(main, ["--port", port])
    assert result.exit_code == 2
    assert f"{port} is not in the range 1<=x<=65535" in result.output
