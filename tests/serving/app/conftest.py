"""Fixtures: real `cifar-mlflow serve` processes, and a registry whose models have predictable answers."""

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pytest
import requests
from PIL import Image

from serving.registry.mlflow_model import log_model
from tests.scorer_folders import write_scorer_folder
from tests.shared import use_store

ROOT = Path(__file__).parents[3]
NAME = "cifar10"


def image(colour: Any = "red", size: tuple[int, int] = (32, 32), kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


RED, LIME, BLUE = image("red"), image("lime"), image("blue")


class Store:
    """An MLflow store in a folder that holds versions of one registered model."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.uri = f"sqlite:///{shutil.copy(empty_store, folder)}"
        self.client = mlflow.MlflowClient(self.uri, self.uri)
        artifacts = (folder / "artifacts").as_uri()
        self.experiment = self.client.create_experiment("colours", artifact_location=artifacts)
        self.run_id = self.client.create_run(self.experiment).info.run_id
        self.client.create_registered_model(NAME)
        self.number = 0

    def add(self, **card: Any) -> str:
        """Add a version, return its number. `card` overrides fields of its scorer.json."""
        return self.add_folder(write_scorer_folder(self.folder / f"scorer{self.number + 1}", **card))

    def add_folder(self, folder: Path) -> str:
        """Add the model of a scorer folder as a version, return its number."""
        self.number += 1
        with use_store(self.uri) as patch:
            patch.setenv("MLFLOW_EXPERIMENT_ID", self.experiment)
            tags = {
                f"sha256.{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
                for path in folder.iterdir()
            }
            model_uri = log_model(folder, self.run_id, f"scorer{self.number}").model_uri
            return str(mlflow.register_model(model_uri, NAME, tags=tags).version)

    def promote(self, number: str) -> None:
        self.client.set_registered_model_alias(NAME, "champion", number)

    def file(self, name: str) -> list[Path]:
        """Return the stored files of this name, the oldest version first."""
        return sorted((self.folder / "artifacts").rglob(name), key=lambda path: path.stat().st_mtime)


class Answer(NamedTuple):
    """One raw HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Return the error code in the body."""
        found: str = json.loads(self.body)["error"]["code"]
        return found


def read_answer(connection: socket.socket) -> Answer:
    """Read one response with a Content-Length from a connection, which stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or pytest.fail(f"closed after {data!r}")
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536) or pytest.fail(f"closed after {body!r}")
    return Answer(int(status.split()[1]), headers, body)


class Server:
    """A `cifar-mlflow serve` process and its workers.

    Args:
        folder: working directory, which also gets the log.
        store: URI of the MLflow store.
        options: further options of the command.
        program: runs the command line; a test may pass another one, which prepares the process first.
        environment: further environment variables.
    """

    def __init__(
        self,
        folder: Path,
        store: str,
        *options: str,
        program: tuple[str, ...] = ("-m", "cifar_mlflow"),
        **environment: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve", "--port", "0", *options],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store, **environment},
                start_new_session=True,
            )
        self.url = ""

    def wait(self) -> "Server":
        deadline = time.monotonic() + 180
        while not self.url:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            listening = [line for line in self.lines() if line.get("event") == "listening"]
            self.url = listening[0]["address"] if listening else ""
            time.sleep(0.05)
        self.port = int(self.url.rpartition(":")[2])
        assert requests.get(f"{self.url}/ping", timeout=120).ok
        return self

    def lines(self) -> list[dict[str, Any]]:
        """Return the JSON lines that have been logged so far."""
        found = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def predict(self, data: bytes = RED, **options: Any) -> requests.Response:
        headers = {"Content-Type": "image/png", **options.pop("headers", {})}
        return requests.post(f"{self.url}/predict", data=data, headers=headers, timeout=120, **options)

    def post(self, route: str, body: Any, kind: str = "application/json") -> requests.Response:
        data = body if isinstance(body, bytes | str) else json.dumps(body)
        headers = {"Content-Type": kind} if kind else {}
        return requests.post(f"{self.url}{route}", data=data, headers=headers, timeout=120)

    def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{self.url}/ready", timeout=120).json()
        return answer

    def send(self, *parts: bytes, wait: float = 30) -> bytes:
        """Send raw bytes; return what is received until the server closes or is silent for `wait` seconds."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            with suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
            answer = b""
            with suppress(ConnectionError, TimeoutError):
                while chunk := connection.recv(65536):
                    answer += chunk
            return answer

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Stop the server, return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            return self.process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until the condition returns something true, return that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition does not become true"
        time.sleep(0.02)
    return found


def children(pid: int) -> list[int]:
    """Return the worker processes, the oldest first, without the resource tracker of multiprocessing."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {}
    for each in found:
        with suppress(OSError):  # it has ended meanwhile
            commands[int(each)] = Path(f"/proc/{each}/cmdline").read_bytes()
    return [each for each, command in commands.items() if b"resource_tracker" not in command]


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Store:
    """Return a store with one version, the champion. Tests must not change it."""
    store = Store(tmp_path_factory.mktemp("store"), empty_store)
    store.promote(store.add())
    return store


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Store:
    store = Store(tmp_path / "store", empty_store)
    store.promote(store.add())
    return store


@pytest.fixture(scope="module")
def server(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), shared_store.uri)
    try:
        yield server.wait()
    finally:
        server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts servers, which are stopped after the test."""
    servers: list[Server] = []

    def start_server(store: str, *options: str, **more: Any) -> Server:
        servers.append(Server(tmp_path / f"server{len(servers)}", store, *options, **more))
        return servers[-1]

    yield start_server
    for server in servers:
        server.stop()
