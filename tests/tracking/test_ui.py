"""`make ui`."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.thorough
@pytest.mark.usefixtures("mlflow_store")
def test_the_ui_is_started_and_its_address_leads_to_the_mode_for_trained_models(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_mlflow.tracking.ui", "--port", str(port)],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr
        said = next(line for line in process.stderr if line.startswith("Runs and models: "))
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert said.strip().endswith(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning")
