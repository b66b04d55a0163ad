"""Run Debian's nginx with deploy/nginx.conf in front of a service, and talk to it on the level of bytes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.deploy.files import DEPLOY, ROOT

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
TEMPLATE = (DEPLOY / "nginx.conf").read_text()
PLACEHOLDERS = set(re.findall(r"\$\{([A-Z_]+)\}", TEMPLATE))

PHOTO = (ROOT / "serving/examples/cat.jpg").read_bytes()
HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"
POST = b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Type: image/jpeg\r\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def render(upstream: str, port: int, prefix: str = "") -> str:
    """Return the configuration as the nginx image makes it from the template."""
    values = {
        "LISTEN": f"127.0.0.1:{port}",
        "UPSTREAM": upstream,
        "PREFIX": prefix,
        "MAX_BODY_MB": "16",
        "NGINX_LOCAL_RESOLVERS": "127.0.0.1",
    }
    return re.sub(r"\$\{([A-Z_]+)\}", lambda match: values[match[1]], TEMPLATE)


@contextmanager
def nginx(
    folder: Path, upstream: str, *, prefix: str = "", changes: dict[str, str] | None = None
) -> Iterator[int]:
    """Run nginx as the current user on 127.0.0.1, with all its files in `folder`; yield the port.

    Args:
        upstream: host:port of the service.
        changes: parts of the configuration to replace, such as a timeout that a test cannot wait for.
    """
    assert NGINX is not None
    port = free_port()
    configuration = render(upstream, port, prefix)
    for old, new in (changes or {}).items():
        assert old in configuration, old
        configuration = configuration.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(configuration)
    user = ["-g", "user root;"] if os.geteuid() == 0 else []  # workers would switch to another user
    command = [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"), *user]
    with (folder / "access.log").open("wb") as access, (folder / "error.log").open("wb") as errors:
        process = subprocess.Popen(command, stdout=access, stderr=errors)
    try:
        _wait_for(port, process, folder / "error.log")
        yield port
    finally:
        process.terminate()
        process.wait(30)


class Service:
    """A process of `cifar-mlflow serve` on a free port of 127.0.0.1."""

    def __init__(self, folder: Path, model: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = folder / "service.log"
        command = ["serve", f"--port={self.port}", f"--model-uri={model}", "--request-log=none", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cifar_mlflow", *command],
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "FORWARDED_ALLOW_IPS": "127.0.0.1"},
            )

    def wait(self) -> "Service":
        _wait_for(self.port, self.process, self.log)
        return self

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def requests(self, route: str) -> list[dict[str, Any]]:
        """Return the log lines of the requests for a route."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == "request" and line["route"] == route]

    def logged(self, route: str, request_id: str) -> dict[str, Any]:
        """Return the log line of a request; it is written shortly after the response."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for line in self.requests(route):
                if line["request_id"] == request_id:
                    return line
            time.sleep(0.05)
        raise AssertionError(f"request {request_id} is not in the log")

    def in_progress(self) -> int:
        """Return the number of requests that the service is working on, without this one."""
        text = requests.get(f"http://{self.address}/metrics", timeout=60).text
        (value,) = re.findall(r"^cifar_requests_in_flight(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)
        return int(float(value)) - 1


class Recorder:
    """An upstream that keeps the bytes of each request and answers with 204; `silent` never answers."""

    def __init__(self, silent: bool = False) -> None:
        self.received: list[bytes] = []
        self._silent = silent
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.received.append(connection.recv(65536))
                if not self._silent:
                    connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                else:
                    connection.recv(1)  # until nginx closes

    def headers(self) -> dict[str, str]:
        """Return the headers of the last request, with names in lower case."""
        lines = self.received[-1].decode().partition("\r\n\r\n")[0].split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def close(self) -> None:
        self._listener.close()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}: {log.read_text()}")


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error_code(self) -> str:
        assert self.headers["content-type"].startswith("application/json")
        error = json.loads(self.body)["error"]
        assert error.keys() == {"code", "message"}
        code: str = error["code"]
        return code


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0))


def exchange(port: int, data: bytes, source: str = "127.0.0.1") -> list[Response]:
    """Send bytes and return all responses until the peer closes the connection.

    Raises:
        ConnectionResetError: the peer reset the connection before its last response was read.
        TimeoutError: the peer keeps the connection open.
    """
    with connect(port, source) as connection:
        connection.sendall(data)
        return parse(receive(connection))


def receive(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def parse(received: bytes) -> list[Response]:
    responses = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        assert separator, head
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        responses.append(Response(int(first.split()[1]), headers, received[:length]))
        received = received[length:]
    return responses


def predict(port: int, body: bytes = PHOTO, **options: object) -> requests.Response:
    headers = {"Content-Type": "image/jpeg"}
    return requests.post(f"http://127.0.0.1:{port}/predict", data=body, headers=headers, timeout=60)
