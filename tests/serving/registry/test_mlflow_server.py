"""The start of `mlflow models serve`, with a stand-in for MLflow."""

import sys
from pathlib import Path

import pytest
import requests

from serving.registry.mlflow_server import mlflow_server

SLOW_SERVER = """#!{python}
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

delays = [6]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if delays:
            time.sleep(delays.pop())
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("-p") + 1])), Handler).serve_forever()
"""


@pytest.mark.slow
def test_a_server_whose_first_answer_takes_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(SLOW_SERVER.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with mlflow_server("models:/cifar10@champion") as server:
        assert requests.get(f"{server.address}/ping", timeout=60).ok
