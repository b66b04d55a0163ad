"""Commands whose tracking server loses responses or fails for a moment."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import mlflow
import pytest
import requests

from tests.end_to_end.conftest import Project
from tests.end_to_end.test_interruptions import Server

pytestmark = pytest.mark.slow

BAD_GATEWAY = b"<html>Bad gateway</html>"


class Proxy(ThreadingHTTPServer):
    """A proxy in front of an `mlflow server`.

    Attributes:
        away: pattern of method and path -> number of matching requests to answer with 502.
        lost: pattern -> number of matching requests to forward without returning the response.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.away: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Proxy

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = f"{self.command} {self.path}"
        if self._is_due(self.server.away, request):
            self.send_response(502)
            self.send_header("Content-Length", str(len(BAD_GATEWAY)))
            self.end_headers()
            self.wfile.write(BAD_GATEWAY)
            return
        headers = {key: value for key, value in self.headers.items() if key != "Host"}
        answer = requests.request(
            self.command, f"{self.server.upstream}{self.path}", data=body, headers=headers, timeout=60
        )
        if self._is_due(self.server.lost, request):
            self.close_connection = True
            return
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - names set by http.server

    def _is_due(self, faults: dict[str, int], request: str) -> bool:
        for pattern, times in faults.items():
            if times and re.search(pattern, request):
                faults[pattern] -= 1
                return True
        return False

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(project: Project, free_port: int) -> Iterator[Proxy]:
    server = Server(project, free_port)
    standing = Proxy(server.uri)
    project.env["MLFLOW_TRACKING_URI"] = standing.address
    yield standing
    standing.shutdown()
    server.stop()


@pytest.mark.thorough
def test_lost_responses_create_nothing_twice_and_short_outages_are_survived(
    project: Project, proxy: Proxy
) -> None:
    proxy.lost = {"POST .*runs/create": 1, "POST .*model-versions/create": 1}
    project.train("--serve-precision", "fp32", "--epochs", "1")
    (run,) = project.runs
    assert run.info.status == "FINISHED"

    proxy.away = {
        "GET .*mlflow-artifacts/.*model.safetensors": 2,
        "GET .*mlflow-artifacts/.*model.onnx": 2,
        "GET .*experiments/get": 2,
    }
    named = ("--registered-model", "cifar10")
    said = project.run("register", run.info.run_id, "--serve-precision", "fp32", *named)
    assert "Registered version 1 of cifar10" in said
    (version,) = mlflow.MlflowClient(proxy.address).search_model_versions("name = 'cifar10'")
    assert version.description.startswith("cnn on images")
    assert not any((*proxy.lost.values(), *proxy.away.values()))

    proxy.away = {"GET .*mlflow-artifacts/": 3, "POST .*alias": 2}
    assert "version 1 " in project.run("promote")
    assert not any(proxy.away.values())


@pytest.mark.thorough
def test_a_search_survives_a_server_that_fails_when_its_run_is_created(
    project: Project, proxy: Proxy
) -> None:
    proxy.away = {"POST .*runs/create": 1}
    proxy.lost = {"POST .*runs/create": 1}
    project.run("tune", *project.quick, "--epochs", "1", "--pruner", "none", "--trials", "1")
    assert not any((*proxy.away.values(), *proxy.lost.values()))
    kinds = {run.data.tags["kind"]: run.info.status for run in project.runs}
    assert (len(project.runs), kinds) == (2, {"search": "FINISHED", "train": "FINISHED"})
