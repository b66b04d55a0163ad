"""`mlflow models serve` as a child process, for the demo and the benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import requests

from cifar_mlflow.errors import CifarError

START_SECONDS = 120
SHOWN_LOG_CHARACTERS = 1000


class Server(NamedTuple):
    """A running server: its URL, and the id of its process group."""

    address: str
    process_group: int


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def mlflow_server(model_uri: str) -> Iterator[Server]:
    """Run a server on a free port of 127.0.0.1; it answers when the block begins.

    Raises:
        CifarError: the server did not start; the message ends with the end of its output.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    arguments = f"--env-manager local -h 127.0.0.1 -p {port}".split()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_uri, *arguments]
    # Without MLFLOW_RUN_ID, or the server would log into the run of `mlflow run`; with our environment first
    # on the PATH, where MLflow looks for the programs that it starts.
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            if not _wait_until_ready(address, process):
                log.seek(0)
                output = log.read().decode(errors="replace").strip()[-SHOWN_LOG_CHARACTERS:]
                raise CifarError(f"`mlflow models serve -m {model_uri}` did not start:\n{output}")
            yield Server(address, process.pid)
        finally:
            with suppress(ProcessLookupError):  # it has exited
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Return True when the server answers; False if it exits first or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(requests.RequestException):
            if requests.get(f"{address}/ping", timeout=5).ok:
                return True
        time.sleep(0.1)
    return False
