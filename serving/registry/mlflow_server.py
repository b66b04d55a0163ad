"""`mlflow models serve` as a child process, for as long as somebody needs it."""

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


class Server(NamedTuple):
    """Where it answers, and the group of its processes."""

    address: str
    process_group: int


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def mlflow_server(model_uri: str) -> Iterator[Server]:
    """A server on a free port of this machine that has begun to answer.

    Raises:
        CifarError: it did not start; the end of what it printed is in the error.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        "models",
        "serve",
        "-m",
        model_uri,
        "--env-manager",
        "local",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    # MLflow starts the server of the first environment on the PATH, and would log into the run of a project.
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            _wait_for(address, process)
            yield Server(address, process.pid)
        except _NotStartedError:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-1000:]
            raise CifarError(f"`mlflow models serve -m {model_uri}` did not start:\n{said}") from None
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


class _NotStartedError(Exception):
    pass


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{address}/ping", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise _NotStartedError
