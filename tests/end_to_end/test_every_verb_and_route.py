"""Each verb of the command line and each route of the service, once, for `make check`."""

import base64
import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
import requests
from click.testing import CliRunner
from starlette.routing import Match, Route

import serving.app.routes
from cifar_mlflow.cli import main
from tests.end_to_end.conftest import QUICK
from tests.serving.app.conftest import Server


class Commands:
    """Run commands in this process, and remember their verbs."""

    def __init__(self) -> None:
        self.verbs: set[str] = set()

    def run(self, verb: str, *arguments: str) -> str:
        self.verbs.add(verb)
        result = CliRunner().invoke(main, [verb, *arguments])
        assert result.exit_code == 0, result.output
        return result.output


class Client:
    """Send requests to a server, and remember their methods and paths."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[tuple[str, str]] = []

    def send(self, method: str, path: str, code: int = 200, **content: Any) -> requests.Response:
        self.requests.append((method, path))
        response = requests.request(method, f"{self.address}{path}", timeout=60, **content)
        assert response.status_code == code, f"{path}: {response.text}"
        return response

    def untouched(self) -> list[str]:
        """Return the routes of the service that no request has matched."""
        modules = [each.name for each in pkgutil.iter_modules(serving.app.routes.__path__)]
        routers = [importlib.import_module(f"serving.app.routes.{name}").router for name in modules]
        return [
            f"{route.methods if isinstance(route, Route) else 'mounted'} {route.path}"
            for router in routers
            for route in router.routes
            if not any(
                route.matches({"type": "http", "method": method, "path": path, "root_path": ""})[0]
                == Match.FULL
                for method, path in self.requests
            )
        ]


@pytest.mark.usefixtures("mlflow_store")
def test_each_verb_and_each_route_works(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = Commands()
    data = ("--dataset", "folder", "--data-dir", str(images))
    train, named = (*QUICK, *data), ("--registered-model", "cifar10")

    assert "green" in commands.run("data", *data)
    assert "labels that are probably wrong" in commands.run("review", *train, "--epochs", "1", "--folds", "2")
    Path(".venv").symlink_to(sys.prefix)
    shown = commands.run("demo", *train, *named, "--epochs", "4", "--serve-precision", "fp32")
    assert "classifies cat.jpg as: " in shown
    after = shown.partition("What next:\n")[2]
    assert re.match(r"  source \.venv/bin/activate +#.*\n  python -m cifar_mlflow\.tracking\.ui +#", after)
    assert re.search("^  cifar-mlflow serve +#", after, re.M)
    assert not re.search("^  make ", after, re.M)  # not in the folder of the Makefile
    chosen = (*named, "--target-accuracy", "0.9")
    trained = commands.run("train", *train, *chosen, "--epochs", "1", "--run-name", "second", "--lr", "1e-4")
    assert re.search(
        r"^  time  training \d+ s, figures \d+ s, evaluation \d+ s, export \d+ s$", trained, re.M
    )
    client = mlflow.MlflowClient()
    (run,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="run_name = 'second'", output_format="list"
    )
    assert f"cifar-mlflow register {run.info.run_id} {' '.join(chosen)} --promote\n" in trained
    assert "Evaluating" in commands.run("evaluate", "--model-uri", run.info.run_id)
    commands.run("export", run.info.run_id, "--output", "model.h5")
    assert Path("model.h5").exists()
    registered = commands.run("register", run.info.run_id, *named, "--serve-precision", "fp32")
    assert "Registered version 2 of cifar10: cnn as fp32, as requested, validation accuracy " in registered
    assert registered.endswith("It is not the champion. Promote it: cifar-mlflow promote 2\n")
    assert "version 2 " in commands.run("promote", "2", "--force")
    assert "in place of version 2" in commands.run("rollback")
    assert client.get_model_version_by_alias("cifar10", "champion").version == 1
    listed = commands.run("runs")
    assert f"{run.info.run_id}" in listed
    assert "cifar10/1 champion" in listed
    assert "cifar10/2" in commands.run("models")
    photo = images / "red" / "00.png"
    commands.run("classify", str(photo), "--output", "answers.jsonl")
    assert json.loads(Path("answers.jsonl").read_text())["label"] == "red"
    assert "best" in commands.run("tune", *train, "--trials", "1", "--epochs", "1").lower()

    commands.verbs.add("serve")
    server = Server(tmp_path / "service", mlflow.get_tracking_uri())
    try:
        server.wait()
        visit_every_route(Client(server.url), photo.read_bytes())
    finally:
        assert server.stop() == 0
    log = f"sqlite:///{server.folder}/requests.db"
    assert "the 1 whose true class is known" in commands.run("monitor", "--request-log", log)

    assert commands.verbs == set(main.list_commands(click.Context(main)))


def visit_every_route(client: Client, photo: bytes) -> None:
    for path in (
        "/ping",
        "/health",
        "/ready",
        "/version",
        "/metrics",
        "/docs",
        "/",
        "/page/main.js",
        "/page/swagger/docs.js",
    ):
        assert client.send("GET", path).content
    assert client.send("GET", "/model").json()["classes"] == ["blue", "green", "red"]
    assert client.send("GET", "/page/examples/cat.jpg").headers["Content-Type"] == "image/jpeg"

    answer = client.send("POST", "/predict", files={"file": photo}).json()
    assert answer["predictions"][0]["label"] == "red"
    feedback = {"request_id": answer["request_id"], "item": 0, "correct": True}
    client.send("POST", "/feedback", 204, json=feedback)
    table = {"inputs": {"image": ["!"]}, "params": {"on_error": "null"}}
    (row,) = client.send("POST", "/invocations", json=table).json()["predictions"]
    assert row["error"]["code"] == "not_base64"

    assert client.send("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.send("GET", path).json()[path.rpartition("/")[2]] is True
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo).decode()]}
    for model in ("/v2/models/cifar10", "/v2/models/cifar10/versions/1"):
        assert client.send("GET", model).json()["versions"] == ["1"]
        assert client.send("GET", f"{model}/ready").json()["ready"] is True
        tensors = client.send("POST", f"{model}/infer", json={"inputs": [image]}).json()["outputs"]
        assert tensors[0]["data"] == ["red"]
    assert client.untouched() == []
